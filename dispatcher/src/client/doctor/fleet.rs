//! The fleet at work, looked at twice. What happens when, so that two looks prove something:
//!
//! ```text
//! registry, pings, consumers | tasks handed out, records | host | workers' answers | what these name
//!      --- some seconds, the doubtful are asked again ---
//! pings, workers' answers, consumers | the same tasks again | what workers name | registry | host
//! ```
//!
//! A task that is there, unchanged, in both its looks ran (or did not) at both answers of its worker, which lie between.

use std::collections::BTreeSet;
use std::time::Duration;

use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::{AgentId, Timestamp};
use tokio::time::Instant;

use super::agents::{self, Look, Seen};
use super::host::{self, HostLook};
use super::tasks::{self, Handed};
use super::{Doctor, Notes, count, failed, queues, roll_call, told};
use crate::client::ClientError;

/// Questions between the two looks.
const BETWEEN: u32 = 3;
/// What a beat may be late beyond three missed ones.
const LATE: Duration = Duration::from_secs(5);

/// Takes what was read, or notes that it could not be.
fn kept<T>(notes: &mut Notes, what: &str, read: Result<T, ClientError>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(error) => {
            notes.find(failed(what, told(&error)));
            None
        }
    }
}

pub(super) async fn check(on: &Doctor<'_>) -> Result<Notes, ClientError> {
    let client = on.client;
    let mut notes = Notes::default();
    let notes = &mut notes;

    // Where this is not allowed, everybody would seem silent.
    let may_ask = on.may_publish(&format!("{}.control.*.info", client.names.prefix()));
    let may_ping = on.may_publish("$SRV.PING.>");
    for (may, what, subject) in [
        (may_ask, "what workers say when they are asked", "shoal.control.*.info"),
        (may_ping, "who answers a ping", "$SRV.PING.>"),
    ] {
        if may == Some(false) {
            notes.find(failed(what, format!("this user may not publish to `{subject}`")));
        }
    }

    let began = Instant::now();
    let (registry, pings, looked, dispatcher, sample) = tokio::join!(
        roll_call::registry(client),
        roll_call::pings(client),
        queues::look(client),
        roll_call::dispatcher_answers(client),
        tasks::sample(client),
    );
    let mut first = Look::default();
    let registered = kept(notes, "the registry of agents", registry);
    if let Some((registry, total)) = &registered {
        (first.registry, first.total) = (registry.clone(), *total);
    }
    first.pings = kept(notes, "who answers a ping of all workers", pings).unwrap_or_default();
    let queues_before = kept(notes, "queues and their consumers", looked).flatten();
    let sample = kept(notes, "records of tasks", sample);
    let mut handed: Option<Vec<Handed>> = None;
    if let Some(look) = &queues_before {
        handed = kept(notes, "tasks that were handed out", tasks::handed(client, look).await);
    }
    let host_before = host_looks(on, notes).await;
    let mut known: BTreeSet<AgentId> = first.pings.iter().map(|ping| ping.worker.clone()).collect();
    known.extend(handed.iter().flatten().filter_map(|it| it.holder().map(|(worker, _, _)| worker.clone())));
    known.extend(host_before.iter().flatten().flat_map(|look| look.objects.iter().map(|it| it.worker.clone())));
    if registered.is_some() {
        let beyond = known.difference(&first.registry.keys().cloned().collect()).cloned().collect();
        if let Some(entries) = kept(notes, "some agents", roll_call::entries(client, &beyond).await) {
            first.registry.extend(entries);
        }
    }
    let mut ask = first.to_ask();
    ask.extend(known.iter().take(agents::ASKED).cloned());
    if may_ask == Some(false) {
        ask.clear();
    }
    first.answers = roll_call::answers(client, &ask).await;
    if may_ask.is_none() && first.pings.is_empty() && first.nobody_answers() {
        let why = "nobody answers, and the server does not tell whether this user may ask";
        notes.find(failed("what workers say when they are asked", why));
        ask.clear();
        first.answers.clear();
    }
    let named_before = kept(notes, "what workers say that they run", tasks::named(client, &first).await);

    let again = Seen::to_ask_again(&first);
    let mut between = Vec::new();
    for _ in 0..BETWEEN {
        tokio::time::sleep(on.examination.wait / BETWEEN).await;
        if !again.is_empty() {
            between.push(roll_call::answers(client, &again).await);
        }
    }

    let mut second = Look::default();
    let (pings, answers) = tokio::join!(roll_call::pings(client), roll_call::answers(client, &ask));
    second.pings = pings.unwrap_or_default();
    second.answers = answers;
    let apart = began.elapsed();
    let mut queues_after = None;
    if queues_before.is_some() {
        queues_after = kept(notes, "queues and their consumers", queues::look(client).await).flatten();
    }
    let mut there = None;
    if let Some(handed) = &handed {
        there = kept(notes, "tasks that were handed out", tasks::still(client, handed).await);
    }
    let mut named_after = None;
    if named_before.is_some() {
        named_after = kept(notes, "what workers say that they run", tasks::named(client, &second).await);
    }
    let mut now = Timestamp::now();
    if registered.is_some() {
        let stream = format!("KV_{}", client.names.agents_bucket());
        now = client.js.stream_info(&stream).await?.and_then(|info| info.ts).unwrap_or(now);
        if let Some((registry, total)) = kept(notes, "the registry of agents", roll_call::registry(client).await) {
            (second.registry, second.total) = (registry, total);
        }
        // Who beat meanwhile may have moved out of what is read of a large fleet.
        let moved =
            first.registry.keys().chain(&known).filter(|id| !second.registry.contains_key(*id)).cloned().collect();
        if let Some(entries) = kept(notes, "some agents", roll_call::entries(client, &moved).await) {
            second.registry.extend(entries);
        }
    }
    let host_after = host_looks(on, notes).await;

    let silent_after = on.examination.heartbeat * 3 + LATE;
    let seen = Seen { first, second, between, now, silent_after };
    if registered.is_some() {
        notes.findings.extend(seen.judge());
        looked_at(notes, &seen, ask.len());
        if may_ping != Some(false) && on.user.is_ok() && !dispatcher && !roll_call::dispatcher_answers(client).await {
            notes.find(no_dispatcher(client.names.prefix().as_str()));
        }
    }
    if let (Some(before), Some(after)) = (&queues_before, &queues_after) {
        let settings = kept(notes, "settings of queues", queues::settings(client, after).await);
        let whole = seen.second.registry.len() as u64 >= seen.second.total;
        let served = queues::Served { queues: seen.served(), whole };
        // Who is in no registry that can be read may serve.
        if let (Some(settings), true) = (settings, registered.is_some()) {
            notes.findings.extend(queues::judge(on, (before, after), apart, &settings, &served));
        }
        notes.looked(format!(
            "{}, {} in the stream, of these the oldest and the newest 200",
            count(after.consumers.len() as u64, "queue"),
            count(after.messages, "task")
        ));
    }
    if let (Some(before), Some(there), Some(look)) = (&handed, &there, &queues_after) {
        if !tasks::undeliverable(there, look).is_empty() {
            // Those were direct reads, which may trail; the leader has the last word.
            let sure = kept(notes, "tasks that were handed out", tasks::surely(client, there).await);
            notes.findings.extend(tasks::undeliverable(&sure.unwrap_or_default(), look));
        }
        if registered.is_some() {
            notes.findings.extend(tasks::without_attempt(before, there, &seen, look));
        }
        notes.looked(format!("{}, at most the oldest 100 of a queue", count(before.len() as u64, "handed-out task")));
    }
    if let (Some(sample), Some(look)) = (&sample, &queues_after) {
        let missing = kept(notes, "records of tasks", tasks::without_message(client, sample).await);
        notes.findings.extend(missing.unwrap_or_default());
        notes.findings.extend(tasks::set_back(sample, look, &client.names.tasks_stream()));
        notes.looked(format!("{} of {}", sample.read, count(sample.total, "record")));
    }
    if let (Some(before), Some(after)) = (&named_before, &named_after) {
        let found = kept(notes, "what workers say that they run", tasks::without_task(client, before, after).await);
        notes.findings.extend(found.unwrap_or_default());
        notes.looked(count(after.tasks.len() as u64, "running attempt"));
    }
    if registered.is_some() {
        let starts =
            named_after.as_ref().or(named_before.as_ref()).map(|named| named.starts(&seen)).unwrap_or_default();
        for ((source, before), after) in on.examination.host.iter().zip(&host_before).zip(&host_after) {
            let (Some(before), Some(after)) = (before, after) else { continue };
            notes.findings.extend(host::judge(before, after, &seen, &starts));
            let others = match after.others {
                0 => String::new(),
                others => format!(" ({others} of other fleets left alone)"),
            };
            notes.looked(format!("{} in {}{others}", count(after.objects.len() as u64, "object"), source.name));
        }
    }
    if on.examination.host.is_empty() {
        notes.not_seen.push(
            "containers and work folders without an owner: only their machine knows; there: \
             shoal doctor --docker-host unix:///var/run/docker.sock --state-dir DIR"
                .into(),
        );
    }
    Ok(std::mem::take(notes))
}

