//! The registry over HTTP: agents of somebody else's that register, beat and are listed.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::BenchError;
use super::report::Round;

/// One connection that is kept open, as a program's own would be.
pub struct Registry {
    sender: SendRequest<Full<bytes::Bytes>>,
    host: String,
}

/// A request that was not answered as it must be.
#[derive(Debug, thiserror::Error)]
#[error("{method} {path} was answered with {status}: {body}")]
struct WrongAnswer {
    method: Method,
    path: String,
    status: StatusCode,
    body: String,
}

impl Registry {
    /// Connects to a dispatcher's HTTP at `host:port`.
    pub async fn connect(host: &str) -> Result<Self, BenchError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            BenchError::fleet("could not connect to the dispatcher's HTTP", error)
        };
        let stream = tokio::net::TcpStream::connect(host).await.map_err(|error| failed(error.into()))?;
        stream.set_nodelay(true).map_err(|error| failed(error.into()))?;
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| failed(error.into()))?;
        tokio::spawn(connection);
        Ok(Self { sender, host: host.to_owned() })
    }

    /// One request, answered with `wanted`; its body and how long that took.
    async fn ask(
        &mut self,
        method: Method,
        path: String,
        body: Option<serde_json::Value>,
        wanted: StatusCode,
    ) -> Result<(bytes::Bytes, Duration), BenchError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            BenchError::fleet("the dispatcher's HTTP did not answer", error)
        };
        let body = body.map_or_else(bytes::Bytes::new, |body| body.to_string().into());
        let request = Request::builder().method(method.clone()).uri(&path).header("host", &self.host);
        let request = request.header("content-type", "application/json").body(Full::new(body));
        let request = request.expect("made of valid parts");
        let began = Instant::now();
        self.sender.ready().await.map_err(|error| failed(error.into()))?;
        let response = self.sender.send_request(request).await.map_err(|error| failed(error.into()))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| failed(error.into()))?.to_bytes();
        let took = began.elapsed();
        if status == wanted {
            return Ok((body, took));
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        Err(failed(WrongAnswer { method, path, status, body }.into()))
    }

    /// Registers `agents` of them, one after the other.
    pub async fn register(&mut self, agents: usize, name: &str) -> Result<Round, BenchError> {
        let mut latencies = Vec::with_capacity(agents);
        for agent in 0..agents {
            let body = json!({"id": id(name, agent), "hostname": "bench", "version": "1", "slots": 4});
            latencies.push(self.ask(Method::POST, "/api/agents".into(), Some(body), StatusCode::CREATED).await?.1);
        }
        Ok(in_turn(latencies))
    }

    /// Lets some of them beat once each, agent `n` when `n` of `agents` equal parts of `span` are over.
    async fn beat(
        &mut self,
        (agents, span): (usize, Duration),
        some: impl Iterator<Item = usize>,
        name: &str,
    ) -> Result<Vec<Duration>, BenchError> {
        let mut latencies = Vec::new();
        let began = tokio::time::Instant::now();
        for agent in some {
            tokio::time::sleep_until(began + span.mul_f64(agent as f64 / agents as f64)).await;
            let path = format!("/api/agents/{}/heartbeat", id(name, agent));
            let body = json!({"running_count": 1});
            latencies.push(self.ask(Method::POST, path, Some(body), StatusCode::OK).await?.1);
        }
        Ok(latencies)
    }

    /// Lists them all `times` times; each list must hold every one.
    pub async fn list(&mut self, times: usize, agents: usize) -> Result<Round, BenchError> {
        let mut latencies = Vec::with_capacity(times);
        for _ in 0..times {
            let (body, took) = self.ask(Method::GET, "/api/agents".into(), None, StatusCode::OK).await?;
            latencies.push(took);
            let listed: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let listed = listed.as_array().or_else(|| listed["agents"].as_array()).map_or(0, Vec::len);
            if listed < agents {
                let why = format!("the list holds {listed} of {agents} agents");
                return Err(BenchError::Fleet { what: why, source: None });
            }
        }
        Ok(in_turn(latencies))
    }

    /// Takes them out again.
    pub async fn forget(&mut self, agents: usize, name: &str) -> Result<(), BenchError> {
        for agent in 0..agents {
            let path = format!("/api/agents/{}", id(name, agent));
            self.ask(Method::DELETE, path, None, StatusCode::NO_CONTENT).await?;
        }
        Ok(())
    }
}

/// Lets every agent beat once within `span`, evenly, over these connections.
pub async fn beat(
    connections: &mut [Registry],
    agents: usize,
    span: Duration,
    name: &str,
) -> Result<Round, BenchError> {
    let (began, lanes) = (Instant::now(), connections.len());
    let beats = connections.iter_mut().enumerate().map(|(lane, connection)| {
        let some = (lane..agents).step_by(lanes);
        connection.beat((agents, span), some, name)
    });
    let latencies = futures_util::future::try_join_all(beats).await?;
    Ok(Round::timed(began.elapsed(), latencies.into_iter().flatten().collect()))
}

fn id(name: &str, agent: usize) -> String {
    format!("bench-{name}-{agent}")
}

/// Requests one after the other: what we do in between is not the registry's time.
fn in_turn(latencies: Vec<Duration>) -> Round {
    Round::timed(latencies.iter().sum(), latencies)
}
