//! What a worker does for every delivery without waiting for anybody: read it, decide its end.
//!
//! ```text
//! cargo bench -p shoal-worker --bench attempt
//! ```

use std::hint::black_box;
use std::num::NonZeroU32;

use async_nats::{HeaderMap, Message};
use criterion::{Criterion, criterion_group, criterion_main};
use schemas::queue::QueueDefaults;
use schemas::task::OnLost;
use schemas::{Code, Task, TaskError};
use shoal_worker::attempt::phase::End;
use shoal_worker::nats::delivery::{Delivery, origin};
use shoal_worker::settling::{outcome, settle};

const REPLY: &str = "$JS.ACK.SHOAL_TASKS.default.1.123456789.123456780.1763740000000000000.4711";
const REPLY_V2: &str = "$JS.ACK.hub.AbCdEfGh.SHOAL_TASKS.default.1.123456789.123456780.1763740000000000000.4711.x";

fn message() -> Message {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "0193e5b0-7c3e-7d51-9b35-0242ac120002");
    headers.insert("Shoal-Submission", "0193e5b0-7c3e-7d51-9b35-0242ac120002");
    Message {
        subject: "shoal.tasks.default.0193e5b0-7c3e-7d51-9b35-0242ac120002".into(),
        reply: Some(REPLY.into()),
        payload: vec![b'p'; 256].into(),
        headers: Some(headers),
        status: None,
        description: None,
        length: 512,
    }
}

fn deliveries(c: &mut Criterion) {
    let mut group = c.benchmark_group("delivery");
    for (name, reply) in [("origin", REPLY), ("origin with a domain", REPLY_V2)] {
        group.bench_function(name, |b| b.iter(|| origin(black_box(reply)).expect("JetStream's").sequence));
    }
    group.bench_function("read", |b| {
        b.iter_batched(message, |message| Delivery::read(message, 0, 1), criterion::BatchSize::SmallInput);
    });
    group.finish();
}

fn settlements(c: &mut Criterion) {
    let task = br#"{"workload":{"kind":"call","handler":"noop"},"retry":{"max_attempts":3}}"#;
    let policy = Task::decode(task).expect("a task").policy(&QueueDefaults::default());
    let first = NonZeroU32::MIN;
    let failed = End::Failed { error: TaskError::new(Code::ExitedNonZero, "exit"), exit_code: Some(1) };
    let mut group = c.benchmark_group("settle");
    for (name, end) in [("succeeded", End::Succeeded), ("failed, again", failed)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                (settle(black_box(&end), first, black_box(&policy), OnLost::Retry, 0.5), outcome(black_box(&end)))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, deliveries, settlements);
criterion_main!(benches);
