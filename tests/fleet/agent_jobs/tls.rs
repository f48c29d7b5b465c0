//! Remote and model behind real https, signed by an authority that only the worker's environment names.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use schemas::{Code, State};
use serde_json::json;

use super::host::Host;
use super::{World, mends, succeeded};
use crate::support::python::Python;
use crate::support::repo::RIGHT;

pub(super) const TOKEN: &str = "token-of-the-https-remote";

/// TLS in front of a plain server, until it is dropped.
pub(super) struct Front {
    server: Python,
    /// `https://localhost:PORT`.
    pub(super) url: String,
}

impl Front {
    pub(super) fn of(plain: &str, folder: &Path) -> Self {
        let port = plain.trim_start_matches("http://").split(['/', ':']).nth(1).expect("a port");
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        let args = [("--to", OsStr::new(port)), ("--cert", cert.as_os_str()), ("--key", key.as_os_str())];
        let server = Python::start("tls/front.py", args.iter().flat_map(|(flag, value)| [OsStr::new(flag), value]));
        Self { url: format!("https://localhost:{}", server.port), server }
    }

    pub(super) fn port(&self) -> u16 {
        self.server.port
    }
}

/// A certificate for these names that nobody knows, in the folder.
pub(super) fn certificate(folder: &Path, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=test", "-addext", &format!("subjectAltName={}", names.join(",")), "-addext"])
        .args(["basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl runs").success());
}

#[tokio::test]
async fn https_with_certificates_of_ones_own_is_believed_where_the_worker_is_told_of_them() {
    let world = World::of(mends()).await;
    let folder = world.fleet.folder().to_owned();
    certificate(&folder, &["localhost"]);
    let host = Host::of(world.fleet.folder(), "x-access-token", TOKEN).await;
    let (remote, model) = (Front::of(&host.url, &folder), Front::of(&world.model.endpoint, &folder));
    let job = world.job(json!({"repository": format!("{}/remote.git", remote.url)}));
    let builder = |name: &str| {
        let builder = world.builder(name).queues(name).env("GIT_TOKEN", TOKEN);
        let builder = builder.env("SHOAL_ALLOWED_REPOSITORIES", &format!("{}/**", remote.url));
        builder.env("SHOAL_MODEL_ENDPOINT", &format!("{}/v1", model.url))
    };
    // Whom nobody told believes nobody.
    let _stranger = builder("stranger").start().await;
    let record = world.fleet.run("stranger.t", &job).await;
    let error = record.error.as_ref().expect("an error");
    assert_eq!((record.state, error.code), (State::Failed, Code::RepositoryUnreachable), "{error:?}");
    assert!(error.message.contains("certificate"), "{error:?}");

    let _worker = builder("w").env("SSL_CERT_FILE", &folder.join("cert.pem").display().to_string()).start().await;
    let record = world.fleet.run("w.t", &job).await;
    succeeded(&record);
    assert_eq!(world.repo.file("feature/task-t-add-do-not-subtract", "add.sh").as_deref(), Some(RIGHT));
    world.model_is_content();
}
