//! What a whole fleet does on this machine: one `nats-server`, one `shoal worker`, this program as the submitter.
//!
//! ```text
//! cargo bench --bench fleet            # everything, three rounds, medians
//! cargo bench --bench fleet -- noop    # only cases whose name holds `noop`
//! ```
//!
//! Every task must end as `succeeded`, or the run fails. Compare only with figures of the same sitting: run
//! `../shared/engine-limit` (`--only cycle --match Record`) right before or after.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::PublishAckFuture;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};

type Res<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One kind of load.
struct Case {
    name: &'static str,
    slots: usize,
    in_flight: usize,
    tasks: usize,
    workload: &'static str,
}

const NOOP: &str = r#"{"workload":{"kind":"call","handler":"noop","payload":"PAD"}}"#;
const TRUE: &str = r#"{"workload":{"kind":"process","command":["/bin/true"]}}"#;

const CASES: [Case; 6] = [
    Case { name: "noop, 1 in flight", slots: 1000, in_flight: 1, tasks: 3_000, workload: NOOP },
    Case { name: "noop, 64 in flight", slots: 1000, in_flight: 64, tasks: 30_000, workload: NOOP },
    Case { name: "noop, 1000 in flight", slots: 1000, in_flight: 1000, tasks: 60_000, workload: NOOP },
    Case { name: "/bin/true, 1 in flight", slots: 8, in_flight: 1, tasks: 1_000, workload: TRUE },
    Case { name: "/bin/true, 8 slots", slots: 8, in_flight: 64, tasks: 8_000, workload: TRUE },
    Case { name: "/bin/true, 32 slots", slots: 32, in_flight: 128, tasks: 8_000, workload: TRUE },
];

/// Ends its process when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Res<Self> {
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

