//! Logs: in order, apart, bounded and marked; live, from the middle, and after the worker is gone (T7).

use schemas::names::LogSource;
use schemas::{State, TaskRecord};
use serde_json::json;

use crate::support::{Fleet, Program, With, eventually, shell};

/// What is stored of one source, in order.
async fn stored(fleet: &Fleet, record: &TaskRecord, source: LogSource) -> Vec<u8> {
    let start = record.attempts.last().expect("an attempt").start.clone().expect("its start");
    let subject = format!("shoal.logs.{}.{}.{start}.{}", record.queue, record.id, source.as_str());
    let messages = fleet.messages("SHOAL_LOGS", &subject).await;
    messages.iter().flat_map(|message| message.payload.to_vec()).collect()
}

async fn fleet() -> (Fleet, Program) {
    let fleet = Fleet::start().await;
    let worker = fleet.worker("w").slots(4).start().await;
    (fleet, worker)
}

#[tokio::test]
async fn both_streams_are_kept_apart_and_in_order() {
    let (fleet, _worker) = fleet().await;
    let script = "for i in $(seq 1 40); do echo out $i; sleep 0.03; echo err $i >&2; sleep 0.03; done";
    let record = fleet.run("default.a", &shell(script)).await;
    let (out, err) =
        (stored(&fleet, &record, LogSource::Stdout).await, stored(&fleet, &record, LogSource::Stderr).await);
    let expected = |word: &str| (1..=40).map(|n| format!("{word} {n}\n")).collect::<String>();
    assert_eq!(String::from_utf8_lossy(&out), expected("out"));
    assert_eq!(String::from_utf8_lossy(&err), expected("err"));
    let output = fleet.shoal(&["logs", "default.a"]).await.ok();
    assert_eq!(output.stdout.lines().filter(|line| line.starts_with("out ")).count(), 40, "{output:?}");
    let all = format!("{}{}", output.stdout, output.stderr);
    assert!(all.contains("err 1\n") && all.contains("err 40\n"), "{output:?}");
    // Interleaved as they came, as far as batches allow: the stream's order is by time.
    let start = record.attempts[0].start.clone().expect("its start");
    let both = fleet.messages("SHOAL_LOGS", &format!("shoal.logs.default.a.{start}.*")).await;
    let words: Vec<String> = both.iter().map(|m| String::from_utf8_lossy(&m.payload).into_owned()).collect();
    let at = |line: &str| words.iter().position(|text| text.contains(line)).unwrap_or_else(|| panic!("{line}"));
    assert!(at("out 1\n") < at("err 40\n") && at("err 1\n") < at("out 40\n"), "{words:?}");
}

#[tokio::test]
async fn a_flood_is_bounded_and_the_cut_is_marked() {
    let (fleet, worker) = fleet().await;
    // A hundred megabytes of numbered lines.
    let task = shell("seq 1 13000000").with("limits", json!({"logs": "2Mi"}));
    let record = fleet.run("default.flood", &task).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let kept = stored(&fleet, &record, LogSource::Stdout).await;
    let limit = 2 << 20;
    assert!((limit / 2..=limit + 65_536).contains(&kept.len()), "{} bytes kept of at most {limit}", kept.len());
    let text = String::from_utf8(kept).expect("digits");
    let whole: Vec<&str> = text.lines().collect();
    for (n, line) in whole[..whole.len() - 1].iter().enumerate() {
        assert_eq!(*line, (n + 1).to_string());
    }
    let marks = stored(&fleet, &record, LogSource::System).await;
    assert!(!marks.is_empty(), "the cut is not marked");
    assert!(crate::support::process_runs(worker.pid()));
    // A neighbour's logs are whole.
    let record = fleet.run("default.neighbour", &shell("echo here")).await;
    assert_eq!(stored(&fleet, &record, LogSource::Stdout).await, b"here\n");
}

#[tokio::test]
async fn the_workers_own_limit_holds_where_a_task_names_none() {
    let fleet = Fleet::builder().env("SHOAL_LOG_LIMIT", "64Ki").start().await;
    let _worker = fleet.worker("w").start().await;
    let record = fleet.run("default.a", &shell("seq 1 100000; echo end >&2")).await;
    let kept = stored(&fleet, &record, LogSource::Stdout).await.len();
    assert!(kept <= 2 * 65_536, "{kept} bytes");
    assert!(!stored(&fleet, &record, LogSource::System).await.is_empty());
}

#[tokio::test]
async fn a_line_of_ten_megabytes_harms_nobody() {
    let (fleet, _worker) = fleet().await;
    let script = "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo after";
    let record = fleet.run("default.a", &shell(script)).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let kept = stored(&fleet, &record, LogSource::Stdout).await;
    assert!(kept.ends_with(b"\nafter\n"), "what comes after it is kept");
    let line = kept.iter().take_while(|byte| **byte == b'x').count();
    let marked = !stored(&fleet, &record, LogSource::System).await.is_empty();
    assert!(line == 10_000_000 || marked, "{line} bytes of the line and no mark");
}

