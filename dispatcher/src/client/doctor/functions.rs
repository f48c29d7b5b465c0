//! Functions: instances that should be kept warm and are not, and those whose worker is gone.

use std::collections::{BTreeMap, BTreeSet};

use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::{AgentId, FunctionName, Instance, InstanceStatus};

use super::{Doctor, Notes, count};
use crate::client::{ClientError, Defined};

/// Functions whose instances are looked at.
const LOOKED_AT: usize = 2_000;
/// Workers that are asked.
const ASKED: usize = 200;

/// What was seen at one moment.
#[derive(Debug, Default)]
struct Look {
    functions: Vec<Defined>,
    instances: BTreeMap<(FunctionName, u32), Instance>,
    /// Holders that nobody answers for.
    gone: BTreeSet<AgentId>,
}

pub(super) async fn check(on: &Doctor<'_>) -> Result<Notes, ClientError> {
    let mut notes = Notes::default();
    let first = look(on).await?;
    if first.functions.is_empty() && first.instances.is_empty() {
        return Ok(notes);
    }
    let (functions, instances) = (first.functions.len() as u64, first.instances.len() as u64);
    notes.looked(format!("{} with {}", count(functions, "function"), count(instances, "instance")));
    if judge(&first, &first).is_empty() {
        return Ok(notes);
    }
    tokio::time::sleep(on.examination.wait).await;
    notes.findings.extend(judge(&first, &look(on).await?));
    Ok(notes)
}

async fn look(on: &Doctor<'_>) -> Result<Look, ClientError> {
    let caller = on.client.functions(None);
    let mut functions = caller.definitions().await?;
    functions.truncate(LOOKED_AT);
    let known = caller.instances(None).await?.into_iter().map(|known| known.instance);
    let instances: BTreeMap<_, _> = known.map(|it| ((it.function.clone(), it.index), it)).collect();
    let held = instances.values().filter(|it| it.is_there() && it.status != InstanceStatus::Left);
    let holders: BTreeMap<&AgentId, &Instance> = held.map(|it| (&it.worker, it)).collect();
    let asked = holders.iter().take(ASKED).map(|(worker, instance)| {
        let caller = &caller;
        async move { Ok::<_, ClientError>((*worker, caller.answers(instance).await?)) }
    });
    let mut gone = BTreeSet::new();
    for asked in futures_util::future::join_all(asked).await {
        let (worker, answers) = asked?;
        if !answers {
            gone.insert(worker.clone());
        }
    }
    Ok(Look { functions, instances, gone })
}

/// What is wrong at both looks. Pure.
fn judge(first: &Look, second: &Look) -> Vec<Finding> {
    let mut findings = Vec::new();
    for defined in &second.functions {
        let was = first.functions.iter().any(|before| before == defined);
        if was && let Some(finding) = below_min(defined, first, second) {
            findings.push(finding);
        }
    }
    for ((function, index), instance) in &second.instances {
        let same = first.instances.get(&(function.clone(), *index)).is_some_and(|it| it.start == instance.start);
        let is_held = instance.is_there() && instance.status != InstanceStatus::Left;
        if same && is_held && first.gone.contains(&instance.worker) && second.gone.contains(&instance.worker) {
            let worker = &instance.worker;
            findings.push(
                Finding::new(
                    Severity::Warning,
                    FindingCode::InstanceWithoutWorker,
                    format!("instance {function}.{index}"),
                )
                .says(format!("its record says `{}`, and nobody answers for its worker {worker}", instance.status))
                .seen("worker", worker.as_str())
                .next(
                    "a dispatcher forgets it within seconds: start one with `shoal dispatcher`; a call replaces it too",
                ),
            );
        }
    }
    findings
}

