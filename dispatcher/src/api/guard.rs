//! Who may call, how often, and with how much. In this order, before anything else is done:
//!
//! 1. **Host**: on loopback, only names of this machine: a page that points its own name here (DNS rebinding) is refused.
//! 2. **Origin**: a page of another site is refused unless its origin is listed. Programs send no origin.
//! 3. **Rate**: so many calls a second from one address.
//! 4. **Token**: where there is one, always, also on loopback.
//! 5. **Link**: without NATS nothing can be done, and that is said soon.
//!
//! Health is open to all: whoever watches over the program has no token.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jetstream::Link;
use schemas::{Bytes, Code, Limit};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::lambda;
use super::problem::Failure;

/// How long a call waits for a broken link to come back.
const LINKED_WITHIN: Duration = Duration::from_secs(2);
/// Addresses remembered before those that are at rest are forgotten.
const ADDRESSES: usize = 10_000;

/// What HTTP lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Wanted of every call, where there is one. Beyond loopback there must be one.
    pub token: Option<Token>,
    /// Pages of these origins may call.
    pub origins: Vec<Origin>,
    /// Largest body.
    pub body_limit: Bytes,
    /// Calls a second from one address; as many again at once.
    pub rate: Limit<u32>,
    /// Streams and long polls open at once.
    pub streams: usize,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { token: None, origins: Vec::new(), body_limit: Bytes(8 << 20), rate: Limit::At(5_000), streams: 1_000 }
    }
}

/// A bearer token, kept as its digest.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// The token `text`; `None` for an empty one.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(Sha256::digest(text).into()))
    }

    /// Whether `given` is it, in a time that does not tell how much of it is right.
    pub fn is(&self, given: &str) -> bool {
        self.0.ct_eq(&<[u8; 32]>::from(Sha256::digest(given))).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The origin of a page: `https://fleet.example.com`, `http://localhost:3000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// Host and port.
    fn authority(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, authority)| authority)
    }

    /// As a header says it.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("checked when it was read")
    }
}

impl FromStr for Origin {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('/').to_ascii_lowercase();
        let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match authority {
            Some(authority)
                if !authority.is_empty()
                    && authority.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b)) =>
            {
                Ok(Self(text))
            }
            _ => Err("allowed is an origin as `https://fleet.example.com` or `http://localhost:3000`".into()),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Watches the door.
#[derive(Debug)]
pub struct Guard {
    settings: HttpSettings,
    loopback: bool,
    rate: Option<Mutex<Rate>>,
    link: watch::Receiver<Link>,
}

impl Guard {
    /// The guard of what listens on `address`.
    pub fn new(settings: HttpSettings, address: SocketAddr, link: watch::Receiver<Link>) -> Self {
        let rate = settings.rate.bound().map(|rate| Mutex::new(Rate::new(rate)));
        Self { loopback: address.ip().is_loopback(), settings, rate, link }
    }

    fn admits(&self, path: &str, headers: &HeaderMap, peer: IpAddr, now: Instant) -> Result<(), Failure> {
        let text =
            |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?").to_ascii_lowercase());
        let forbidden = |what: String| {
            Failure::new(StatusCode::FORBIDDEN, Code::PermissionDenied, what)
                .hint("list the origin of your page with --http-origins")
        };
        let host = text(header::HOST);
        if let Some(host) = &host
            && self.loopback
            && !is_this_machine(host)
            && !self.settings.origins.iter().any(|origin| origin.authority() == host)
        {
            return Err(forbidden(format!("`{host}` is no name of this machine")));
        }
        if let Some(origin) = text(header::ORIGIN) {
            let own = origin.split_once("://").map(|(_, authority)| authority);
            let is_own = own.is_some() && own == host.as_deref();
            if !is_own && !self.settings.origins.iter().any(|listed| listed.0 == origin) {
                return Err(forbidden(format!("pages of `{origin}` may not call")));
            }
        }
        if let Some(rate) = &self.rate {
            let wait = rate.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take(peer, now);
            if let Err(after) = wait {
                let many = Failure::new(StatusCode::TOO_MANY_REQUESTS, Code::RateLimited, "too many calls");
                return Err(many.retry_after(after).hint("call less often, or raise --http-rate"));
            }
        }
        if let Some(token) = &self.settings.token {
            let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let bearer = given.and_then(|value| value.split_once(' '));
            let fits =
                bearer.is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && token.is(given.trim()));
            // An SDK of AWS has no other place for it.
            let key = given.filter(|_| path.starts_with(lambda::PREFIX)).and_then(lambda::access_key);
            if !fits && !key.is_some_and(|key| token.is(key)) {
                let what = if given.is_some() { "this is not the token" } else { "a token is wanted" };
                return Err(Failure::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, what)
                    .hint("send `Authorization: Bearer <token>`"));
            }
        }
        Ok(())
    }

    async fn linked(&self) -> Result<(), Failure> {
        let mut link = self.link.clone();
        match tokio::time::timeout(LINKED_WITHIN, link.wait_for(|link| link.connected)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Failure::unavailable("not connected to NATS").hint("try again in a moment")),
        }
    }
}

