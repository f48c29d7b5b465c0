//! One REST service: JSON, a bearer where it wants one, and every failure with whether it may pass.

use std::sync::Arc;
use std::time::Duration;

use agents::retry::Again;
use agents::secret::Secret;
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::agent::settings::OutsideService;

/// To be connected.
const CONNECT: Duration = Duration::from_secs(2);
/// For a whole request.
const REQUEST: Duration = Duration::from_secs(10);
/// Largest answer that is read.
const MOST_BYTES: usize = 64 << 10;
/// Nobody may ask us to wait longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One of them.
pub struct Rest {
    name: &'static str,
    http: reqwest::Client,
    url: Url,
    token: Option<Arc<Secret>>,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub struct Failure {
    words: String,
    again: Again,
    status: Option<StatusCode>,
}

impl Failure {
    /// Whether another try may help, as the other side sees it.
    pub fn again(&self) -> Again {
        self.again
    }

    /// What was answered, if anything was.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }
}

impl Rest {
    /// Checks its address; asks nothing.
    pub fn open(name: &'static str, service: &OutsideService) -> Result<Self, String> {
        // Not repeated: what stands there may be a password.
        let wrong =
            || format!("the URL of the {name} must be http or https, without user, password, query and fragment");
        let url = Url::parse(&service.url).map_err(|_| wrong())?;
        let plain = url.username().is_empty() && url.password().is_none();
        let plain = plain && url.query().is_none() && url.fragment().is_none();
        if !plain || !["http", "https"].contains(&url.scheme()) {
            return Err(wrong());
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(REQUEST)
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("no HTTP for the {name}: {error}"))?;
        Ok(Self { name, http, url, token: service.token.clone() })
    }

    /// A request for what lies at these steps below its address.
    pub fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.url.clone();
        if let Ok(mut steps) = url.path_segments_mut() {
            steps.pop_if_empty().extend(path);
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Sends it; whatever is no success is a failure.
    pub async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, Failure> {
        let broken = |error: reqwest::Error| Failure {
            words: format!("the {} cannot be reached: {}", self.name, chain(&error.without_url())),
            again: Again::Soon,
            status: None,
        };
        let mut answer = request.send().await.map_err(broken)?;
        let status = answer.status();
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let after = after.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
        if !status.is_success() {
            let passing = status.is_server_error()
                || [StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
            let again = match (passing, after) {
                (false, _) => Again::Never,
                (true, None) => Again::Soon,
                (true, Some(after)) => Again::After(after),
            };
            return Err(Failure { words: format!("the {} answers {status}", self.name), again, status: Some(status) });
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(broken)? {
            body.extend_from_slice(&piece);
            if body.len() > MOST_BYTES {
                return Err(self.nonsense("an answer that is too large"));
            }
        }
        Ok(body)
    }

    /// The same where the answer matters.
    pub async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let body = self.send(request).await?;
        serde_json::from_slice(&body).map_err(|error| self.nonsense(&error.to_string()))
    }

    /// An answer that is none.
    pub fn nonsense(&self, why: &str) -> Failure {
        Failure { words: format!("the {} answers nonsense: {why}", self.name), again: Again::Never, status: None }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(&format!(": {error}"));
        source = error.source();
    }
    words
}
