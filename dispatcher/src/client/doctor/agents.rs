//! The registry against reality: what agents last said, who answers, and what workers say when they are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::{AgentId, AgentKind, AgentRecord, AgentStatus, QueueName, Timestamp};

use super::{millis, time};

/// Workers that are asked.
pub(super) const ASKED: usize = 200;
/// A beat's time stamp may be so much later than the time at which the server stored it.
const AHEAD: Duration = Duration::from_secs(2);
/// And so much earlier: the write itself may have waited.
const BEHIND: Duration = Duration::from_secs(10);
/// Silence of pulls that is none yet: open ones say something every two seconds.
const FETCH_SILENCE: Duration = Duration::from_secs(10);

/// One entry of the registry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) record: AgentRecord,
    pub(super) stored_at: Timestamp,
    pub(super) revision: u64,
}

/// One worker that answered a ping of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ping {
    pub(super) worker: AgentId,
    pub(super) instance: String,
    pub(super) queues: Vec<QueueName>,
}

/// What a worker said when it was asked.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Its record, fresh.
    Told(Box<AgentRecord>),
    /// Something else: it is just starting.
    Other,
    /// Nothing.
    Silent,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) registry: BTreeMap<AgentId, Entry>,
    /// Of how many in all.
    pub(super) total: u64,
    pub(super) pings: Vec<Ping>,
    pub(super) answers: BTreeMap<AgentId, Answer>,
}

/// Two looks and what was asked in between.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) first: Look,
    pub(super) second: Look,
    pub(super) between: Vec<BTreeMap<AgentId, Answer>>,
    /// The server's present at the second look.
    pub(super) now: Timestamp,
    /// Silent for longer than this is gone.
    pub(super) silent_after: Duration,
}

impl Look {
    /// Whom to ask: workers that did not say goodbye.
    pub(super) fn to_ask(&self) -> BTreeSet<AgentId> {
        let live = self.registry.values().map(|entry| &entry.record);
        let live = live.filter(|record| record.kind == AgentKind::Worker && record.status != AgentStatus::Offline);
        live.map(|record| record.id.clone()).take(ASKED).collect()
    }

    /// Whether there were some to ask, and none said anything.
    pub(super) fn nobody_answers(&self) -> bool {
        !self.answers.is_empty() && self.answers.values().all(|answer| matches!(answer, Answer::Silent))
    }

    pub(super) fn told(&self, worker: &AgentId) -> Option<&AgentRecord> {
        told(&self.answers, worker)
    }
}

fn told<'a>(answers: &'a BTreeMap<AgentId, Answer>, worker: &AgentId) -> Option<&'a AgentRecord> {
    match answers.get(worker) {
        Some(Answer::Told(record)) => Some(record),
        Some(Answer::Other | Answer::Silent) | None => None,
    }
}

impl Seen {
    /// What one boot of a worker said in both looks.
    pub(super) fn answered_twice(&self, worker: &AgentId) -> Option<(&AgentRecord, &AgentRecord)> {
        let both = self.first.told(worker).zip(self.second.told(worker));
        both.filter(|(before, now)| before.instance == now.instance)
    }

    /// How an agent is, by its word and its silence; `None` if it is not in the registry.
    pub(super) fn status(&self, agent: &AgentId) -> Option<AgentStatus> {
        let entry = self.second.registry.get(agent)?;
        Some(if self.is_silent(entry) { AgentStatus::Offline } else { entry.record.status })
    }

    fn is_silent(&self, entry: &Entry) -> bool {
        self.silent_for(entry) > self.silent_after
    }

    fn silent_for(&self, entry: &Entry) -> Duration {
        self.now.since(entry.stored_at)
    }

    /// Queues that somebody serves who lives.
    pub(super) fn served(&self) -> BTreeSet<QueueName> {
        let live = self
            .second
            .registry
            .values()
            .filter(|entry| entry.record.status != AgentStatus::Offline && !self.is_silent(entry));
        let registered = live.flat_map(|entry| &entry.record.queues);
        registered.chain(self.second.pings.iter().flat_map(|ping| &ping.queues)).cloned().collect()
    }

    /// Judges all of it.
    pub(super) fn judge(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for entry in self.second.registry.values() {
            findings.extend(self.judge_entry(entry));
        }
        findings.extend(self.judge_pings());
        for worker in self.second.answers.keys() {
            findings.extend(self.slots(worker));
        }
        findings
    }

