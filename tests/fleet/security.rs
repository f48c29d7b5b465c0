//! Credentials and TLS to NATS (X2).

use std::path::Path;
use std::process::Command;

use async_nats::ConnectOptions;
use schemas::State;

use crate::support::{Client, Fleet, FleetBuilder, Nats, Operator, noop, shell};

/// The whole way once: stores, a worker, a task, a command.
async fn works(fleet: Fleet) {
    let _worker = fleet.worker("w").start().await;
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
    assert_eq!(fleet.run("default.b", &shell("true")).await.state, State::Succeeded);
    assert_eq!(fleet.shoal(&["run", "--", "sh", "-c", "exit 7"]).await.code, 7);
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
}

/// The same fleet without what lets it in.
async fn refused(url: &str, variables: &[(&str, &str)]) {
    let nobody = Fleet::builder().bare().start().await;
    let mut env = vec![("SHOAL_NATS_URL", url)];
    env.extend(variables);
    let output = nobody.spawn_with(&["list"], "", &env).wait().await;
    assert_eq!(output.code, 3, "{output:?}");
}

fn env(fleet: FleetBuilder, name: &str, path: &Path) -> FleetBuilder {
    fleet.env(name, &path.display().to_string())
}

#[tokio::test]
async fn a_credentials_file_lets_in() {
    let operator = Operator::new();
    let nats = Nats::with("nats", |_| operator.settings.clone()).await;
    let file = nats.folder().join("worker.creds");
    std::fs::write(&file, &operator.credentials).expect("written");
    let options = ConnectOptions::with_credentials(&operator.credentials).expect("credentials");
    let client = Client::connect_with(options, &nats.url(), "shoal").await;
    works(env(Fleet::builder(), "SHOAL_NATS_CREDS", &file).with_client(&nats.url(), client).await).await;
    refused(&nats.url(), &[]).await;
}

#[tokio::test]
async fn an_nkey_lets_in() {
    let pair = nkeys::KeyPair::new_user();
    let seed = pair.seed().expect("a pair made here has its seed");
    let settings = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", pair.public_key());
    let nats = Nats::with("nats", |_| settings).await;
    let file = nats.folder().join("worker.nk");
    std::fs::write(&file, &seed).expect("written");
    let client = Client::connect_with(ConnectOptions::with_nkey(seed), &nats.url(), "shoal").await;
    works(env(Fleet::builder(), "SHOAL_NATS_NKEY", &file).with_client(&nats.url(), client).await).await;
    refused(&nats.url(), &[]).await;
}

#[tokio::test]
async fn user_and_password_of_the_url_let_in() {
    let settings = "authorization { user: me, password: \"s3cret\" }".to_owned();
    let nats = Nats::with("nats", |_| settings).await;
    let url = nats.url().replace("nats://", "nats://me:s3cret@");
    let options = ConnectOptions::with_user_and_password("me".into(), "s3cret".into());
    let client = Client::connect_with(options, &nats.url(), "shoal").await;
    works(Fleet::builder().with_client(&url, client).await).await;
    refused(&nats.url(), &[]).await;
}

/// A CA, and one certificate for the server and one for the client, made by openssl.
fn certificates(folder: &Path) {
    let openssl = |args: &str| {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(folder).output().expect("openssl");
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Shoal-test-CA -keyout ca.key -out ca.pem");
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let extensions = format!("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={usage}\n");
        std::fs::write(folder.join("extensions"), extensions).expect("written");
        openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
        ));
    }
}

#[tokio::test]
async fn mutual_tls_lets_in_who_has_a_certificate() {
    let nats = Nats::with("tls", |folder| {
        certificates(folder);
        let folder = folder.display();
        format!(
            "tls {{ cert_file: \"{folder}/server.pem\", key_file: \"{folder}/server.key\", \
             ca_file: \"{folder}/ca.pem\", verify: true }}"
        )
    })
    .await;
    let file = |name: &str| nats.folder().join(name);
    let options = ConnectOptions::new()
        .add_root_certificates(file("ca.pem"))
        .add_client_certificate(file("client.pem"), file("client.key"))
        .require_tls(true);
    let client = Client::connect_with(options, &nats.url(), "shoal").await;
    let mut fleet = Fleet::builder();
    for (name, of) in [("SHOAL_TLS_CA", "ca.pem"), ("SHOAL_TLS_CERT", "client.pem"), ("SHOAL_TLS_KEY", "client.key")] {
        fleet = env(fleet, name, &file(of));
    }
    works(fleet.with_client(&nats.url(), client).await).await;
    // No certificate of ours; and a server whose authority we do not trust.
    refused(&nats.url(), &[("SHOAL_TLS_CA", &file("ca.pem").display().to_string())]).await;
    refused(&nats.url(), &[]).await;
}

#[tokio::test]
async fn a_certificate_needs_its_key() {
    let fleet = Fleet::start().await;
    fleet.shoal(&["--tls-cert", "/tmp/a.pem", "list"]).await.exit(2);
}
