//! The workload `invoke`: one call of a function, with the life of a task around it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use schemas::task::Invoke;
use schemas::{Code, FunctionName, TaskError};
use tokio::sync::watch;

use crate::attempt::phase::End;
use crate::attempt::workload::{Done, Work, stopping};
use crate::worker::Worker;
use crate::{fail, objects};

/// Calls a function, in the task's name.
pub(super) async fn run(
    worker: &Worker,
    work: &Work,
    asked: &Invoke,
    mut stop: watch::Receiver<Option<Duration>>,
) -> Done {
    let started = worker.js.now();
    let body = asked.bytes().unwrap_or_default();
    let usual = if asked.body.is_some() { "application/octet-stream" } else { "application/json" };
    let call = functions::Call {
        body: body.into(),
        content_type: Some(asked.content_type.clone().unwrap_or_else(|| usual.to_owned())),
        // The same over all attempts, so that a function can tell that it saw this one before.
        request_id: Some(work.key.to_string()),
        traceparent: work.traceparent.clone(),
        acquire_timeout: None,
    };
    let caller = functions::Caller::new(worker.js.clone(), worker.config.names.clone()).owned_by(asked.owner.clone());
    let answer = tokio::select! {
        biased;
        answer = caller.invoke(&asked.function, &call) => answer,
        // A call that is under way cannot be taken back: nobody waits for its answer any more.
        _ = stopping(&mut stop) => Err(functions::CallError::Failed(TaskError::new(Code::Cancelled, "stopped"))),
    };
    work.exited.store(true, Ordering::Release);
    fail::point("after_start");
    let mut done = match answer {
        Ok(response) if response.function_error.is_some() => {
            Done::new(End::failed(failed_function(&asked.function, &response)))
        }
        Ok(response) if response.body.is_empty() => Done::new(End::Succeeded),
        Ok(response) => match objects::keep_result(worker, work, &response.body).await {
            Ok(result) => Done { result: Some(result), ..Done::new(End::Succeeded) },
            Err(error) => Done::new(End::failed(error)),
        },
        Err(error) => Done::new(End::failed(error.to_task_error().bounded())),
    };
    done.started = Some(started);
    done
}

/// What a function said of its own failure, for the record. As in HTTP, a fault of the request stays one, however often
/// it is sent.
fn failed_function(function: &FunctionName, response: &functions::Response) -> TaskError {
    let said = String::from_utf8_lossy(&response.body[..response.body.len().min(1_000)]).into_owned();
    let message = format!("`{function}` answered {}: {said}", response.status);
    let is_of_request = (400..500).contains(&response.status) && ![408, 425, 429].contains(&response.status);
    TaskError { retryable: !is_of_request, ..TaskError::new(Code::FunctionFailed, message) }.bounded()
}