    fn judge_entry(&self, entry: &Entry) -> Vec<Finding> {
        let record = &entry.record;
        let id = &record.id;
        let before = self.first.registry.get(id);
        if record.status == AgentStatus::Offline {
            return Vec::new();
        }
        let mut findings = Vec::new();
        let about = format!("agent {id}");
        let silent_for = self.silent_for(entry);
        let silent = self.is_silent(entry) && before.is_some_and(|before| before.revision == entry.revision);
        let answers = self.answered_twice(id).is_some();
        if silent {
            let but = if answers { ", though it answers: its beats are not stored" } else { "" };
            findings.push(
                Finding::new(Severity::Warning, FindingCode::AgentSilent, &about)
                    .says(format!("it says `{}` and has not beaten for {}{but}", record.status, time(silent_for)))
                    .seen("silent_ms", millis(silent_for))
                    .seen("answers", answers)
                    .seen("hostname", record.hostname.as_str())
                    .next(format!(
                        "look at its process on {}, and at its log: shoal agents show {id}",
                        record.hostname
                    )),
            );
        } else if record.kind == AgentKind::Worker && before.is_some_and(|b| b.record.instance == record.instance) {
            let nothing = |look: &Look| matches!(look.answers.get(id), Some(Answer::Silent));
            if nothing(&self.first) && nothing(&self.second) {
                findings.push(
                    Finding::new(Severity::Warning, FindingCode::AgentNoAnswer, &about)
                        .says(format!(
                            "it was asked twice and gave no answer; its last beat is {} old",
                            time(silent_for)
                        ))
                        .seen("silent_ms", millis(silent_for))
                        .seen("hostname", record.hostname.as_str())
                        .next(format!("look at its process on {}: frozen, overloaded or cut off", record.hostname)),
                );
            }
        }
        let stamp = record.last_heartbeat;
        let (ahead, behind) = (stamp.since(entry.stored_at), entry.stored_at.since(stamp));
        // A beat that was written while the server was away is stored late; what it says when it is asked tells.
        let answered = self.second.told(id).and_then(|said| said.last_fetch.max(said.last_ack));
        let late = answered.is_some_and(|at| self.now.since(at).max(at.since(self.now)) < BEHIND);
        if ahead > AHEAD || (behind > BEHIND && !late) {
            let side = if ahead > AHEAD { "ahead of" } else { "behind" };
            findings.push(
                Finding::new(Severity::Warning, FindingCode::AgentClockOff, &about)
                    .says(format!("its clock is {} {side} the server's", time(ahead.max(behind))))
                    .seen("off_ms", millis(ahead.max(behind)))
                    .seen("hostname", record.hostname.as_str())
                    .next(format!("set the clock of {} by NTP: timedatectl status", record.hostname)),
            );
        }
        findings.extend(self.fetching(id, before.map(|before| &before.record), record));
        findings
    }

    /// A worker that lives and takes nothing, though nobody wants it so.
    fn fetching(&self, id: &AgentId, before: Option<&AgentRecord>, record: &AgentRecord) -> Option<Finding> {
        let (first, now) = self.answered_twice(id)?;
        let before = before.filter(|before| before.instance == record.instance)?;
        let room = |said: &AgentRecord| said.slots_taken.unwrap_or(said.running_count) < said.slots;
        let cordoned = |said: &AgentRecord| said.reason.as_ref().is_some_and(|why| why.starts_with("cordoned"));
        let draining = |said: &AgentRecord| said.status == AgentStatus::Draining;
        if [before, record].into_iter().any(|said| cordoned(said) || draining(said)) || !room(first) || !room(now) {
            return None;
        }
        // By its own clock, all of it.
        let present = now.last_ack.max(now.last_fetch).max(Some(now.last_heartbeat)).unwrap_or(now.last_heartbeat);
        let since = now.last_fetch.unwrap_or(now.registered_at);
        let silence = present.since(since);
        if silence <= FETCH_SILENCE {
            return None;
        }
        let why = record.reason.as_deref().unwrap_or("it does not say why");
        let finding = Finding::new(Severity::Warning, FindingCode::AgentNotFetching, format!("agent {id}"))
            .says(format!("it beats as `{}` but has taken no task for {}: {why}", record.status, time(silence)))
            .seen("silent_ms", millis(silence))
            .seen("slots", now.slots)
            .seen("running", now.running_count)
            .next(format!("shoal agents show {id}; its log; nats consumer report"));
        Some(finding)
    }

