//! A server in operator mode with one account and one user, signed here: what `nsc` would make, in sixty lines.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// Configuration of the server, and the credentials file of a user.
pub struct Operator {
    /// Lines for the server's configuration.
    pub settings: String,
    /// What `--nats-creds` points to.
    pub credentials: String,
}

impl Operator {
    /// New keys for everybody.
    pub fn new() -> Self {
        let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
        let operator_jwt =
            sign(&operator, &operator.public_key(), "operator", json!({"type": "operator", "version": 2}));
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1
        });
        let claims = json!({"type": "account", "version": 2, "limits": unlimited});
        let account_jwt = sign(&operator, &account.public_key(), "fleet", claims);
        // JetStream in this mode wants a system account beside.
        let system = KeyPair::new_account();
        let system_jwt = sign(&operator, &system.public_key(), "system", json!({"type": "account", "version": 2}));
        let claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
        let user_jwt = sign(&account, &user.public_key(), "worker", claims);
        let settings = format!(
            "operator: \"{operator_jwt}\"\nresolver: MEMORY\nsystem_account: {system}\n\
             resolver_preload: {{ {account}: \"{account_jwt}\", {system}: \"{system_jwt}\" }}\n",
            account = account.public_key(),
            system = system.public_key(),
        );
        let seed = user.seed().expect("a pair made here has its seed");
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        Self { settings, credentials }
    }
}

fn sign(issuer: &KeyPair, subject: &str, name: &str, claims: Value) -> String {
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body = json!({
        "jti": super::random_word(), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject,
        "nats": claims
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&body));
    let signature = issuer.sign(signed.as_bytes()).expect("a pair made here can sign");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