/// Lets a call through, or says why not.
pub async fn watch(
    State(guard): State<Arc<Guard>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path().starts_with("/health/") {
        return next.run(request).await;
    }
    let is_lambda = request.uri().path().starts_with(lambda::PREFIX);
    let admitted = match guard.admits(request.uri().path(), request.headers(), peer.ip(), Instant::now()) {
        Ok(()) => guard.linked().await,
        refused => refused,
    };
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(failure) if is_lambda => lambda::told(&failure),
        Err(failure) => failure.into_response(),
    };
    // What a task left behind is data, whatever a browser would make of it.
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether a `Host` names this machine, with any port: what is forwarded comes by another.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// So many a second from each address, and as many again at once (the generic cell rate algorithm: one moment kept for
/// each address, at which its next call is due).
#[derive(Debug)]
struct Rate {
    every: Duration,
    burst: Duration,
    due: HashMap<IpAddr, Instant>,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Self { every: Duration::from_secs(1) / per_second.max(1), burst: Duration::from_secs(1), due: HashMap::new() }
    }

    /// Counts one call; the error is how long to wait.
    fn take(&mut self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        if self.due.len() >= ADDRESSES {
            self.due.retain(|_, due| *due > now);
        }
        let due = self.due.entry(network(from)).or_insert(now);
        let next = (*due).max(now);
        let ahead = next - now;
        if ahead > self.burst {
            return Err(ahead - self.burst);
        }
        *due = next + self.every;
        Ok(())
    }
}

