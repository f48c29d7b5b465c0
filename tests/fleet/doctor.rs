//! `shoal doctor`, from outside (O11): every finding is provoked, and a healthy fleet has none.

mod agents;
mod functions;
mod healthy;
mod host;
mod server;
mod tasks;

use serde_json::Value;

use crate::support::{Fleet, eventually};

/// What doctor says, with `args`.
async fn examine(fleet: &Fleet, args: &[&str]) -> Value {
    examine_with(fleet, args, &[]).await
}

/// The same with further environment.
async fn examine_with(fleet: &Fleet, args: &[&str], env: &[(&str, &str)]) -> Value {
    let args = [&["doctor", "-o", "json"], args].concat();
    let env = [&[("SHOAL_DOCTOR_WAIT", "1500ms")], env].concat();
    let output = fleet.spawn_with(&args, "", &env).wait().await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let findings = report["findings"].as_array().expect("findings");
    let wrong = findings.iter().any(|finding| finding["severity"] != "info");
    assert_eq!(output.code, i32::from(wrong), "{output:?}");
    for finding in findings {
        for field in ["about", "message", "next"] {
            assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {finding}");
        }
    }
    report
}

/// The codes with what they are about, the worst first.
fn codes(report: &Value) -> Vec<(&str, &str)> {
    let findings = report["findings"].as_array().expect("findings").iter();
    findings.map(|it| (it["code"].as_str().expect("a code"), it["about"].as_str().expect("text"))).collect()
}

/// The first finding of this code.
fn find<'a>(report: &'a Value, code: &str) -> Option<&'a Value> {
    report["findings"].as_array().expect("findings").iter().find(|finding| finding["code"] == code)
}

/// Waits until doctor has a finding of this code about this.
async fn found(fleet: &Fleet, code: &str, about: &str, args: &[&str]) -> Value {
    eventually(format!("{code} about {about}"), async || {
        let report = examine(fleet, args).await;
        let findings = report["findings"].as_array().expect("findings");
        let it = findings.iter().find(|it| it["code"] == code && it["about"] == about);
        it.cloned().ok_or_else(|| report.to_string())
    })
    .await
}

fn message(finding: &Value) -> &str {
    finding["message"].as_str().expect("a message")
}
