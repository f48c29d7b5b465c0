//! A user who wants to lose nothing: submits with a message id until there is an answer, and cancels what is to be
//! cancelled. It speaks plain NATS and does what `docs/guarantees.md` says a submitter may do.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use schemas::{TaskRecord, header};
use serde_json::{Value, json};

use crate::history::{Answer, Cancel, Submission};
use crate::load::{GRACE_MS, Manner, Planned};
use crate::support::Client;
use crate::world::now;

/// The server's window for message ids is two minutes; nobody tries for longer.
const PATIENCE: Duration = Duration::from_secs(110);
/// Maximum messages per subject exceeded: the id is held.
const LOCKED: u64 = 10077;
/// Not stored, try again: duplicate in process, insufficient resources for a moment, raced expected sequence, no leader.
const TRANSIENT: [u64; 5] = [10158, 10008, 10009, 10023, 10164];

/// What one try told.
enum Told {
    Stored(u64),
    Locked,
    NotStored,
    Refused(u64),
    Nothing,
}

/// Submits one task in its manner and cancels it if that is its manner. A storm is as many tries of one submission, which
/// all have to be told the same.
pub async fn submit(client: &Client, planned: Planned) -> (Vec<Submission>, Option<Cancel>) {
    let sent_at = now();
    let Planned { nonce, key, plan, body, manner } = planned;
    let answers = match manner {
        Manner::Plain | Manner::Cancelled(_) => vec![one(client, &nonce, &key, &body).await],
        Manner::Storm(n) => {
            let all = (0..n).map(|_| one(client, &nonce, &key, &body));
            futures_util::future::join_all(all).await
        }
    };
    let answered_at = now();
    let told = |answer: Answer| Submission {
        nonce: nonce.clone(),
        key: key.clone(),
        plan,
        body: body.clone(),
        answer,
        sent_at,
        answered_at,
    };
    let submissions: Vec<Submission> = answers.iter().copied().map(told).collect();
    let cancel = match (manner, answers[0]) {
        (Manner::Cancelled(after), Answer::Accepted(sequence)) => {
            tokio::time::sleep(Duration::from_millis(after)).await;
            Some(cancel(client, &submissions[0], sequence).await)
        }
        _ => None,
    };
    (submissions, cancel)
}

/// Tries until there is an answer.
async fn one(client: &Client, nonce: &str, key: &str, body: &[u8]) -> Answer {
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut unanswered = false;
    while tokio::time::Instant::now() < until {
        match publish(client, nonce, key, body).await {
            Told::Stored(sequence) => return Answer::Accepted(sequence),
            Told::Refused(code) => panic!("the server refused {key} for good: {code}"),
            Told::NotStored => {}
            Told::Nothing => unanswered = true,
            Told::Locked => match holder(client, key, nonce).await {
                Some(Some(sequence)) => return Answer::Accepted(sequence),
                Some(None) if !unanswered => return Answer::Refused,
                // Ours may have been stored, run and acked before this one was.
                Some(None) => {
                    return match recorded(client, key, nonce).await {
                        Some(Some(sequence)) => Answer::Accepted(sequence),
                        Some(None) | None => Answer::Unknown,
                    };
                }
                None => unanswered = true,
            },
        }
        // The server forgets the ids of finished tasks when it restarts: no further try before a look has had its answer.
        while unanswered && tokio::time::Instant::now() < until {
            match recorded(client, key, nonce).await {
                Some(Some(sequence)) => return Answer::Accepted(sequence),
                Some(None) => break,
                None => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    if unanswered { Answer::Unknown } else { Answer::Refused }
}

async fn publish(client: &Client, nonce: &str, key: &str, body: &[u8]) -> Told {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_MSG_ID, nonce);
    headers.insert(header::SUBMISSION, nonce);
    let answer = client.nats.request_with_headers(client.subject(key), headers, body.to_vec().into()).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => return Told::NotStored,
        Err(_) => return Told::Nothing,
    };
    let answer: Value = serde_json::from_slice(&answer.payload).expect("a publish ack is JSON");
    match (answer["error"]["err_code"].as_u64(), answer["seq"].as_u64()) {
        (None, Some(sequence)) => Told::Stored(sequence),
        (Some(LOCKED), _) => Told::Locked,
        (Some(code), _) if TRANSIENT.contains(&code) => Told::NotStored,
        (Some(code), _) => Told::Refused(code),
        // A leader that steps down answers with neither.
        (None, None) => Told::Nothing,
    }
}

/// Whether the message that holds the id is ours: its sequence. Outer `None`: nobody answered, or it is gone by now.
async fn holder(client: &Client, key: &str, nonce: &str) -> Option<Option<u64>> {
    let stream = client.js.get_stream(client.names.tasks_stream()).await.ok()?;
    let message = stream.get_last_raw_message_by_subject(&client.subject(key)).await.ok()?;
    let ours = message.headers.get(header::SUBMISSION).is_some_and(|id| id.as_str() == nonce);
    Some(ours.then_some(message.sequence))
}

/// Whether the record is of our submission: its sequence. Outer `None`: nobody answered. From the leader: a replica may be
/// behind.
async fn recorded(client: &Client, key: &str, nonce: &str) -> Option<Option<u64>> {
    let subject = client.names.record_subject(&key.parse().expect("a key"));
    let stream = client.js.get_stream(client.names.records_stream()).await.ok()?;
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => {
            let record = serde_json::from_slice::<TaskRecord>(&message.payload).ok();
            Some(record.filter(|record| record.submission.as_deref() == Some(nonce)).map(|record| record.sequence))
        }
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Some(None),
        Err(_) => None,
    }
}

/// Asks any dispatcher until one has confirmed that the run is over.
async fn cancel(client: &Client, submission: &Submission, sequence: u64) -> Cancel {
    let asked_at = now();
    let request =
        json!({"id": submission.key, "sequence": sequence, "wait": "4s", "reason": "the load says so"}).to_string();
    let mut cancel = Cancel { nonce: submission.nonce.clone(), asked_at, confirmed_at: None, grace: GRACE_MS };
    let until = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < until {
        let asked = client.nats.request("shoal.api.cancel", request.clone().into());
        if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(10), asked).await
            && let Ok(answer) = serde_json::from_slice::<Value>(&answer.payload)
            && answer["outcome"].as_str().is_some_and(|outcome| outcome != "asked")
        {
            cancel.confirmed_at = Some(now());
            return cancel;
        }
        // A later run of the id has begun, which no cancel of this one may touch.
        if client.try_record(&submission.key).await.is_ok_and(|found| found.is_some_and(|(_, r)| r.sequence > sequence))
        {
            cancel.confirmed_at = Some(now());
            return cancel;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cancel
}
