//! Every write to the bucket of records that the server stored.
//!
//! The bucket keeps only the newest of each key, and a watch never tells what is overwritten quickly. So the ledger lets
//! the stream below the bucket keep more of each key, which nobody else sees, and reads it whole when it is asked.

use std::sync::Mutex;

use async_nats::jetstream::stream::Config;
use schemas::{State, TaskRecord};

use super::Client;

/// More than any run of these tests writes to one key.
const KEPT: i64 = 1_000;

/// What was stored since it began.
pub struct Ledger {
    writes: Mutex<Vec<(String, TaskRecord)>>,
}

impl Ledger {
    /// Begins; what is stored from here on is kept.
    pub async fn watch(client: &Client) -> Self {
        let stream = client.stream(&client.names.records_stream()).await;
        let config = Config { max_messages_per_subject: KEPT, ..stream.cached_info().config.clone() };
        client.js.update_stream(config).await.expect("the stream below the bucket takes a longer history");
        Self { writes: Mutex::default() }
    }

    /// Reads what is stored by now.
    pub async fn caught_up(&self, client: &Client) {
        let messages = client.messages(&client.names.records_stream(), ">").await;
        let writes = messages.iter().filter(|message| message.headers.get(schemas::header::KV_OPERATION).is_none());
        let writes = writes.map(|message| {
            let key = client.names.record_key(&message.subject).expect("a subject of the bucket").to_owned();
            let record = serde_json::from_slice(&message.payload);
            (key, record.unwrap_or_else(|e| panic!("a record that cannot be read: {e}: {:?}", message.payload)))
        });
        *self.writes.lock().expect("nothing panics with it") = writes.collect();
    }

    /// The states written for one run of a task, in order, as far as they were read.
    pub fn states(&self, key: &str, sequence: u64) -> Vec<State> {
        let writes = self.writes.lock().expect("nothing panics with it");
        let of_run = writes.iter().filter(|(of, record)| of == key && record.sequence == sequence);
        let states: Vec<State> = of_run.map(|(_, record)| record.state).collect();
        assert!(states.len() < KEPT as usize, "more writes of {key} than the ledger keeps");
        states
    }

    /// Fails unless this run has exactly one terminal write, and that is its last.
    #[track_caller]
    pub fn one_end(&self, key: &str, sequence: u64) -> State {
        let states = self.states(key, sequence);
        let ends = states.iter().filter(|state| state.is_terminal()).count();
        assert_eq!(ends, 1, "terminal writes of {key} run {sequence}: {states:?}");
        let last = *states.last().expect("one at least");
        assert!(last.is_terminal(), "writes after the end of {key} run {sequence}: {states:?}");
        last
    }
}
