//! Containers, networks, volumes and work folders that nobody owns.

use serde_json::{Value, json};

use super::{codes, examine};
use crate::support::{Fleet, With, engine, eventually, shell_in};

/// Waits for every one of these findings at once; all that doctor said.
async fn all_found(fleet: &Fleet, args: &[&str], wanted: &[(&str, String)]) -> Value {
    eventually(format!("{wanted:?}"), async || {
        let report = examine(fleet, args).await;
        let codes = codes(&report);
        match wanted.iter().all(|(code, about)| codes.contains(&(*code, about.as_str()))) {
            true => Ok(report),
            false => Err(report.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn what_a_dead_worker_left_on_the_engine_has_no_owner() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let mut dead = engine.worker(&fleet, "dead").queues("dead").start().await;
    let _lives = engine.worker(&fleet, "lives").queues("lives").env("SHOAL_SWEEP_EVERY", "1h").start().await;
    for key in ["dead.left", "lives.used"] {
        fleet.publish(key, &shell_in("sleep 600").with("stop_grace", "0s")).await;
    }
    let name = |container: &Value| container["Name"].as_str().expect("a name").trim_start_matches('/').to_owned();
    let (left, used) = (engine.running("left").await, engine.running("used").await);
    // The guard goes with it: nobody is left to clear up.
    dead.kill_with_children().await;
    // A stray one with labels of the living worker, of a start that it does not know; a volume of the dead one; another fleet's.
    let mut labels = used["Config"]["Labels"].clone();
    labels["shoal.start"] = "zzzzzz".into();
    labels["shoal.name"] = "lives.stray".into();
    engine.run(&engine.id("stray"), labels.clone()).await;
    let volume = engine.id("volume");
    let of_dead = json!({"Name": volume, "Labels": left["Config"]["Labels"]});
    engine.request("POST", "/volumes/create", of_dead).await;
    labels["shoal.fleet"] = "another-fleet".into();
    engine.run(&engine.id("theirs"), labels).await;

    let host = engine.host();
    let args = ["--docker-host", host.as_str()];
    let wanted = [
        ("container_without_owner", format!("container {}", name(&left))),
        ("container_without_owner", format!("container {}", engine.id("stray"))),
        ("container_without_owner", format!("volume {volume}")),
    ];
    let report = all_found(&fleet, &args, &wanted).await;
    for (about, here) in [(name(&used), false), (engine.id("theirs"), false), (name(&left), true)] {
        assert_eq!(report["findings"].to_string().contains(&about), here, "{about}: {report}");
    }
    let finding = report["findings"].as_array().expect("findings").iter().find(|it| it["about"] == wanted[0].1);
    let finding = finding.expect("it");
    assert_eq!(finding["evidence"]["task"], "dead.left");
    assert!(finding["next"].as_str().expect("text").contains("docker rm -f"), "{finding}");
    engine.remove(&format!("volumes/{volume}")).await;
    fleet.shoal(&["cancel", "lives.used"]).await.ok();
}

#[tokio::test]
async fn a_work_folder_that_nobody_uses_is_told() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    // The record tells that it runs before it has a folder.
    job.started(1).await;
    let state = fleet.folder().join("w");
    let used =
        std::fs::read_dir(state.join("work/w")).expect("a folder").next().expect("one").expect("readable").path();
    let (stray, gone) = (state.join("work/w/stray"), state.join("work/gone/start"));
    for folder in [&stray, &gone] {
        std::fs::create_dir_all(folder).expect("made");
    }
    let path = state.display().to_string();
    let args = ["--state-dir", path.as_str()];
    let wanted = [
        ("workspace_without_owner", format!("work folder {}", stray.display())),
        ("workspace_without_owner", format!("work folder {}", gone.display())),
    ];
    let report = all_found(&fleet, &args, &wanted).await;
    assert!(!report["findings"].to_string().contains(&used.display().to_string()), "{report}");
    // A folder that is nobody's state is told too.
    let report = examine(&fleet, &["--state-dir", "/nonexistent"]).await;
    assert!(codes(&report).contains(&("check_failed", "work folders below /nonexistent")), "{report}");
    job.open();
}
