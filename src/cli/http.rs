//! What HTTP lets in: shared by dispatcher and `up`.

use std::net::SocketAddr;
use std::path::PathBuf;

use ::dispatcher::api::{HttpSettings, Origin, Token};
use clap::Args;
use schemas::{Bytes, Limit};

use super::Error;

/// Settings of HTTP.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Who may call over HTTP")]
pub struct Http {
    /// Token that every call must bear, also on this machine; wanted where HTTP listens beyond it
    #[arg(
        long,
        env = "SHOAL_HTTP_TOKEN",
        hide_env_values = true,
        hide_default_value = true,
        value_name = "TOKEN",
        conflicts_with = "http_token_file"
    )]
    pub http_token: Option<String>,
    /// File with that token
    #[arg(long, env = "SHOAL_HTTP_TOKEN_FILE", value_name = "FILE")]
    pub http_token_file: Option<PathBuf>,
    /// Pages of these origins may call, as `https://fleet.example.com`
    #[arg(long, env = "SHOAL_HTTP_ORIGINS", value_delimiter = ',', value_name = "ORIGIN,…")]
    pub http_origins: Vec<Origin>,
    /// Largest body of a call
    #[arg(long, env = "SHOAL_HTTP_BODY_LIMIT", default_value = "8Mi", value_name = "SIZE")]
    pub http_body_limit: Bytes,
    /// Calls a second from one address, or `unlimited`
    #[arg(long, env = "SHOAL_HTTP_RATE", default_value = "5000", value_name = "N")]
    pub http_rate: Limit<u64>,
    /// Streams and long polls open at once
    #[arg(long, env = "SHOAL_HTTP_STREAMS", default_value_t = 1_000, value_name = "N")]
    pub http_streams: usize,
}

impl Http {
    /// Checked settings of what listens on `address`.
    pub fn settings(&self, address: SocketAddr) -> Result<HttpSettings, Error> {
        let token = self.token()?;
        if token.is_none() && !address.ip().is_loopback() {
            return Err(Error::usage(
                format!("HTTP listens beyond this machine ({address}) only with a token"),
                "name one with --http-token-file, or listen on 127.0.0.1",
            ));
        }
        if self.http_body_limit.0 < 1 << 10 {
            return Err(Error::usage("--http-body-limit must be at least 1Ki", "--http-body-limit 8Mi"));
        }
        let rate = match self.http_rate.bound() {
            None => Limit::Unlimited,
            Some(rate) => match u32::try_from(rate) {
                Ok(rate @ 1..=1_000_000) => Limit::At(rate),
                _ => {
                    let problem = format!("--http-rate is {rate}; allowed is 1 to 1000000, or `unlimited`");
                    return Err(Error::usage(problem, "--http-rate 5000"));
                }
            },
        };
        let body_limit = self.http_body_limit;
        Ok(HttpSettings { token, origins: self.http_origins.clone(), body_limit, rate, streams: self.http_streams })
    }

    fn token(&self) -> Result<Option<Token>, Error> {
        let text = match (&self.http_token, &self.http_token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => std::fs::read_to_string(file).map_err(|error| {
                Error::usage(format!("cannot read {}: {error}", file.display()), "name a file with --http-token-file")
            })?,
            (None, None) => return Ok(None),
        };
        match Token::new(&text) {
            Some(token) => Ok(Some(token)),
            None => Err(Error::usage("the token of HTTP is empty", "make one: openssl rand -hex 32")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        http: Http,
    }

    fn settings(args: &[&str], address: &str) -> Result<HttpSettings, String> {
        let args = std::iter::once("probe").chain(args.iter().copied());
        Probe::try_parse_from(args).unwrap().http.settings(address.parse().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        assert_eq!(settings(&[], "127.0.0.1:7070").unwrap(), HttpSettings::default());
    }

    #[test]
    fn beyond_this_machine_there_must_be_a_token() {
        assert!(settings(&[], "0.0.0.0:7070").unwrap_err().contains("only with a token"));
        assert!(settings(&["--http-token", "secret"], "0.0.0.0:7070").unwrap().token.unwrap().is("secret"));
        assert!(settings(&["--http-token", " "], "0.0.0.0:7070").unwrap_err().contains("empty"));
        assert!(settings(&["--http-token-file", "/nonexistent"], "127.0.0.1:1").unwrap_err().contains("/nonexistent"));
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        assert!(settings(&["--http-rate", "0"], "127.0.0.1:1").is_err());
        assert_eq!(settings(&["--http-rate", "unlimited"], "127.0.0.1:1").unwrap().rate, Limit::Unlimited);
    }
}