/// User and system time of a process and of what it reaped.
fn cpu(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|v| v.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn rss_mib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn server_program() -> String {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/.tools/bin/nats-server");
    std::env::var("SHOAL_NATS_SERVER")
        .unwrap_or_else(|_| if std::path::Path::new(fetched).exists() { fetched.into() } else { "nats-server".into() })
}

struct Fleet {
    server: Running,
    worker: Running,
    url: String,
    ready_after: Duration,
    _folder: tempfile::TempDir,
}

impl Fleet {
    async fn start(slots: usize) -> Res<Self> {
        let folder = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let url = format!("nats://127.0.0.1:{port}");
        let store = folder.path().join("store");
        let server = Running::start(
            Command::new(server_program())
                .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
                .arg(store)
                .stderr(Stdio::null()),
        )?;
        while async_nats::connect(&url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let began = Instant::now();
        let worker = Running::start(
            Command::new(env!("CARGO_BIN_EXE_shoal"))
                .args(["worker", "--runtimes", "call,process", "--nats-url", &url, "--slots", &slots.to_string()])
                .arg("--state-dir")
                .arg(folder.path().join("state")),
        )?;
        let mut fleet = Self { server, worker, url, ready_after: Duration::ZERO, _folder: folder };
        // Tasks wait in the stream as soon as it is there; the first one shows when the worker takes work.
        let client = async_nats::connect(&fleet.url).await?;
        let js = async_nats::jetstream::new(client.clone());
        let mut events = client.subscribe("shoal.events.tasks.>").await?;
        loop {
            if let Ok(ack) = js.publish("shoal.tasks.default.first", NOOP.into()).await
                && ack.await.is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        while let Some(event) = events.next().await {
            if contains(&event.payload, br#""state":"succeeded""#) {
                break;
            }
        }
        fleet.ready_after = began.elapsed();
        Ok(fleet)
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    worker_us: f64,
    server_us: f64,
}

async fn round(fleet: &Fleet, case: &Case, number: usize) -> Res<Figures> {
    let submitter = async_nats::ConnectOptions::new().subscription_capacity(1 << 20).connect(&fleet.url).await?;
    let js = async_nats::jetstream::context::ContextBuilder::new()
        .timeout(Duration::from_secs(60))
        .max_ack_inflight(32_768)
        .build(submitter);
    let watcher = async_nats::ConnectOptions::new().subscription_capacity(1 << 20).connect(&fleet.url).await?;
    let mut events = watcher.subscribe("shoal.events.tasks.default.*").await?;
    watcher.flush().await?;
    // As large as the task of the engine's own measure: 256 bytes.
    let body = case.workload.replace("PAD", &"p".repeat(256_usize.saturating_sub(case.workload.len() - 3)));
    let body = bytes::Bytes::from(body);

    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..case.tasks).map(|_| AtomicU64::new(0)).collect());
    let room = Arc::new(Semaphore::new(case.in_flight));
    let (cpu_worker, cpu_server) = (cpu(fleet.worker.id()), cpu(fleet.server.id()));
    let began = Instant::now();
    let seen = tokio::spawn({
        let (sent, room, tasks) = (sent.clone(), room.clone(), case.tasks);
        async move {
            let mut latencies = Vec::with_capacity(tasks);
            while latencies.len() < tasks {
                let event = events.next().await.ok_or("events ended")?;
                let id =
                    event.subject.rsplit('-').next().and_then(|id| id.parse::<usize>().ok()).ok_or("strange id")?;
                if contains(&event.payload, br#""state":"running""#) {
                    continue;
                }
                if !contains(&event.payload, br#""state":"succeeded""#) {
                    return Err(String::from_utf8_lossy(&event.payload).into_owned().into());
                }
                let at = Duration::from_nanos(sent[id].load(Ordering::Relaxed));
                latencies.push(began.elapsed().saturating_sub(at));
                room.add_permits(1);
            }
            latencies.sort();
            Res::Ok(latencies)
        }
    });
    let (acks, mut to_await) = mpsc::unbounded_channel::<PublishAckFuture>();
    let acked = tokio::spawn(async move {
        while let Some(ack) = to_await.recv().await {
            ack.await?;
        }
        Res::Ok(())
    });
    for (i, at) in sent.iter().enumerate() {
        room.acquire().await?.forget();
        at.store(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        acks.send(js.publish(format!("shoal.tasks.default.bench-{number:06}-{i}"), body.clone()).await?)?;
    }
    drop(acks);
    acked.await??;
    let latencies = seen.await??;
    let elapsed = began.elapsed();
    let per_task = |before: Duration, pid| (cpu(pid) - before).as_secs_f64() * 1e6 / case.tasks as f64;
    Ok(Figures {
        per_second: case.tasks as f64 / elapsed.as_secs_f64(),
        p50: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
        worker_us: per_task(cpu_worker, fleet.worker.id()),
        server_us: per_task(cpu_server, fleet.server.id()),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() -> Res<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    println!("| case | per second (least to most) | p50 | p99 | worker µs | server µs |\n|---|---|---|---|---|---|");
    let mut fleets: BTreeMap<usize, Fleet> = BTreeMap::new();
    let mut number = 0;
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        if !fleets.contains_key(&case.slots) {
            fleets.clear();
            let fleet = Fleet::start(case.slots).await?;
            // For one ack wait after a connect every start needs a claim: not what a running fleet does.
            tokio::time::sleep(Duration::from_secs(16)).await;
            fleets.insert(case.slots, fleet);
        }
        let fleet = &fleets[&case.slots];
        let mut rounds = Vec::new();
        for _ in 0..3 {
            number += 1;
            rounds.push(round(fleet, case, number).await?);
        }
        let of = |pick: fn(&Figures) -> f64| median(rounds.iter().map(pick).collect());
        let least = rounds.iter().map(|r| r.per_second).fold(f64::INFINITY, f64::min);
        let most = rounds.iter().map(|r| r.per_second).fold(0.0, f64::max);
        println!(
            "| {} | {:.0} ({least:.0} to {most:.0}) | {:.2} ms | {:.2} ms | {:.1} | {:.1} |",
            case.name,
            of(|r| r.per_second),
            of(|r| r.p50.as_secs_f64() * 1e3),
            of(|r| r.p99.as_secs_f64() * 1e3),
            of(|r| r.worker_us),
            of(|r| r.server_us),
        );
    }
    fleets.clear();
    if wanted("idle") {
        let mut starts = Vec::new();
        for _ in 0..3 {
            starts.push(Fleet::start(16).await?.ready_after.as_secs_f64() * 1e3);
        }
        let fleet = Fleet::start(16).await?;
        let (worker, server) = (cpu(fleet.worker.id()), cpu(fleet.server.id()));
        let span = Duration::from_secs(30);
        tokio::time::sleep(span).await;
        let share = |before: Duration, pid| (cpu(pid) - before).as_secs_f64() / span.as_secs_f64() * 100.0;
        println!(
            "\nstart of a worker to the end of its first task: {:.0} ms\nidle worker: {:.1} MiB, {:.2} % of a core; its \
             server: {:.1} MiB, {:.2} %",
            median(starts),
            rss_mib(fleet.worker.id()),
            share(worker, fleet.worker.id()),
            rss_mib(fleet.server.id()),
            share(server, fleet.server.id()),
        );
    }
    Ok(())
}
