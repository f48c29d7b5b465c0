//! A function that is measured, and the same without Shoal: an HTTP request to its container, a NATS round trip.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use functions::{Call, CallError, Caller};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use schemas::{Function, FunctionName};
use worker::runtime::docker::bare::Bare;

use super::BenchError;
use super::bare::crowd;
use super::report::Round;

/// What is sent; the function gives it back.
const BODY: &str = r#"{"hello":"there"}"#;
/// Longest start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A warm function, and whatever is measured beside it.
pub struct Called {
    caller: Caller,
    name: FunctionName,
    function: Function,
    address: SocketAddr,
    http: Client<HttpConnector, Full<Bytes>>,
    echo: String,
    echoing: tokio::task::JoinHandle<()>,
}

impl Drop for Called {
    fn drop(&mut self) {
        self.echoing.abort();
    }
}

fn failed(error: CallError) -> BenchError {
    BenchError::fleet("a function failed", error)
}

impl Called {
    /// Defines it and has one instance made.
    pub async fn warm(caller: &Caller, name: &str, function: Function) -> Result<Self, BenchError> {
        let name: FunctionName = name.parse().map_err(|error| BenchError::fleet("no name of a function", error))?;
        caller.apply(&name, function.clone()).await.map_err(failed)?;
        let instance = caller.ensure(&name, Some(PATIENCE)).await.map_err(failed)?.instance;
        let ip = instance.ip_address.as_deref().and_then(|ip| ip.parse().ok());
        let ip = ip.ok_or_else(|| BenchError::broken(format!("an instance without an address: {instance:?}")))?;
        let client = caller.js().client();
        let echo = client.new_inbox();
        let lost = |error: async_nats::SubscribeError| BenchError::fleet("cannot subscribe", error);
        let mut asked = client.subscribe(echo.clone()).await.map_err(lost)?;
        let answering = client.clone();
        let echoing = tokio::spawn(async move {
            while let Some(message) = asked.next().await {
                if let Some(reply) = message.reply {
                    // The asker waits in vain and says so.
                    let _ = answering.publish(reply, message.payload).await;
                }
            }
        });
        let http = Client::builder(TokioExecutor::new()).build_http();
        let address = SocketAddr::new(ip, function.port);
        Ok(Self { caller: caller.clone(), name, function, address, http, echo, echoing })
    }

    /// Its instances and its definition are gone then.
    pub async fn end(&self) -> Result<(), BenchError> {
        self.caller.delete(&self.name).await.map_err(failed)?;
        self.caller.destroy(&self.name, PATIENCE).await.map(|_| ()).map_err(failed)
    }

    /// Calls it so often, so many at once.
    pub async fn invoke(self: &Arc<Self>, jobs: usize, at_once: usize) -> Result<Round, BenchError> {
        crowd(jobs, at_once, |_| {
            let this = self.clone();
            async move { this.call().await }
        })
        .await
    }

    /// Calls it so often, so many a second, however long each takes.
    pub async fn invoke_paced(self: &Arc<Self>, jobs: usize, pace: u32) -> Result<Round, BenchError> {
        let began = Instant::now();
        let mut calls = tokio::task::JoinSet::new();
        let mut latencies = Vec::with_capacity(jobs);
        for number in 0..jobs {
            let due = Duration::from_secs_f64(number as f64 / f64::from(pace));
            tokio::time::sleep_until((began + due).into()).await;
            let this = self.clone();
            calls.spawn(async move {
                let began = Instant::now();
                this.call().await.map(|()| began.elapsed())
            });
            while let Some(done) = calls.try_join_next() {
                latencies.push(done.expect("no call of ours panics")?);
            }
        }
        while let Some(done) = calls.join_next().await {
            latencies.push(done.expect("no call of ours panics")?);
        }
        Ok(Round::timed(began.elapsed(), latencies))
    }

    async fn call(&self) -> Result<(), BenchError> {
        let response = self.caller.invoke(&self.name, &Call::new(BODY)).await.map_err(failed)?;
        match response.status == 200 && response.body == BODY {
            true => Ok(()),
            false => Err(BenchError::broken(format!("a call answered {response:?}"))),
        }
    }

    /// Posts to its container.
    pub async fn post(self: &Arc<Self>, jobs: usize, at_once: usize) -> Result<Round, BenchError> {
        crowd(jobs, at_once, |_| {
            let this = self.clone();
            async move {
                let uri = format!("http://{}{}", this.address, this.function.path);
                let request = hyper::Request::post(uri).header("content-type", "application/json");
                let request = request.body(Full::from(BODY)).map_err(|e| BenchError::fleet("no request", e))?;
                let response = this.http.request(request).await.map_err(|e| BenchError::fleet("no response", e))?;
                let status = response.status();
                let body = response.into_body().collect().await.map_err(|e| BenchError::fleet("no body", e))?;
                match status.is_success() && body.to_bytes() == BODY {
                    true => Ok(()),
                    false => Err(BenchError::broken(format!("the container answered {status}"))),
                }
            }
        })
        .await
    }

    /// Asks this program over the server.
    pub async fn round_trip(self: &Arc<Self>, jobs: usize, at_once: usize) -> Result<Round, BenchError> {
        crowd(jobs, at_once, |_| {
            let this = self.clone();
            async move {
                let reply = this.caller.js().client().request(this.echo.clone(), BODY.into()).await;
                let reply = reply.map_err(|error| BenchError::fleet("no reply", error))?;
                (reply.payload == BODY).then_some(()).ok_or_else(|| BenchError::broken("another reply".into()))
            }
        })
        .await
    }

    /// Ensures it while it is warm.
    pub async fn ensure(self: &Arc<Self>, jobs: usize, at_once: usize) -> Result<Round, BenchError> {
        crowd(jobs, at_once, |_| {
            let this = self.clone();
            async move {
                let found = this.caller.ensure(&this.name, None).await.map_err(failed)?;
                found.reused.then_some(()).ok_or_else(|| BenchError::broken("a warm function was made anew".into()))
            }
        })
        .await
    }

    /// Ensures it cold, one at a time; what makes it cold again is not timed.
    pub async fn ensure_cold(&self, jobs: usize) -> Result<Round, BenchError> {
        let mut latencies = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            self.caller.destroy(&self.name, PATIENCE).await.map_err(failed)?;
            let began = Instant::now();
            let made = self.caller.ensure(&self.name, Some(PATIENCE)).await.map_err(failed)?;
            latencies.push(began.elapsed());
            if made.reused {
                return Err(BenchError::broken("a cold function was warm".into()));
            }
        }
        Ok(Round::timed(latencies.iter().sum(), latencies))
    }

    /// The same by the engine alone: create, start, address, health.
    pub async fn make_bare(&self, engine: &Bare, jobs: usize) -> Result<Round, BenchError> {
        let lost = |error| BenchError::fleet("could not make the bare container", error);
        let mut latencies = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            let began = Instant::now();
            let made = engine.serve().await.map_err(lost)?;
            let address = SocketAddr::new(made.address, self.function.port);
            let uri: hyper::Uri = format!("http://{address}{}", self.function.health.path.as_deref().unwrap_or("/"))
                .parse()
                .map_err(|error| BenchError::fleet("no address", error))?;
            let mut pause = Duration::from_millis(5);
            while self.http.get(uri.clone()).await.is_err() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(250));
            }
            latencies.push(began.elapsed());
            engine.end_served(made).await.map_err(lost)?;
        }
        Ok(Round::timed(latencies.iter().sum(), latencies))
    }
}
