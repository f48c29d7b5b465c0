//! What every command takes: the server, who we are to it, the fleet, and how to talk.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use jetstream::{ConnectError, ConnectSettings, Connection};
use schemas::Prefix;

use super::Error;
use crate::output::Format;

/// A log level, or a filter by module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(pub String);

impl std::str::FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "allowed is error, warn, info, debug, trace, off, or a filter as `info,worker=debug`".to_owned();
        // A lone word would pass as the name of a module.
        let words = ["error", "warn", "info", "debug", "trace", "off"];
        if !text.contains(['=', ',']) && !words.contains(&text) {
            return Err(wrong());
        }
        tracing_subscriber::EnvFilter::try_new(text).map_err(|_| wrong())?;
        Ok(Self(text.to_owned()))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// NATS server, or several with commas; else NATS_URL, the selected `nats` context, nats://127.0.0.1:4222
    #[arg(long, global = true, env = "SHOAL_NATS_URL", hide_env_values = true, value_name = "URL")]
    pub nats_url: Option<String>,
    /// Credentials file (JWT and seed)
    #[arg(long, global = true, env = "SHOAL_NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
    /// File with an nkey seed
    #[arg(long, global = true, env = "SHOAL_NATS_NKEY", value_name = "FILE")]
    pub nats_nkey: Option<PathBuf>,
    /// Root certificates to trust
    #[arg(long, global = true, env = "SHOAL_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Our certificate, for mutual TLS
    #[arg(long, global = true, env = "SHOAL_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, global = true, env = "SHOAL_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// First token of every subject: which fleet
    #[arg(long, global = true, env = "SHOAL_PREFIX", default_value = "shoal")]
    pub prefix: Prefix,
    /// How data is printed
    #[arg(
        long,
        short,
        global = true,
        env = "SHOAL_OUTPUT",
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub output: Format,
    /// What is logged to stderr [default: info for up, worker and dispatcher, error for the rest]
    #[arg(long, global = true, env = "SHOAL_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<Level>,
    /// How it is logged
    #[arg(long, global = true, env = "SHOAL_LOG_FORMAT", value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Configuration file [default: ~/.config/shoal/config.yaml, if it exists]
    #[arg(long, global = true, env = "SHOAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How long a role keeps trying to reach a server that is not there yet, as when both are started at once.
const PATIENCE: Duration = Duration::from_secs(10);

impl Global {
    /// The rules between settings.
    pub fn check(&self) -> Result<(), Error> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(Error::usage("--tls-cert and --tls-key go together", "name both, or neither"));
        }
        Ok(())
    }

    /// Where the server is and who we are.
    pub fn connect_settings(&self) -> ConnectSettings {
        ConnectSettings {
            url: self.nats_url.clone(),
            creds: self.nats_creds.clone(),
            nkey: self.nats_nkey.clone(),
            tls_ca: self.tls_ca.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
        }
    }

    /// Connects a role: patient for a while, and with a word about plaintext beyond this machine.
    pub async fn connect_role(&self, name: &str) -> Result<Connection, Error> {
        let settings = self.connect_settings();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(100);
        let connection = loop {
            match settings.connect(name).await {
                Ok(connection) => break connection,
                Err(error @ ConnectError::Unreachable { .. }) if tokio::time::Instant::now() + pause < deadline => {
                    tracing::warn!(%error, "trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(error.into()),
            }
        };
        if !self.encrypted() && connection.url.split(',').any(|url| !is_loopback(url)) {
            tracing::warn!(url = connection.url, "plaintext to NATS beyond this machine: use tls:// or --tls-ca");
        }
        Ok(connection)
    }

    fn encrypted(&self) -> bool {
        let url = self.nats_url.as_deref().unwrap_or_default();
        self.tls_ca.is_some() || self.tls_cert.is_some() || url.starts_with("tls://") || url.starts_with("wss://")
    }
}

/// Whether a URL names this machine.
fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_its_host() {
        for url in ["nats://127.0.0.1:4222", "localhost", "nats://u:p@[::1]:4222", "127.0.0.9:1"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["nats://10.0.0.1:4222", "nats.example.com", "nats://127.0.0.1.example.com"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn a_level_is_a_word_or_a_filter() {
        assert!("debug".parse::<Level>().is_ok());
        assert!("info,worker=debug".parse::<Level>().is_ok());
        assert!("chatty".parse::<Level>().is_err());
    }
}
