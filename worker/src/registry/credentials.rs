//! Passwords of registries, where `docker login` keeps them. They are never logged.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::image::HUB;

/// What `docker login` calls the hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Where passwords are looked for.
#[derive(Clone, Debug)]
pub struct Credentials {
    file: Option<PathBuf>,
}

/// What is told to a registry of who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: Option<String>,
    /// The user's password; none where a token stands for it.
    pub password: Option<String>,
    /// A token that stands for the password, in the protocol of Docker's engine alone.
    pub identity_token: Option<String>,
    /// A token that the registry itself takes.
    pub registry_token: Option<String>,
    /// The registry as `docker login` calls it.
    pub server: String,
}

impl Login {
    /// For a registry that is spoken to without an engine.
    pub(super) fn auth(self) -> RegistryAuth {
        match self {
            Self { registry_token: Some(token), .. } => RegistryAuth::Bearer(token),
            Self { username: Some(username), password: Some(password), .. } => RegistryAuth::Basic(username, password),
            _ => RegistryAuth::Anonymous,
        }
    }
}

/// Nothing of it but whose it is.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("server", &self.server).finish_non_exhaustive()
    }
}

/// What was found for one registry.
#[derive(Default)]
pub struct Found {
    /// The login.
    pub login: Option<Login>,
    /// What people should know where none were found.
    pub remark: Option<String>,
}

impl Credentials {
    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub fn of_this_user() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
        Self { file: folder.map(|folder| folder.join("config.json")) }
    }

    /// This file.
    pub fn of_file(file: PathBuf) -> Self {
        Self { file: Some(file) }
    }

    /// For one registry, read anew each time: a login needs no restart.
    pub async fn find(&self, registry: &str) -> Found {
        let Some(file) = &self.file else { return Found::default() };
        let bytes = match tokio::fs::read(file).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Found::default(),
            Err(error) => return Found::without(format!("{} cannot be read: {error}", file.display())),
        };
        match serde_json::from_slice::<File>(&bytes) {
            Ok(config) => config.find(registry),
            // The error would quote what it could not read.
            Err(_) => Found::without(format!("{} is no configuration of Docker", file.display())),
        }
    }
}

impl Found {
    fn without(why: String) -> Self {
        Self { login: None, remark: Some(format!("pulled without a login: {why}")) }
    }
}

/// Whether there are any, and nothing of them.
impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("any", &self.login.is_some()).field("remark", &self.remark).finish()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(alias = "identityToken")]
    identitytoken: Option<String>,
    #[serde(alias = "registryToken")]
    registrytoken: Option<String>,
}

impl File {
    fn find(&self, registry: &str) -> Found {
        let key = if registry == HUB { HUB_KEY } else { registry };
        let auth =
            self.auths.get(key).or_else(|| self.auths.iter().find(|(of, _)| host(of) == host(key)).map(|(_, a)| a));
        if let Some(login) = auth.and_then(|auth| auth.login(key)) {
            return Found { login: Some(login), remark: None };
        }
        let helper = self.cred_helpers.iter().find(|(of, _)| host(of) == host(key)).map(|(_, helper)| helper);
        match helper.or(self.creds_store.as_ref().filter(|store| !store.is_empty())) {
            Some(helper) => Found::without(format!("the credential helper `{helper}` is not asked, only `auths`")),
            None => Found::default(),
        }
    }
}

impl Auth {
    fn login(&self, key: &str) -> Option<Login> {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let decoded = self.auth.as_ref().and_then(|auth| STANDARD.decode(auth.trim()).ok());
        let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let (username, password) = match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((name, word)) => (Some(name.to_owned()), Some(word.trim_end_matches('\0').to_owned())),
            None => (some(&self.username), some(&self.password)),
        };
        let (identity_token, registry_token) = (some(&self.identitytoken), some(&self.registrytoken));
        let any = username.is_some() || identity_token.is_some() || registry_token.is_some();
        any.then(|| Login {
            username,
            // The token stands for the password.
            password: if identity_token.is_some() { None } else { password },
            identity_token,
            registry_token,
            server: key.to_owned(),
        })
    }
}

/// Keys are written with and without scheme and path.
fn host(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    bare.split('/').next().unwrap_or(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, registry: &str) -> (Option<Login>, Option<String>) {
        let found = serde_json::from_str::<File>(json).unwrap().find(registry);
        (found.login, found.remark)
    }

    /// User and password, as the engine is told.
    fn pair(json: &str, registry: &str) -> Option<(String, String)> {
        let found = find(json, registry).0?;
        Some((found.username?, found.password?))
    }

    #[test]
    fn a_login_is_found_however_its_registry_is_written() {
        let joe = Some(("joe".to_owned(), "pa:ss".to_owned()));
        let auth = STANDARD.encode("joe:pa:ss");
        for (key, registry) in [
            ("ghcr.io", "ghcr.io"),
            ("https://ghcr.io", "ghcr.io"),
            ("https://ghcr.io/v2/", "ghcr.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("https://index.docker.io/v1/", "docker.io"),
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}},"credsStore":"desktop"}}"#);
            assert_eq!(pair(&json, registry), joe, "{key}");
            assert_eq!(pair(&json, "evil.example"), None, "{key}");
            assert_eq!(find(&json, registry).1, None);
        }
        let plain = r#"{"auths":{"ghcr.io":{"username":"joe","password":"pa:ss"}}}"#;
        assert_eq!(pair(plain, "ghcr.io"), joe);
        let token = r#"{"auths":{"ghcr.io":{"auth":"PHRva2VuPjo=","identitytoken":"t"}}}"#;
        assert_eq!(find(token, "ghcr.io").0.and_then(|found| found.identity_token).as_deref(), Some("t"));
    }

    #[test]
    fn a_helper_that_is_not_asked_is_told() {
        let store = r#"{"auths":{"ghcr.io":{}},"credsStore":"desktop"}"#;
        assert!(find(store, "ghcr.io").1.is_some_and(|remark| remark.contains("`desktop`")));
        let helper = r#"{"credHelpers":{"ghcr.io":"gcloud"}}"#;
        assert!(find(helper, "ghcr.io").1.is_some_and(|remark| remark.contains("`gcloud`")));
        assert_eq!(find(helper, "quay.io"), (None, None));
        assert_eq!(find("{}", "quay.io"), (None, None));
    }

    #[tokio::test]
    async fn nothing_of_a_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        assert!(Credentials::of_file(file.clone()).find("a").await.remark.is_none(), "no file is fine");
        std::fs::write(&file, r#"{"auths":{"a":{"auth":"c2VjcmV0"}},"#).unwrap();
        let found = Credentials::of_file(file.clone()).find("a").await;
        assert!(found.remark.as_ref().is_some_and(|remark| !remark.contains("c2VjcmV0")), "{found:?}");
        std::fs::write(&file, format!(r#"{{"auths":{{"a":{{"auth":"{}"}}}}}}"#, STANDARD.encode("u:secret"))).unwrap();
        let found = Credentials::of_file(file).find("a").await;
        assert!(found.login.is_some() && !format!("{found:?}").contains("secret"));
    }
}
