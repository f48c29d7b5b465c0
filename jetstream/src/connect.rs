//! The connection: where the server is, who we are, and what became of the link.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, Event};
use serde::Deserialize;
use tokio::sync::watch;

/// Oldest server that has what the protocol leans on.
pub const OLDEST_SERVER: (u64, u64, u64) = (2, 12, 0);
/// Without `--nats-url`, `NATS_URL` and a `nats` context.
pub const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// Where the server is and who we are.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct ConnectSettings {
    /// One URL or several, with commas. May carry user and password.
    pub url: Option<String>,
    /// File with JWT and seed.
    pub creds: Option<PathBuf>,
    /// File with an nkey seed.
    pub nkey: Option<PathBuf>,
    /// Root certificates to trust.
    pub tls_ca: Option<PathBuf>,
    /// Our certificate, for mutual TLS.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there, or not reachable.
    #[error("cannot reach NATS at {url}")]
    Unreachable {
        /// Where we looked.
        url: String,
        /// Why.
        source: async_nats::ConnectError,
    },
    /// The server does not know us.
    #[error("NATS at {url} refuses the credentials")]
    Denied {
        /// Where we looked.
        url: String,
        /// Why.
        source: async_nats::ConnectError,
    },
    /// A credentials or key file cannot be used.
    #[error("cannot read {what} {path}")]
    File {
        /// Which setting.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too old.
    #[error("nats-server {found} at {url} is too old: Shoal needs {needed} or newer")]
    TooOld {
        /// Where.
        url: String,
        /// What it says it is.
        found: String,
        /// What is needed.
        needed: String,
    },
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether it stands now.
    pub connected: bool,
    /// How often it was made: 1 after the first connect.
    pub epoch: u64,
}

/// A connection and its news.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client.
    pub client: async_nats::Client,
    /// What became of the link; the value changes with every connect and disconnect.
    pub link: watch::Receiver<Link>,
    /// Where it leads.
    pub url: String,
}

/// The parts of a `nats` CLI context that we know.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    url: String,
    creds: String,
    nkey: String,
    user: String,
    password: String,
    token: String,
    ca: String,
    cert: String,
    key: String,
}

impl Context {
    /// The context named by `NATS_CONTEXT`, else the one selected with `nats context select`.
    fn selected() -> Option<Self> {
        let base = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?
            .join("nats");
        let name =
            std::env::var("NATS_CONTEXT").ok().or_else(|| std::fs::read_to_string(base.join("context.txt")).ok())?;
        let file = base.join("context").join(format!("{}.json", name.trim()));
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }
}

/// Connects at once; reconnects soon at first, then patiently, never in step with the rest of the fleet. The client crate
/// asks before each attempt, the very first one too (0.51), which fails after one round through the servers.
fn connect_delay(was_connected: bool, attempt: usize) -> Duration {
    if !was_connected {
        return Duration::ZERO;
    }
    let bound = 50_u64.saturating_mul(1 << attempt.min(7)).min(4_000);
    Duration::from_millis(rand::random_range(bound / 2..=bound))
}

impl ConnectSettings {
    /// Connects, and refuses a server that is too old. `name` is what `nats server report connections` shows.
    pub async fn connect(&self, name: &str) -> Result<Connection, ConnectError> {
        let from_env = || std::env::var("NATS_URL").ok().filter(|url| !url.is_empty());
        let context = if self.url.is_none() && from_env().is_none() { Context::selected() } else { None };
        let context = context.unwrap_or_default();
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let path = |own: &Option<PathBuf>, text: &str| own.clone().or_else(|| given(text).map(PathBuf::from));
        let url =
            self.url.clone().or_else(from_env).or_else(|| given(&context.url)).unwrap_or_else(|| DEFAULT_URL.into());

        let (news, link) = watch::channel(Link { connected: false, epoch: 0 });
        let connected = Arc::new(AtomicBool::new(false));
        let was_connected = connected.clone();
        let mut options = ConnectOptions::new()
            .name(name)
            .ping_interval(Duration::from_secs(10))
            .connection_timeout(Duration::from_secs(5))
            .max_reconnects(None)
            .reconnect_delay_callback(move |attempt| connect_delay(was_connected.load(Ordering::Relaxed), attempt))
            .event_callback(move |event| {
                match &event {
                    Event::Connected => {
                        connected.store(true, Ordering::Relaxed);
                        news.send_modify(|link| *link = Link { connected: true, epoch: link.epoch + 1 });
                    }
                    Event::Disconnected | Event::Closed => news.send_modify(|link| link.connected = false),
                    _ => {}
                }
                match event {
                    Event::Connected => tracing::debug!("connected to NATS"),
                    Event::Closed => tracing::debug!("connection to NATS closed"),
                    other => tracing::warn!(event = %other, "NATS connection"),
                }
                async {}
            });
        if let Some(path) = path(&self.creds, &context.creds) {
            options = options.credentials_file(&path).await.map_err(|source| ConnectError::File {
                what: "credentials",
                path,
                source,
            })?;
        }
        if let Some(path) = path(&self.nkey, &context.nkey) {
            let seed = std::fs::read_to_string(&path).map_err(|source| ConnectError::File {
                what: "nkey seed",
                path,
                source,
            })?;
            options = options.nkey(seed.trim().to_owned());
        }
        // The client crate takes no credentials from a URL (0.51).
        let in_url = url.split(',').find_map(|one| secret(one.trim()));
        match (in_url, given(&context.user), given(&context.password), given(&context.token)) {
            (Some((user, Some(password))), ..) | (None, Some(user), Some(password), _) => {
                options = options.user_and_password(user, password);
            }
            (Some((token, None)), ..) | (None, _, _, Some(token)) => options = options.token(token),
            (None, ..) => {}
        }
        if let Some(ca) = path(&self.tls_ca, &context.ca) {
            options = options.add_root_certificates(ca).require_tls(true);
        }
        if let (Some(cert), Some(key)) = (path(&self.tls_cert, &context.cert), path(&self.tls_key, &context.key)) {
            options = options.add_client_certificate(cert, key).require_tls(true);
        }

        let servers: Vec<String> = url.split(',').map(|one| one.trim().to_owned()).collect();
        // What is shown and logged carries no password.
        let shown = servers.iter().map(|one| without_secret(one)).collect::<Vec<_>>().join(",");
        let client = options.connect(servers).await.map_err(|source| match source.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                ConnectError::Denied { url: shown.clone(), source }
            }
            _ => ConnectError::Unreachable { url: shown.clone(), source },
        })?;
        let found = client.server_info().version;
        let (major, minor, patch) = OLDEST_SERVER;
        if version(&found) < Some(OLDEST_SERVER) {
            return Err(ConnectError::TooOld { url: shown, found, needed: format!("{major}.{minor}.{patch}") });
        }
        Ok(Connection { client, link, url: shown })
    }
}