fn looked_at(notes: &mut Notes, seen: &Seen, asked: usize) {
    let (read, total) = (seen.second.registry.len() as u64, seen.second.total);
    notes.looked(format!(
        "{read} of {}, {asked} asked, {} answered a ping of all",
        count(total.max(read), "agent"),
        seen.second.pings.len()
    ));
}

fn no_dispatcher(fleet: &str) -> Finding {
    Finding::new(Severity::Info, FindingCode::NoDispatcher, format!("fleet {fleet}"))
        .says("no dispatcher answers: nobody ends expired tasks, records without a message, and silent agents' status")
        .next("start one: shoal dispatcher")
}

/// What this machine holds, one for each source.
async fn host_looks(on: &Doctor<'_>, notes: &mut Notes) -> Vec<Option<HostLook>> {
    let mut looks = Vec::new();
    if on.examination.host.is_empty() {
        return looks;
    }
    let created = on.client.js.stream_created(&on.client.names.tasks_stream()).await;
    for source in &on.examination.host {
        let look = match &created {
            Ok(Some(created)) => (source.read)(created.as_millis()).await,
            Ok(None) => Err("without the stream of tasks nobody can tell which fleet an object is of".into()),
            Err(error) => Err(told(error)),
        };
        looks.push(match look {
            Ok(look) => Some(look),
            Err(why) => {
                let finding = failed(&source.name, why);
                if !notes.findings.contains(&finding) {
                    notes.find(finding);
                }
                None
            }
        });
    }
    looks
}
