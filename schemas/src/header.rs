//! Names of message headers. Everything of ours begins with `Shoal-`; `Nats-` belongs to the server.

/// On a task: `true` starts it only if no record of its id exists.
pub const ONCE: &str = "Shoal-Once";
/// On a task: the submitter's own id of this submission, kept in the record as `submission`.
pub const SUBMISSION: &str = "Shoal-Submission";
/// On an agent job that is run once more: the starts of an earlier run whose kept work it goes on from, with commas
/// between them and the newest last.
pub const RESUMES: &str = "Shoal-Resumes";
/// On an event: the record's revision, by which a reader tells the newer of two.
pub const REVISION: &str = "Shoal-Revision";
/// On a record that is not terminal, so that a scan by headers finds the unfinished ones: its state.
pub const STATE: &str = "Shoal-State";
/// On a dead letter: the error code it was given up with.
pub const REASON: &str = "Shoal-Reason";
/// On a dead letter: the message of that error.
pub const MESSAGE: &str = "Shoal-Message";
/// On a dead letter: stream sequence of the task, which names the run.
pub const SEQUENCE: &str = "Shoal-Sequence";
/// On a dead letter: how many attempts were spent.
pub const ATTEMPTS: &str = "Shoal-Attempts";
/// On a dead letter of a message that came on a subject with no valid ids: that subject.
pub const SUBJECT: &str = "Shoal-Subject";
/// On an error reply of our own service: the problem as JSON, as HTTP would answer it.
pub const PROBLEM: &str = "Shoal-Problem";
/// On a call of a function: its id, which the container is told as `X-Request-Id` and `Lambda-Runtime-Aws-Request-Id`.
pub const REQUEST_ID: &str = "Shoal-Request-Id";
/// On a call: who calls, where the function has an owner.
pub const OWNER: &str = "Shoal-Owner";
/// On a call: how long its caller waits for an instance that has room, in milliseconds.
pub const ACQUIRE_MS: &str = "Shoal-Acquire-Ms";
/// On a message without a call: the start id of an instance that is in use.
pub const TOUCH: &str = "Shoal-Touch";
/// On a call: how often one worker has passed it on to another.
pub const HOPS: &str = "Shoal-Hops";
/// On a call and on its answer: the body's content type.
pub const CONTENT_TYPE: &str = "Content-Type";
/// On an answer: HTTP status of the container's response.
pub const STATUS: &str = "Shoal-Status";
/// On an answer: what the function says of its own failure.
pub const FUNCTION_ERROR: &str = "Shoal-Function-Error";
/// On an answer: the start id of the instance that was called.
pub const INSTANCE: &str = "Shoal-Instance";
/// On an answer: the worker that called it.
pub const WORKER: &str = "Shoal-Worker";
/// On an answer without a body: the object in the artifacts' store that holds it.
pub const OBJECT: &str = "Shoal-Object";
/// On an answer that is no response: the error's code; its body is the error as JSON.
pub const ERROR: &str = "Shoal-Error";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// The server's id of a publish, for its duplicate window.
pub const NATS_MSG_ID: &str = "Nats-Msg-Id";
/// Compare-and-set: the sequence of the last message on this subject, 0 for none.
pub const NATS_EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
/// Seconds after which the server drops this message.
pub const NATS_TTL: &str = "Nats-TTL";
/// Why a KV marker is there: `MaxAge`, `Purge`, `Remove`.
pub const NATS_MARKER_REASON: &str = "Nats-Marker-Reason";
/// On a KV marker: `DEL` or `PURGE`.
pub const KV_OPERATION: &str = "KV-Operation";
/// On an error reply of a NATS service.
pub const NATS_SERVICE_ERROR: &str = "Nats-Service-Error";
/// On an error reply of a NATS service.
pub const NATS_SERVICE_ERROR_CODE: &str = "Nats-Service-Error-Code";