    fn judge_pings(&self) -> Vec<Finding> {
        let both: Vec<&Ping> = self.second.pings.iter().filter(|ping| self.first.pings.contains(ping)).collect();
        let mut findings = Vec::new();
        let mut seen: BTreeMap<&AgentId, Vec<&str>> = BTreeMap::new();
        for ping in &both {
            seen.entry(&ping.worker).or_default().push(&ping.instance);
        }
        for (worker, instances) in seen {
            let about = format!("agent {worker}");
            if instances.len() > 1 {
                findings.push(
                    Finding::new(Severity::Error, FindingCode::AgentIdTwice, &about)
                        .says(format!("{} live workers have this id: each sweeps what the other made", instances.len()))
                        .seen("instances", instances)
                        .next("give each worker an id of its own: --id, or its own --state-dir"),
                );
                continue;
            }
            let entries = (self.first.registry.get(worker), self.second.registry.get(worker));
            match entries {
                (None, None) => findings.push(
                    Finding::new(Severity::Warning, FindingCode::AgentNotRegistered, &about)
                        .says("it answers, but is not in the registry: nobody counts on it")
                        .seen("instance", instances[0])
                        .next(format!(
                            "its beats are not stored; look into its log; may it publish to $KV.….{worker}?"
                        )),
                ),
                (Some(before), Some(now))
                    if now.record.status == AgentStatus::Offline
                        && before.revision == now.revision
                        && now.record.instance == instances[0] =>
                {
                    findings.push(
                        Finding::new(Severity::Warning, FindingCode::OfflineAgentAnswers, &about)
                            .says("the registry says `offline`, but it answers")
                            .seen("instance", instances[0])
                            .seen("said_ms_ago", millis(self.silent_for(now)))
                            .next(format!("its beats are not stored; look into its log: shoal agents show {worker}")),
                    );
                }
                _ => {}
            }
        }
        findings
    }

    /// Slots that nobody frees: taken in every answer, and no attempt in any. A worker through whose hands many short tasks
    /// go has at every moment some that took their slot and are not begun yet; so one answer must follow another without an
    /// end in between.
    fn slots(&self, worker: &AgentId) -> Option<Finding> {
        let (first, now) = self.answered_twice(worker)?;
        let between = self.between.iter().filter_map(|answers| told(answers, worker));
        let all: Vec<&AgentRecord> = [first].into_iter().chain(between).chain([now]).collect();
        let leaked = |said: &AgentRecord| said.slots_taken.unwrap_or(0).saturating_sub(said.running_count);
        let calm = all.windows(2).any(|two| two[0].last_ack == two[1].last_ack);
        let leaked = all.iter().map(|said| leaked(said)).min().filter(|leaked| calm && *leaked > 0)?;
        let taken = now.slots_taken.unwrap_or(0);
        let finding = Finding::new(Severity::Error, FindingCode::SlotsLeaked, format!("agent {worker}"))
            .says(format!("{taken} of {} slots are taken, but it runs {}", now.slots, now.running_count))
            .seen("slots", now.slots)
            .seen("taken", taken)
            .seen("running", now.running_count)
            .seen("leaked", leaked)
            .next(format!("restart it: shoal agents drain {worker}; and report it, this is a fault of Shoal"));
        Some(finding)
    }

