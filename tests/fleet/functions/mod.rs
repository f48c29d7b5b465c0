//! Functions: containers that are made when they are wished for, and called warm. On the real engine of this machine;
//! each test is skipped where there is none, which fails it in CI.

mod calls;
mod commands;
mod ensure;
mod http;
mod lambda;
mod pool;
mod reconcile;
mod restarts;
mod tasks;

use std::time::Duration;

use functions::{Call, CallError, Caller, Response};
use jetstream::JetStream;
use schemas::{Code, Function, FunctionName, Instance, Names};
use serde_json::{Value, json};

use crate::support::{Engine, Fleet, eventually};

/// Made by `scripts/engine`.
pub const IMAGE: &str = "shoal-test/function:1";

/// The caller's side of a fleet, and the container engine that its workers use.
pub struct World {
    pub fleet: Fleet,
    pub engine: Engine,
    pub caller: Caller,
}

impl World {
    /// A fleet without workers; none where there is no engine.
    pub async fn start() -> Option<Self> {
        let engine = Engine::find().await?;
        let fleet = Fleet::start().await;
        let caller = Caller::new(JetStream::new(fleet.js.client()), Names::default());
        Some(Self { fleet, engine, caller })
    }

    /// A worker with containers that is ready.
    pub async fn worker(&self, name: &str) -> crate::support::Program {
        self.engine.worker(&self.fleet, name).start().await
    }

    /// Defines a function of the test image; `more` is merged into `{"image": …}`.
    pub async fn define(&self, name: &str, more: Value) -> FunctionName {
        let name: FunctionName = name.parse().expect("a name");
        self.caller.apply(&name, function(more)).await.expect("applied");
        name
    }

    /// Calls it with a JSON body.
    pub async fn call(&self, name: &FunctionName, body: Value) -> Result<Response, CallError> {
        self.caller.invoke(name, &Call::new(body.to_string())).await
    }

    /// The JSON that it answers.
    #[track_caller]
    pub fn answer<'a>(&'a self, name: &'a FunctionName, body: Value) -> impl Future<Output = Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let response = self.call(name, body).await.unwrap_or_else(|error| panic!("{caller}: {error}"));
            serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("{caller}: {response:?}"))
        }
    }

    /// The records of its instances.
    pub async fn records(&self, name: &FunctionName) -> Vec<Instance> {
        let found = self.caller.instances(Some(name)).await.expect("readable");
        found.into_iter().map(|known| known.instance).collect()
    }

    /// Waits until the records are so.
    pub async fn records_where(
        &self,
        name: &FunctionName,
        what: &str,
        fits: impl Fn(&[Instance]) -> bool,
    ) -> Vec<Instance> {
        let mut last = Vec::new();
        eventually(what, async || {
            last = self.records(name).await;
            if fits(&last) { Ok(()) } else { Err(format!("{last:#?}")) }
        })
        .await;
        last
    }

    /// The containers of a function on the engine, running or not, of this test's workers.
    pub async fn containers(&self, name: &FunctionName) -> Vec<Value> {
        let all = self.engine.containers().await;
        all.into_iter().filter(|it| it["Labels"]["shoal.function"] == name.as_str()).collect()
    }

    /// Waits until no container of it is left.
    pub async fn no_container(&self, name: &FunctionName) {
        eventually("no container of it", async || match self.containers(name).await {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:#?}")),
        })
        .await;
    }
}

/// A definition of the test image.
pub fn function(more: Value) -> Function {
    let mut definition = json!({"image": IMAGE, "health": {"path": "/health"}});
    let fields = more.as_object().expect("an object").clone();
    definition.as_object_mut().expect("an object").extend(fields);
    serde_json::from_value(definition).expect("a definition")
}

/// The code that a call, or a wish, failed with.
#[track_caller]
pub fn code<T: std::fmt::Debug>(failed: Result<T, CallError>) -> Code {
    match failed {
        Err(CallError::Failed(error)) => {
            assert!(!error.message.is_empty());
            error.code
        }
        other => panic!("{other:?}"),
    }
}

/// Long enough for a cold start on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
