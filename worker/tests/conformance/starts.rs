//! How a workload begins, or does not: a failed start leaves nothing.

use std::time::Duration;

use schemas::task::Call;
use schemas::{Code, Workload};
use shoal_worker::runtime::StartError;

use crate::world::{World, within};

async fn refused(world: &World, command: &[&str]) -> StartError {
    let job = world.command(command, None);
    let start = job.start.clone();
    let refused = match within(world.runtime.start(job)).await {
        Ok(started) => panic!("it began: {:?}", world.finish(&start, started).await),
        Err(refused) => refused,
    };
    assert_eq!(world.left().await, Vec::<String>::new(), "{refused}");
    refused
}

pub async fn a_program_that_is_not_there_is_told_as_such(world: &World) {
    for program in ["no-such-program", "/no/such/program"] {
        let refused = refused(world, &[program]).await;
        assert_eq!(refused.to_task_error().code, Code::CommandNotFound, "{refused}");
    }
}

pub async fn a_file_that_is_no_program_is_told_as_such(world: &World) {
    let file = if world.runs_containers() { "/etc/not-executable" } else { "/etc/passwd" };
    let refused = refused(world, &[file]).await;
    assert_eq!(refused.to_task_error().code, Code::CommandNotExecutable, "{refused}");
}

pub async fn a_start_that_is_given_up_is_gone_once_it_is_stopped(world: &World) {
    // Given up at ever later moments, at each step of a start, until one is over before.
    for step in 0..60 {
        let job = world.shell("sleep 1000");
        let start = job.start.clone();
        let given_up = tokio::time::timeout(Duration::from_millis(step * 25), world.runtime.start(job)).await;
        within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
        let is_late = given_up.is_ok();
        if let Ok(started) = given_up {
            drop(started.expect("it starts"));
            within(world.runtime.remove(&start)).await.unwrap();
        }
        assert_eq!(world.left().await, Vec::<String>::new(), "given up after {} ms", step * 25);
        if is_late {
            break;
        }
    }
}

pub async fn a_workload_of_another_kind_is_refused(world: &World) {
    let call = Call { handler: "noop".parse().unwrap(), payload: Default::default() };
    let refused = within(world.runtime.start(world.job(Workload::Call(call)))).await.err().expect("refused");
    assert!(matches!(refused, StartError::WrongKind { .. }), "{refused}");
    assert_eq!(world.left().await, Vec::<String>::new());
}

pub async fn a_start_id_is_used_once(world: &World) {
    let job = world.shell("echo ready; sleep 1000");
    let again = job.clone();
    let (start, started) = world.ready(job).await;
    assert!(within(world.runtime.start(again)).await.is_err());
    // The first one lives on.
    assert_eq!(within(world.runtime.list()).await.unwrap().len(), 1);
    within(world.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    world.finish(&start, started).await;
}

pub async fn a_closed_runtime_has_killed_everything_and_starts_nothing(world: &World) {
    let (start, _started) = world.ready(world.shell("trap '' TERM; echo ready; sleep 1000")).await;
    within(world.runtime.close()).await;
    assert_eq!(world.left().await, Vec::<String>::new());
    assert!(within(world.runtime.start(world.shell("exit 0"))).await.is_err());
    let ended = tokio::time::timeout(Duration::from_secs(5), world.runtime.wait(&start)).await.expect("told");
    assert!(ended.is_err() || ended.is_ok_and(|exit| exit.signal == Some(9)));
}
