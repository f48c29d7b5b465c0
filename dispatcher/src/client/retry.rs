//! A finished task once more, under the same id.

use bytes::Bytes;
use schemas::{State, Task, TaskKey, TaskRecord, Workload, header};

use super::dead::own_headers;
use super::{Client, ClientError, Submission, Submitted};

impl Client {
    /// Submits the task of a finished record again: from the record, or from its dead letter if the record keeps none.
    /// What `once` said does not hold for it: the record that exists is the very reason.
    pub async fn retry(&self, key: &TaskKey) -> Result<Submitted, ClientError> {
        self.retry_run(key, None).await
    }

    /// The same for one run: an error if there is a newer one.
    pub async fn retry_run(&self, key: &TaskKey, sequence: Option<u64>) -> Result<Submitted, ClientError> {
        let view = self.get(key).await?;
        if let Some((sequence, newer)) = sequence.zip(view.sequence())
            && sequence != newer
        {
            return Err(ClientError::RunOver { key: key.clone(), sequence, newer });
        }
        let record = match view.current() {
            Some(current) if current.record.state.is_terminal() => &current.record,
            _ => {
                let status = view.status().map_or_else(String::new, |status| status.to_string());
                return Err(ClientError::Unfinished { key: key.clone(), status });
            }
        };
        let (payload, mut headers) = match &record.task {
            Some(task) => (Bytes::copy_from_slice(task.get().as_bytes()), Vec::new()),
            None => match self.dead_letter_of(key).await? {
                Some(dead) if dead.letter.sequence == record.sequence => (dead.body, own_headers(dead.headers)),
                _ => return Err(ClientError::NoTaskKept { key: key.clone(), state: record.state }),
            },
        };
        go_on(&mut headers, record, &payload);
        let task = Submission { key: key.clone(), payload, submission: None, once: false, headers };
        Ok(self.submit(task).await?)
    }
}

/// So many starts are named at most: each is looked for.
const MOST_STARTS: usize = 16;

/// Has the next run of an agent job go on from the work that this one kept. What succeeded has nothing to go on from.
pub(super) fn go_on(headers: &mut Vec<(String, String)>, record: &TaskRecord, payload: &[u8]) {
    let is_agent = Task::decode(payload).is_ok_and(|task| matches!(task.workload, Workload::Agent(_)));
    if !is_agent || record.state == State::Succeeded {
        return;
    }
    let is_ours = |(name, _): &(String, String)| name.eq_ignore_ascii_case(header::RESUMES);
    let before: Vec<String> = headers.extract_if(.., |header| is_ours(header)).map(|(_, starts)| starts).collect();
    let mut starts: Vec<String> = before.iter().flat_map(|starts| starts.split(',')).map(str::to_owned).collect();
    for attempt in &record.attempts {
        let resumed = attempt.agent.as_ref().and_then(|report| report.read()).and_then(|report| report.resumed_from);
        for start in resumed.iter().chain(&attempt.start).map(ToString::to_string) {
            starts.retain(|other| *other != start);
            starts.push(start);
        }
    }
    let starts = &starts[starts.len().saturating_sub(MOST_STARTS)..];
    if !starts.is_empty() {
        headers.push((header::RESUMES.to_owned(), starts.join(",")));
    }
}

#[cfg(test)]
mod tests {
    use schemas::record::Attempt;
    use schemas::{Outcome, StartId, Timestamp};

    use super::*;

    const AGENT: &[u8] = br#"{"workload":{"kind":"agent","repository":"https://host/a.git","title":"A"}}"#;

    fn failed(starts: &[&str]) -> TaskRecord {
        let mut record = TaskRecord::new(&"q.a".parse().unwrap(), 1, State::Failed, Timestamp::from_millis(0));
        let attempt = |start: &&str| Attempt { start: StartId::new(*start).ok(), ..Attempt::new(Outcome::Exited) };
        record.attempts = starts.iter().map(attempt).collect();
        record
    }

    fn resumes(mut headers: Vec<(String, String)>, record: &TaskRecord, payload: &[u8]) -> Vec<String> {
        go_on(&mut headers, record, payload);
        headers.into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn an_agent_job_that_failed_goes_on_from_its_starts_and_those_before_it() {
        let before = || vec![("Shoal-Resumes".to_owned(), "s0,s1".to_owned())];
        assert_eq!(resumes(before(), &failed(&["s1", "s2"]), AGENT), ["Shoal-Resumes: s0,s1,s2"]);
        let many: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let told = resumes(Vec::new(), &failed(&many), AGENT);
        assert!(told[0].starts_with("Shoal-Resumes: s24,s25,") && told[0].ends_with(",s39"), "{told:?}");
    }

    #[test]
    fn what_succeeded_or_is_no_agent_job_begins_anew() {
        let noop = br#"{"workload":{"kind":"call","handler":"noop"}}"#;
        assert!(resumes(Vec::new(), &failed(&["s1"]), noop).is_empty());
        let record = TaskRecord { state: State::Succeeded, ..failed(&["s1"]) };
        assert!(resumes(Vec::new(), &record, AGENT).is_empty());
        assert!(resumes(Vec::new(), &failed(&[]), AGENT).is_empty());
    }
}
