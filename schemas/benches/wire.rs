//! What is done to the bytes of every task: decode, judge, encode, name. Without a server, so that a regression here is
//! not lost in its noise.
//!
//! ```text
//! cargo bench -p shoal-schemas --bench wire                          # all of it, compared with the last time
//! cargo bench -p shoal-schemas --bench wire -- --save-baseline main  # keep it under a name
//! cargo bench -p shoal-schemas --bench wire -- --baseline main record
//! ```

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shoal_schemas::queue::QueueDefaults;
use shoal_schemas::{Names, Task, TaskKey, TaskRecord};

/// The no-op of `shoal bench`: 256 bytes.
fn noop() -> Vec<u8> {
    let frame = r#"{"workload":{"kind":"call","handler":"noop","payload":""}}"#;
    frame.replace("\"\"", &format!("\"{}\"", "p".repeat(256 - frame.len()))).into_bytes()
}

const PROCESS: &[u8] = include_bytes!("../samples/task_process.json");
const RECORD: &[u8] = include_bytes!("../samples/task_record_noop.json");

fn key() -> TaskKey {
    "default.0193e5b0-7c3e-7d51-9b35-0242ac120002".parse().expect("a queue and an id")
}

fn tasks(c: &mut Criterion) {
    let mut group = c.benchmark_group("task");
    for (name, body) in [("noop", noop()), ("process", PROCESS.to_vec())] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("decode {name}"), |b| {
            b.iter(|| Task::decode(black_box(&body)).expect("a task"));
        });
    }
    let (task, defaults) = (Task::decode(PROCESS).expect("a task"), QueueDefaults::default());
    group.bench_function("policy", |b| b.iter(|| black_box(&task).policy(black_box(&defaults))));
    group.finish();
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Bytes(RECORD.len() as u64));
    let record: TaskRecord = serde_json::from_slice(RECORD).expect("a record");
    group.bench_function("encode", |b| {
        b.iter(|| serde_json::to_vec(black_box(&record)).expect("plain data"));
    });
    group.bench_function("decode", |b| {
        b.iter(|| serde_json::from_slice::<TaskRecord>(black_box(RECORD)).expect("a record"));
    });
    group.finish();
}

fn subjects(c: &mut Criterion) {
    let (names, key) = (Names::default(), key());
    let mut group = c.benchmark_group("subject");
    group.bench_function("task", |b| b.iter(|| names.task_subject(black_box(&key))));
    group.bench_function("record", |b| b.iter(|| names.record_subject(black_box(&key))));
    group.bench_function("event", |b| b.iter(|| names.event_subject(black_box(&key))));
    let subject = names.task_subject(&key);
    group.bench_function("key of a task's", |b| {
        b.iter(|| {
            let (queue, id) = names.task_tokens(black_box(&subject)).expect("its tokens");
            (
                queue.parse::<shoal_schemas::QueueName>().expect("a queue"),
                id.parse::<shoal_schemas::TaskId>().expect("an id"),
            )
        });
    });
    group.finish();
}

criterion_group!(benches, tasks, records, subjects);
criterion_main!(benches);
