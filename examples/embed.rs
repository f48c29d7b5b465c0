//! A program of your own as a worker: registers the handler `greet` and runs until Ctrl-C.
//!
//! ```text
//! cargo run --example embed
//! nats pub 'shoal.tasks.default.{{ID}}' '{"workload":{"kind":"call","handler":"greet","payload":{"name":"Ada"}}}'
//! ```

use bytes::Bytes;
use jetstream::ConnectSettings;
use worker::{Config, GuardCommand, HandlerError, Handlers, Stop};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connection = ConnectSettings::default().connect("greeter").await?;
    // Only `call` workloads are allowed unless the configuration names more, so the guard of processes never starts.
    let mut config = Config::new(std::env::temp_dir().join("shoal-greeter"), GuardCommand::this_program());
    config.slots = 1000;
    let handlers = Handlers::default().with("greet", |call| async move {
        let name = call.payload["name"].as_str().ok_or_else(|| HandlerError::hopeless("payload has no `name`"))?;
        Ok(Bytes::from(format!("Hello, {name}!")))
    });

    let stop = Stop::default();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(worker::run(config, connection, handlers, stop.clone(), ready));
    if let Ok(id) = is_ready.await {
        println!("ready worker={id}");
    }
    tokio::signal::ctrl_c().await?;
    stop.drain.cancel();
    running.await??;
    Ok(())
}