/// User and password of a URL, or its token, which stands alone.
fn secret(url: &str) -> Option<(String, Option<String>)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (secret, _) = rest.rsplit_once('@')?;
    match secret.split_once(':') {
        Some((user, password)) => Some((unescaped(user), Some(unescaped(password)))),
        None => Some((unescaped(secret), None)),
    }
}

/// `%40` as `@`; what is no escape stays.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let escape = more.get(..2).filter(|hex| *first == b'%' && hex.iter().all(u8::is_ascii_hexdigit));
        let escape = escape.and_then(|hex| std::str::from_utf8(hex).ok());
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn without_secret(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        _ => url.to_owned(),
    }
}

/// `2.12.1-RC.1` as numbers.
fn version(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.trim_start_matches('v').splitn(3, '.');
    let mut next = || {
        let part = parts.next()?;
        part[..part.bytes().take_while(u8::is_ascii_digit).count()].parse().ok()
    };
    Some((next()?, next()?, next()?))
}

impl Connection {
    /// Completes when the client is gone for good, whatever ended it. A mere disconnect is not that. Cancel safe.
    pub async fn gone(&self) {
        let mut link = self.link.clone();
        while link.changed().await.is_ok() {}
    }

    /// Waits until the link stands.
    pub async fn connected(&self) {
        let mut link = self.link.clone();
        // An error means that the client is gone, and with it whoever would wait here.
        let _ = link.wait_for(|link| link.connected).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("2.9.25") < Some(OLDEST_SERVER));
        assert!(version("2.11.10") < Some(OLDEST_SERVER));
        assert!(version("2.12.0-RC.1") >= Some(OLDEST_SERVER));
        assert!(version("2.15.1") >= Some(OLDEST_SERVER));
        assert!(version("nonsense") < Some(OLDEST_SERVER));
    }

    #[test]
    fn a_url_may_carry_user_and_password_or_a_token() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), Some(password.to_owned())));
        assert_eq!(secret("nats://me:s3cret@host:4222"), pair("me", "s3cret"));
        assert_eq!(secret("me:p%40ss%3A@host"), pair("me", "p@ss:"));
        assert_eq!(secret("nats://100%:%zz@host"), pair("100%", "%zz"));
        assert_eq!(secret("tls://t0ken@host"), Some(("t0ken".into(), None)));
        assert_eq!(secret("nats://host:4222"), None);
    }

    #[test]
    fn what_is_shown_of_a_url_has_no_password() {
        assert_eq!(without_secret("nats://me:pa@ss@host:4222"), "nats://host:4222");
        assert_eq!(without_secret("nats://host:4222"), "nats://host:4222");
    }

    #[test]
    fn a_connect_is_at_once_and_reconnects_are_spread_and_bounded() {
        assert_eq!(connect_delay(false, 1), Duration::ZERO);
        let reconnect = |attempt| connect_delay(true, attempt);
        assert!((0..100).map(reconnect).all(|delay| delay >= Duration::from_millis(25)));
        assert!(reconnect(0) <= Duration::from_millis(50));
        assert!((0..100).map(reconnect).all(|delay| delay <= Duration::from_secs(4)));
    }
}