/// Whoever has one address of IPv6 has 64 bits of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(settings: HttpSettings, address: &str) -> Guard {
        let (_, link) = watch::channel(Link { connected: true, epoch: 1 });
        Guard::new(settings, address.parse().unwrap(), link)
    }

    fn status(guard: &Guard, headers: &[(&'static str, &str)]) -> u16 {
        status_at("/api/tasks", guard, headers)
    }

    fn status_at(path: &str, guard: &Guard, headers: &[(&'static str, &str)]) -> u16 {
        let pairs = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let headers: HeaderMap = pairs.collect();
        guard
            .admits(path, &headers, "127.0.0.1".parse().unwrap(), Instant::now())
            .map_or_else(|f| f.problem.status, |()| 200)
    }

    #[test]
    fn a_foreign_host_is_refused_on_loopback_alone() {
        let local = guard(HttpSettings::default(), "127.0.0.1:7070");
        for host in ["localhost", "localhost:7070", "127.0.0.1:1", "127.9.9.9", "[::1]:7070"] {
            assert_eq!(status(&local, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example.com", "evil.example.com:7070", "localhost.example.com", "10.0.0.1", "[::2]"] {
            assert_eq!(status(&local, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(status(&guard(HttpSettings::default(), "0.0.0.0:7070"), &[("host", "fleet.example.com")]), 200);
    }

    #[test]
    fn only_pages_of_our_own_or_of_listed_origins_may_call() {
        let listed =
            HttpSettings { origins: vec!["https://Fleet.example.com/".parse().unwrap()], ..Default::default() };
        let guard = guard(listed, "127.0.0.1:7070");
        let host = ("host", "127.0.0.1:7070");
        assert_eq!(status(&guard, &[host, ("origin", "http://127.0.0.1:7070")]), 200);
        assert_eq!(status(&guard, &[host, ("origin", "https://fleet.example.com")]), 200);
        // Behind a proxy of that name.
        assert_eq!(status(&guard, &[("host", "fleet.example.com"), ("origin", "https://fleet.example.com")]), 200);
        for origin in ["http://127.0.0.1:9999", "https://evil.example.com", "null", "http://fleet.example.com"] {
            assert_eq!(status(&guard, &[host, ("origin", origin)]), 403, "{origin}");
        }
    }

    #[test]
    fn where_there_is_a_token_nothing_else_will_do() {
        let token = Token::new(" secret\n");
        assert!(Token::new(" \n").is_none());
        let guard = guard(HttpSettings { token, ..Default::default() }, "127.0.0.1:7070");
        assert_eq!(status(&guard, &[("authorization", "Bearer secret")]), 200);
        assert_eq!(status(&guard, &[("authorization", "bearer secret")]), 200);
        for wrong in ["Bearer secre", "Bearer secrets", "Basic secret", "secret", ""] {
            assert_eq!(status(&guard, &[("authorization", wrong)]), 401, "{wrong}");
        }
        assert_eq!(status(&guard, &[]), 401);
        // SDKs of AWS have it as their access key id.
        let signed = |key| format!("AWS4-HMAC-SHA256 Credential={key}/20261121/r/lambda/aws4_request, Signature=a");
        let invoke = "/2015-03-31/functions/f/invocations";
        assert_eq!(status_at(invoke, &guard, &[("authorization", &signed("secret"))]), 200);
        assert_eq!(status_at(invoke, &guard, &[("authorization", &signed("wrong"))]), 401);
        assert_eq!(status(&guard, &[("authorization", &signed("secret"))]), 401, "only there");
        assert_eq!(format!("{:?}", guard.settings.token), "Some(***)");
    }

    #[test]
    fn an_address_may_call_so_often_and_no_more() {
        let mut rate = Rate::new(10);
        let (start, from) = (Instant::now(), "10.0.0.1".parse().unwrap());
        let at = |millis| start + Duration::from_millis(millis);
        let allowed = (0..100).filter(|_| rate.take(from, start).is_ok()).count();
        assert_eq!(allowed, 11, "a second's worth at once, and the one that is due");
        assert_eq!(rate.take(from, start), Err(Duration::from_millis(100)));
        assert!(rate.take("10.0.0.2".parse().unwrap(), start).is_ok(), "others have their own");
        assert!(rate.take(from, at(100)).is_ok());
        assert!(rate.take(from, at(100)).is_err());
        let allowed = (0..100).filter(|_| rate.take(from, at(60_000)).is_ok()).count();
        assert_eq!(allowed, 11, "rest gives no more than a second's worth");
        let v6 = |text: &str| network(text.parse().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
    }

    #[test]
    fn addresses_at_rest_are_forgotten() {
        let mut rate = Rate::new(10);
        let start = Instant::now();
        for n in 0..ADDRESSES as u32 {
            rate.take(IpAddr::from(n.to_be_bytes()), start).unwrap();
        }
        rate.take("10.0.0.1".parse().unwrap(), start + Duration::from_secs(5)).unwrap();
        assert_eq!(rate.due.len(), 1);
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for good in ["https://a.example.com", "http://localhost:3000", "http://[::1]:7070/"] {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
        }
        for bad in ["", "*", "localhost:3000", "https://", "https://a/b", "ftp://a", "https://a b"] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
