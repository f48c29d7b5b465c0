//! Asks an endpoint for one answer.
//!
//! On the crate `async-openai`, with its streams but with requests and pieces of our own ("bring your own types"): its
//! types refuse what many endpoints send ([`super::answer`]). Its retries are off; trying again is
//! [`super::implementer`]'s, where the budget is known.

use std::sync::Arc;
use std::time::Duration;

use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use futures_util::StreamExt;
use reqwest::StatusCode;
use schemas::{Decimal, HumanDuration};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, Broken, Chunk, Pieces};
use super::conversation::Message;
use super::price::Prices;
use super::transport::{HttpFailure, Transport};
use crate::retry::Again;
use crate::secret::{Mask, Secret, TooShort};

/// How long the usage may come after the answer.
const USAGE_WAIT: Duration = Duration::from_secs(5);
/// Bytes of an endpoint's words that are passed on.
const WORDS_BYTES: usize = 600;

/// How a model is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL of the API, as `https://api.openai.com/v1`.
    pub endpoint: String,
    /// Sent as bearer; none for endpoints that ask for none.
    pub key: Option<Arc<Secret>>,
    /// Its name at the endpoint.
    pub model: String,
    /// For one whole answer.
    pub timeout: Duration,
    /// Between two pieces of one answer, once it began.
    pub silence: Duration,
    /// Most tokens of one answer; default the endpoint's.
    pub max_output_tokens: Option<u32>,
    /// From 0 to 2; default the endpoint's.
    pub temperature: Option<Decimal>,
    /// Where they are known.
    pub prices: Option<Prices>,
}

impl Settings {
    /// 120 s for an answer, 60 s between two pieces, everything else the endpoint's.
    pub fn new(endpoint: impl Into<String>, key: Option<Arc<Secret>>, model: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            key,
            model: model.into(),
            timeout: Duration::from_secs(120),
            silence: Duration::from_secs(60),
            max_output_tokens: None,
            temperature: None,
            prices: None,
        }
    }
}

/// Why settings make no client.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The endpoint is no base URL.
    #[error("{0:?} is no base URL of an endpoint: write it as https://api.openai.com/v1, without a password in it")]
    Endpoint(String),
    /// The key cannot be sent.
    #[error("the model's key cannot be sent: it must be of visible ASCII letters")]
    Key,
    /// The key cannot be hidden.
    #[error(transparent)]
    Short(#[from] TooShort),
    /// No HTTP.
    #[error("cannot set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It may pass: overloaded, broken off, silent, not there. With what the endpoint asks to wait.
    #[error("{0}")]
    Passing(String, Option<Duration>),
    /// The endpoint says that the conversation is too long for the model.
    #[error("{0}")]
    TooLong(String),
    /// It will be the same again: key, model, credit, request.
    #[error("{0}")]
    Rejected(String),
}

impl Failure {
    /// Whether another try makes sense.
    pub fn again(&self) -> Again {
        match self {
            Self::Passing(_, None) => Again::Soon,
            Self::Passing(_, Some(after)) => Again::After(*after),
            Self::TooLong(_) | Self::Rejected(_) => Again::Never,
        }
    }
}

/// One try that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// Bytes that the model had written until then: they may have to be paid.
    pub written: usize,
}

/// Asks a model.
#[derive(Clone, Debug)]
pub struct Client {
    client: async_openai::Client<OpenAIConfig>,
    settings: Settings,
    mask: Mask,
}