fn below_min(defined: &Defined, first: &Look, second: &Look) -> Option<Finding> {
    let Defined { name, function, .. } = defined;
    let slot = |look: &'_ Look, index| look.instances.get(&(name.clone(), index)).cloned();
    let serves = |look: &Look, index| slot(look, index).is_some_and(|it| it.takes_calls());
    // One that came or went between the looks is nobody's concern.
    let missing: Vec<u32> =
        (0..function.min).filter(|index| !serves(first, *index) && !serves(second, *index)).collect();
    let lacks = *missing.first()?;
    let error = missing.iter().find_map(|index| Some((*index, slot(second, *index)?.error?)));
    let (why, next) = match &error {
        Some((index, error)) => (
            format!("slot {index}: {}: {}", error.code, error.message),
            format!("shoal instances {name}; shoal logs _functions.{name}"),
        ),
        None => (
            format!("nobody has made that of slot {lacks} yet"),
            format!("have a worker with a container runtime serve the queue `{}`: shoal agents list", function.pool),
        ),
    };
    let serving = function.min as usize - missing.len();
    let about = format!("function {name}");
    let mut finding = Finding::new(Severity::Warning, FindingCode::FunctionBelowMin, about)
        .says(format!(
            "{serving} of {} that are to be kept warm take calls; {why}",
            count(function.min.into(), "instance")
        ))
        .seen("serving", serving as u64)
        .seen("min", function.min)
        .next(next);
    if let Some((_, error)) = error {
        finding = finding.seen("error", error.code.as_str());
    }
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn instance(index: u32, status: &str, fields: Value) -> Instance {
        let mut value = json!({
            "function": "f", "index": index, "status": status, "worker": "w-1", "boot": "b", "start": "abc", "id": "1",
            "revision": 3, "spec": "s", "created_at": "2026-11-20T10:00:00Z",
        });
        value.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn look(min: u32, instances: Vec<Instance>, gone: bool) -> Look {
        let function = serde_json::from_value(json!({"image": "a:1", "min": min, "max": 3})).unwrap();
        Look {
            functions: vec![Defined { name: "f".parse().unwrap(), function, revision: 3 }],
            instances: instances.into_iter().map(|it| ((it.function.clone(), it.index), it)).collect(),
            gone: gone.then(|| "w-1".parse().unwrap()).into_iter().collect(),
        }
    }

    fn codes(first: &Look, second: &Look) -> Vec<FindingCode> {
        judge(first, second).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_serves_or_has_come_between_the_looks_is_no_finding() {
        let ready = || look(1, vec![instance(0, "ready", json!({}))], false);
        let none = || look(1, vec![], false);
        assert!(codes(&ready(), &ready()).is_empty());
        assert!(codes(&none(), &ready()).is_empty());
        assert!(codes(&ready(), &none()).is_empty());
        assert_eq!(codes(&none(), &none()), [FindingCode::FunctionBelowMin]);
        assert!(codes(&look(0, vec![], false), &look(0, vec![], false)).is_empty());
    }

    #[test]
    fn an_instance_below_min_is_told_with_its_error() {
        let error = json!({"id": null, "start": null, "error": {"code": "image_not_found", "message": "no a:1"}});
        let failed = || look(2, vec![instance(0, "ready", json!({})), instance(1, "failed", error.clone())], false);
        let findings = judge(&failed(), &failed());
        assert_eq!(findings.len(), 1);
        let words = "1 of 2 instances that are to be kept warm take calls; slot 1: image_not_found: no a:1";
        assert_eq!(findings[0].message, words);
    }

    #[test]
    fn an_instance_is_without_worker_if_nobody_answers_twice() {
        let held = |gone| look(0, vec![instance(0, "ready", json!({}))], gone);
        assert_eq!(codes(&held(true), &held(true)), [FindingCode::InstanceWithoutWorker]);
        assert!(codes(&held(true), &held(false)).is_empty());
        // What is left has no worker until that begins anew.
        let left = || look(0, vec![instance(0, "left", json!({}))], true);
        assert!(codes(&left(), &left()).is_empty());
        let another = look(0, vec![instance(0, "ready", json!({"start": "xyz"}))], true);
        assert!(codes(&held(true), &another).is_empty());
    }
}