    /// Those that may have lost slots, worth a further question.
    pub(super) fn to_ask_again(first: &Look) -> BTreeSet<AgentId> {
        let more = |answer: &Answer| match answer {
            Answer::Told(record) => record.slots_taken.unwrap_or(0) > record.running_count,
            Answer::Other | Answer::Silent => false,
        };
        first.answers.iter().filter(|(_, answer)| more(answer)).map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn record(id: &str, instance: &str, running: &[&str]) -> AgentRecord {
        serde_json::from_value(serde_json::json!({
            "id": id, "instance": instance, "kind": "worker", "hostname": "h", "version": "0", "status": "ready",
            "slots": 4, "slots_taken": running.len(), "running": running, "running_count": running.len(),
            "registered_at": "2026-11-20T09:00:00Z", "last_heartbeat": "2026-11-20T10:00:00Z",
            "last_fetch": "2026-11-20T10:00:00Z",
        }))
        .unwrap()
    }

    /// One worker that beats and answers in both looks.
    pub(in super::super) fn seen(id: &str, instance: &str, running: &[&str]) -> Seen {
        let record = record(id, instance, running);
        let id = record.id.clone();
        let ping = Ping { worker: id.clone(), instance: instance.into(), queues: vec![] };
        let entry = Entry { stored_at: record.last_heartbeat, revision: 1, record: record.clone() };
        let look = Look {
            registry: [(id.clone(), entry)].into(),
            total: 1,
            pings: vec![ping],
            answers: [(id, Answer::Told(Box::new(record.clone())))].into(),
        };
        let now = record.last_heartbeat.plus(Duration::from_secs(5));
        Seen { first: look.clone(), second: look, between: vec![], now, silent_after: Duration::from_secs(35) }
    }

    fn codes(seen: &Seen) -> Vec<FindingCode> {
        seen.judge().into_iter().map(|finding| finding.code).collect()
    }

    fn both(seen: &mut Seen, change: impl Fn(&mut Look)) {
        change(&mut seen.first);
        change(&mut seen.second);
    }

    fn entry_of(look: &mut Look) -> &mut Entry {
        look.registry.values_mut().next().unwrap()
    }

    fn answer_of(look: &mut Look) -> &mut AgentRecord {
        match look.answers.values_mut().next().unwrap() {
            Answer::Told(record) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_worker_that_beats_and_answers_is_no_finding() {
        assert_eq!(codes(&seen("w", "i", &["q.a"])), []);
    }

    #[test]
    fn silence_and_no_answer_are_told_apart() {
        let mut gone = seen("w", "i", &[]);
        gone.now = gone.now.plus(Duration::from_secs(60));
        both(&mut gone, |look| look.answers.values_mut().for_each(|answer| *answer = Answer::Silent));
        assert_eq!(codes(&gone), [FindingCode::AgentSilent]);
        let mut frozen = seen("w", "i", &[]);
        both(&mut frozen, |look| look.answers.values_mut().for_each(|answer| *answer = Answer::Silent));
        assert_eq!(codes(&frozen), [FindingCode::AgentNoAnswer]);
        // Once is nothing: it may be busy.
        let mut busy = seen("w", "i", &[]);
        busy.first.answers.values_mut().for_each(|answer| *answer = Answer::Silent);
        assert_eq!(codes(&busy), []);
    }

    #[test]
    fn a_slot_is_lost_only_if_it_is_in_every_answer() {
        let mut seen = seen("w", "i", &["q.a"]);
        both(&mut seen, |look| answer_of(look).slots_taken = Some(3));
        assert_eq!(codes(&seen), [FindingCode::SlotsLeaked]);
        // Tasks come and go between any two answers: some have their slot and are not begun.
        let mut busy = seen.clone();
        answer_of(&mut busy.second).last_ack = Some(busy.now);
        assert_eq!(codes(&busy), []);
        seen.between.push(seen.first.answers.clone());
        match seen.between[0].values_mut().next().unwrap() {
            Answer::Told(record) => record.slots_taken = Some(1),
            other => panic!("{other:?}"),
        }
        assert_eq!(codes(&seen), []);
    }

    #[test]
    fn a_clock_is_judged_by_the_time_at_which_the_beat_was_stored() {
        for (stored, off) in [(-3, true), (11, true), (-1, false), (9, false)] {
            let mut seen = seen("w", "i", &[]);
            both(&mut seen, |look| {
                // With the rest of its clock.
                answer_of(look).last_fetch = None;
                let entry = entry_of(look);
                entry.stored_at = Timestamp::from_millis(entry.record.last_heartbeat.as_millis() + stored * 1_000);
            });
            assert_eq!(codes(&seen).contains(&FindingCode::AgentClockOff), off, "{stored}");
        }
        let mut late = seen("w", "i", &[]);
        both(&mut late, |look| {
            let entry = entry_of(look);
            entry.stored_at = entry.record.last_heartbeat.plus(Duration::from_secs(20));
        });
        assert_eq!(codes(&late), [], "its clock is right, its beat was stored late");
    }

    #[test]
    fn who_is_cordoned_or_full_need_not_fetch() {
        let mut silent = seen("w", "i", &[]);
        both(&mut silent, |look| {
            let answer = answer_of(look);
            answer.last_fetch = Some("2026-11-20T09:59:00Z".parse().unwrap());
        });
        assert_eq!(codes(&silent), [FindingCode::AgentNotFetching]);
        let mut cordoned = silent.clone();
        both(&mut cordoned, |look| entry_of(look).record.reason = Some("cordoned: new disk".into()));
        assert_eq!(codes(&cordoned), []);
        let mut full = silent.clone();
        both(&mut full, |look| answer_of(look).slots = 0);
        assert_eq!(codes(&full), []);
    }

    #[test]
    fn who_answers_and_is_not_as_the_registry_says_is_told() {
        let mut unknown = seen("w", "i", &[]);
        both(&mut unknown, |look| look.registry.clear());
        assert_eq!(codes(&unknown), [FindingCode::AgentNotRegistered]);
        let mut offline = seen("w", "i", &[]);
        both(&mut offline, |look| entry_of(look).record.status = AgentStatus::Offline);
        assert_eq!(codes(&offline), [FindingCode::OfflineAgentAnswers]);
        let mut twice = seen("w", "i", &[]);
        both(&mut twice, |look| {
            let mut other = look.pings[0].clone();
            other.instance = "j".into();
            look.pings.push(other);
        });
        assert_eq!(codes(&twice), [FindingCode::AgentIdTwice]);
    }
}