impl Client {
    /// A client with these settings. A rustls provider must be installed.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let endpoint = settings.endpoint.trim_end_matches('/');
        let url = reqwest::Url::parse(endpoint).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if url.is_none() {
            // Without what may be a password.
            let shown = endpoint.rsplit('@').next().unwrap_or_default().chars().take(200).collect();
            return Err(SettingsError::Endpoint(shown));
        }
        let key = settings.key.clone();
        let sendable = |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if key.as_ref().is_some_and(|key| !sendable(key.expose().trim())) {
            return Err(SettingsError::Key);
        }
        // Redirects are not followed: the key is for this endpoint.
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(15))
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
        let http = http.build().map_err(SettingsError::Http)?;
        // All of it set, so that nothing is taken from this process's environment.
        let config = OpenAIConfig::new().with_api_base(endpoint).with_api_key("").with_org_id("").with_project_id("");
        let mask = Mask::new(key.iter().map(|key| ("the model's key", &**key)))?;
        let transport = Transport::new(http, key);
        let client = async_openai::Client::with_config(config).with_http_service(transport);
        Ok(Self { client, settings, mask })
    }

    /// How it was set up.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks once. The whole answer is there by `until`, and by the settings' timeout.
    ///
    /// Cancel safe: the connection is closed when this is dropped.
    pub async fn ask(
        &self,
        messages: &[Message],
        tools: &[Value],
        most_output: Option<u64>,
        until: Option<Instant>,
    ) -> Result<Answer, Failed> {
        let mut request = json!({
            "model": self.settings.model,
            "messages": messages,
            "tools": tools,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(most) = most_output {
            request["max_completion_tokens"] = most.into();
        }
        if let Some(temperature) = self.settings.temperature {
            request["temperature"] = (temperature.micros() as f64 / 1e6).into();
        }
        let mut pieces = Pieces::default();
        match self.pieces(request, &mut pieces, until).await {
            Ok(()) => {
                let written = pieces.written();
                pieces.ended().map_err(|broken| Failed { failure: broken.into(), written })
            }
            Err(failure) => Err(Failed { failure: self.masked(failure), written: pieces.written() }),
        }
    }

    async fn pieces(&self, request: Value, pieces: &mut Pieces, until: Option<Instant>) -> Result<(), Failure> {
        let Settings { timeout, silence, .. } = self.settings;
        let mut deadline = Instant::now() + timeout;
        deadline = until.map_or(deadline, |until| until.min(deadline));
        let late = || Failure::Passing(format!("no answer within {}", HumanDuration(timeout)), None);
        let chat = self.client.chat();
        let asked = chat.create_stream_byot::<Value, Chunk>(request);
        let mut stream = timeout_at(deadline, asked).await.map_err(|_| late())?.map_err(failure)?;
        let mut began = false;
        loop {
            let patience = match (pieces.is_finished(), began) {
                (true, _) => Instant::now() + USAGE_WAIT,
                (false, true) => Instant::now() + silence,
                // A model may think for long before its first word.
                (false, false) => deadline,
            };
            match timeout_at(patience.min(deadline), stream.next()).await {
                Ok(Some(Ok(chunk))) => pieces.add(chunk)?,
                Ok(None) => return Ok(()),
                // What is missing then is no more than its usage.
                Ok(Some(Err(_))) | Err(_) if pieces.is_finished() => return Ok(()),
                Ok(Some(Err(error))) => return Err(failure(error)),
                Err(_) if Instant::now() >= deadline => return Err(late()),
                Err(_) => {
                    let silent = format!("the answer stopped for {} in its middle", HumanDuration(silence));
                    return Err(Failure::Passing(silent, None));
                }
            }
            began = true;
        }
    }

    /// The endpoint's words, without the key and without end.
    fn masked(&self, failure: Failure) -> Failure {
        let bounded = |words: String| crate::tools::output::middle_cut(&self.mask.text(&words), WORDS_BYTES);
        match failure {
            Failure::Passing(words, after) => Failure::Passing(bounded(words), after),
            Failure::TooLong(words) => Failure::TooLong(bounded(words)),
            Failure::Rejected(words) => Failure::Rejected(bounded(words)),
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Passing(broken.to_string(), None)
    }
}

/// What an error means.
fn failure(error: OpenAIError) -> Failure {
    match error {
        OpenAIError::Boxed(error) => match error.downcast::<HttpFailure>() {
            Ok(failure) => http(*failure),
            Err(error) => Failure::Passing(error.to_string(), None),
        },
        OpenAIError::JSONDeserialize(error, _) => Failure::Passing(format!("the answer cannot be read: {error}"), None),
        OpenAIError::StreamError(error) => Failure::Passing(format!("the answer broke off: {error}"), None),
        OpenAIError::InvalidArgument(why) => Failure::Rejected(why),
        error => Failure::Passing(error.to_string(), None),
    }
}

fn http(failure: HttpFailure) -> Failure {
    let HttpFailure::Status { status, code, words, after } = failure else {
        return Failure::Passing(failure.to_string(), None);
    };
    let told = format!("the endpoint answered {status}: {words}");
    let says = |what: &str| code == what || words.contains(what);
    let too_long = says("context_length_exceeded") || words.contains("maximum context length");
    match status {
        // Out of credit is no "later".
        StatusCode::TOO_MANY_REQUESTS if says("insufficient_quota") || says("billing_hard_limit_reached") => {
            Failure::Rejected(told)
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Failure::Passing(told, after)
        }
        status if status.is_server_error() => Failure::Passing(told, after),
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE if too_long => Failure::TooLong(told),
        _ => Failure::Rejected(told),
    }
}
