//! How a workload ends, and what it says until then.

use std::time::Duration;

use shoal_worker::runtime::RuntimeError;
use tokio::io::AsyncReadExt;

use crate::world::{World, eventually, within};

pub async fn output_and_exit_code_are_told_and_nothing_is_left(world: &World) {
    let job = world.shell("echo out; echo err >&2; exit 3");
    let start = job.start.clone();
    let output = world.run(job).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!((output.exit.code, output.exit.signal, output.exit.oom), (Some(3), None, false));
    // The end may be asked for again.
    assert_eq!(within(world.runtime.wait(&start)).await.unwrap(), output.exit);
    within(world.runtime.remove(&start)).await.unwrap();
    assert_eq!(world.left().await, Vec::<String>::new());
    assert!(matches!(world.runtime.wait(&start).await, Err(RuntimeError::NotFound { .. })));
}

pub async fn a_signal_that_ends_it_is_told(world: &World) {
    // The first process of a container hears only what it listens to; its child does not stay so calm.
    let exit = world.run(world.shell("sh -c 'kill -9 $$'; exit $?")).await.exit;
    assert_eq!(exit.code, Some(137), "the shell's word for it");
    let (start, started) = world.ready(world.shell("echo ready; sleep 1000")).await;
    within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    let exit = world.finish(&start, started).await.exit;
    assert_eq!((exit.signal, exit.oom, exit.not_kept_alive), (Some(9), false, false));
}

pub async fn a_flood_is_held_back_and_comes_whole(world: &World) {
    let job = world.shell("dd if=/dev/zero bs=65536 count=320 2>/dev/null; echo end >&2");
    let start = job.start.clone();
    let mut started = within(world.runtime.start(job)).await.unwrap();
    // Nobody reads: it cannot end.
    let waited = tokio::time::timeout(Duration::from_millis(300), world.runtime.wait(&start)).await;
    assert!(waited.is_err(), "20 MiB fit nowhere");
    let mut bytes = Vec::new();
    within(started.stdout.read_to_end(&mut bytes)).await.unwrap();
    assert_eq!(bytes.len(), 320 << 16);
    let mut end = String::new();
    within(started.stderr.read_to_string(&mut end)).await.unwrap();
    assert_eq!(end, "end\n");
    assert_eq!(within(world.runtime.wait(&start)).await.unwrap().code, Some(0));
}

pub async fn what_it_is_fed_arrives_and_need_not_be_read(world: &World) {
    let fed = world.command(&["sh", "-c", "wc -l; echo done"], Some("fed\n".repeat(50_000)));
    let output = world.run(fed).await;
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert_eq!(words, ["50000", "done"], "{}", output.stderr);
    let unread = world.command(&["sh", "-c", "exit 0"], Some("x".repeat(1 << 20)));
    assert_eq!(world.run(unread).await.exit.code, Some(0));
}

pub async fn its_environment_arrives_as_it_is(world: &World) {
    let mut job = world.shell("echo \"$WORD\"; pwd");
    let folder = if world.runs_containers() { "/shoal".to_owned() } else { job.folder.display().to_string() };
    job.env.insert("WORD".to_owned(), "with spaces = and \"quotes\"\nand lines".to_owned());
    let output = world.run(job).await;
    assert_eq!(output.stdout, format!("with spaces = and \"quotes\"\nand lines\n{folder}\n"));
}

pub async fn its_result_is_collected(world: &World) {
    let job = world.shell("printf 42 > \"$RESULT\"; mkdir out; echo a > out/a.txt");
    let (start, result, folder) = (job.start.clone(), job.result_file.clone(), job.folder.clone());
    assert_eq!(world.run(job).await.exit.code, Some(0));
    assert_eq!(within(world.runtime.collect(&start)).await.unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(result).unwrap(), "42");
    assert_eq!(std::fs::read_to_string(folder.join("out/a.txt")).unwrap(), "a\n");
}

pub async fn usage_is_told_while_it_runs_and_at_its_end(world: &World) {
    assert!(world.can("stats"), "every runtime here does");
    let job = world.shell("echo ready; i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done");
    let (start, started) = world.ready(job).await;
    eventually(async || world.runtime.stats(&start).await.unwrap().cpu_ms.filter(|cpu| *cpu > 0)).await;
    let exit = world.finish(&start, started).await.exit;
    assert!(exit.usage.cpu_ms > Some(0) && exit.usage.wall_ms > 0, "{exit:?}");
    assert!(exit.usage.peak_memory_bytes.is_some_and(|bytes| bytes > 10_000), "{exit:?}");
    assert_eq!(world.runtime.stats(&start).await.unwrap(), exit.usage);
}

pub async fn twenty_at_once_all_tell_their_own_end(world: &World) {
    let runs = (0..20).map(|number| async move {
        let output = world.run(world.shell(&format!("echo {number}; exit {number}"))).await;
        assert_eq!((output.stdout, output.exit.code), (format!("{number}\n"), Some(number)));
    });
    futures_util::future::join_all(runs).await;
}