#[tokio::test]
async fn binary_output_is_kept_byte_for_byte() {
    let (fleet, _worker) = fleet().await;
    let script = "printf '\\000\\377\\376\\n\\200'; head -c 100000 /dev/zero; printf 'no line end'";
    let record = fleet.run("default.a", &shell(script)).await;
    let mut expected = vec![0x00, 0xff, 0xfe, b'\n', 0x80];
    expected.extend(vec![0; 100_000]);
    expected.extend(b"no line end");
    let kept = stored(&fleet, &record, LogSource::Stdout).await;
    assert!(kept == expected, "{} bytes of {}", kept.len(), expected.len());
}

fn numbers(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect()
}

#[tokio::test]
async fn logs_are_followed_from_the_start_from_the_middle_and_after_the_worker() {
    let (fleet, mut worker) = fleet().await;
    let job = fleet.job();
    let script = "i=1; while [ $i -le 30 ]; do echo line $i; i=$((i+1)); sleep 0.05; done; \
                  while [ ! -e $D/open ]; do sleep 0.05; done; \
                  while [ $i -le 60 ]; do echo line $i; i=$((i+1)); done";
    let all: Vec<u32> = (1..=60).collect();
    let sequence = fleet.publish("default.a", &job.script(script)).await;
    job.started(1).await;
    let mut from_start = fleet.spawn(&["logs", "-f", "default.a"], "");
    eventually("the first half is shown live", async || match numbers(&from_start.stdout()).len() {
        30 => Ok(()),
        lines => Err(format!("{lines} lines")),
    })
    .await;
    let mut from_middle = fleet.spawn(&["logs", "-f", "default.a"], "");
    eventually("one that comes later sees it too", async || match numbers(&from_middle.stdout()).len() {
        30 => Ok(()),
        lines => Err(format!("{lines} lines")),
    })
    .await;
    assert!(from_start.try_wait().is_none() && from_middle.try_wait().is_none(), "the job runs");
    job.open();
    // They end with the job, with nothing missing and nothing twice.
    for follower in [&mut from_start, &mut from_middle] {
        let output = follower.wait().await.ok();
        assert_eq!(numbers(&output.stdout), all);
    }
    fleet.run_ended("default.a", sequence).await;
    worker.kill().await;
    for args in [&["logs", "default.a"][..], &["logs", "-f", "default.a"]] {
        assert_eq!(numbers(&fleet.shoal(args).await.ok().stdout), all, "{args:?}");
    }
}

#[tokio::test]
async fn logs_are_resumed_from_any_point() {
    let (fleet, _worker) = fleet().await;
    let script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.4; done";
    fleet.run("default.a", &shell(script)).await;
    let lines = fleet.shoal(&["logs", "default.a", "-o", "json"]).await.ok().stdout;
    let chunks: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    let text = |chunks: &[serde_json::Value]| -> String {
        chunks.iter().map(|chunk| chunk["text"].as_str().expect("text")).collect()
    };
    assert_eq!(numbers(&text(&chunks)), [1, 2, 3, 4, 5]);
    assert!(chunks.len() >= 2, "two seconds of lines are more than one batch: {lines}");
    for (n, chunk) in chunks.iter().enumerate() {
        let from = chunk["sequence"].to_string();
        let rest = fleet.shoal(&["logs", "default.a", "--from", &from]).await.ok().stdout;
        assert_eq!(rest, text(&chunks[n + 1..]), "after {from}");
    }
}

#[tokio::test]
async fn the_log_of_a_killed_worker_is_there_up_to_its_last_batch() {
    let (fleet, mut worker) = fleet().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.script("echo line 1; sleep 600")).await;
    eventually("the line is stored", async || {
        match fleet.messages("SHOAL_LOGS", "shoal.logs.default.a.*.stdout").await.len() {
            0 => Err("nothing".into()),
            _ => Ok(()),
        }
    })
    .await;
    worker.kill().await;
    assert_eq!(numbers(&fleet.shoal(&["logs", "default.a"]).await.ok().stdout), [1]);
}

#[tokio::test]
async fn a_full_log_store_stops_no_job() {
    let fleet = Fleet::builder().env("SHOAL_LOGS_BYTES", "1Mi").start().await;
    let _worker = fleet.worker("w").slots(2).start().await;
    for n in 0..3 {
        let record = fleet.run(&format!("default.t-{n}"), &shell("seq 1 300000")).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
    }
    let mut stream = fleet.stream("SHOAL_LOGS").await;
    let bytes = stream.info().await.expect("its state").state.bytes;
    assert!(bytes <= 1 << 20, "{bytes} bytes");
}
