//! How registries are spoken to, where the usual way is not theirs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::image::ImageName;

/// By registry, as `registry.local:5000`. A registry that is not named is spoken to by https, with the system's
/// authorities and the passwords of `docker login`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, Written>")]
pub struct RegistrySettings(BTreeMap<String, RegistrySetting>);

/// One registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrySetting {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// PEM file of authorities that are trusted beside the system's, for this registry alone. Read at each pull.
    pub ca: Option<PathBuf>,
    /// Goes before what `docker login` keeps.
    pub login: Option<(String, Password)>,
}

/// By plain text or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// TLS, the certificate verified.
    #[default]
    Https,
    /// Plain text: whoever is on the way can change what is not named by digest, and reads the password.
    Http,
}

/// Where a password is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// Here.
    Plain(String),
    /// In a file, read at each pull; a newline at its end is none of it.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => f.write_str("***"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    scheme: Scheme,
    ca: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
}

impl TryFrom<BTreeMap<String, Written>> for RegistrySettings {
    type Error = String;

    fn try_from(all: BTreeMap<String, Written>) -> Result<Self, String> {
        let one = |(registry, written): (String, Written)| {
            let named = ImageName::parse(&format!("{registry}/image"));
            if named.is_err() || named.is_ok_and(|name| name.registry() != registry) {
                return Err(format!(
                    "`{registry}` is no registry; write a host with its port, as `registry.local:5000`"
                ));
            }
            let setting = written.checked().map_err(|problem| format!("of `{registry}`: {problem}"))?;
            Ok((registry, setting))
        };
        all.into_iter().map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl Written {
    fn checked(self) -> Result<RegistrySetting, &'static str> {
        if self.scheme == Scheme::Http && self.ca.is_some() {
            return Err("`ca` is of no use with `scheme: http`; leave one of them out");
        }
        let password = match (self.password, self.password_file) {
            (Some(_), Some(_)) => return Err("it has `password` and `password_file`; leave one of them out"),
            (Some(password), None) => Some(Password::Plain(password)),
            (None, Some(file)) => Some(Password::File(file)),
            (None, None) => None,
        };
        let login = match (self.username, password) {
            (Some(username), Some(password)) if !username.is_empty() => Some((username, password)),
            (None, None) => None,
            _ => return Err("a login is `username` with `password` or `password_file`"),
        };
        Ok(RegistrySetting { scheme: self.scheme, ca: self.ca, login })
    }
}

impl RegistrySettings {
    /// Of one registry, if the settings speak of it.
    pub fn get(&self, registry: &str) -> Option<&RegistrySetting> {
        self.0.get(registry)
    }

    /// The registries that they speak of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromIterator<(String, RegistrySetting)> for RegistrySettings {
    fn from_iter<T: IntoIterator<Item = (String, RegistrySetting)>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<RegistrySettings, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_registry_is_spoken_to_as_its_setting_says() {
        let all = parse(
            r#"{"a.example": {}, "b.example:5000": {"scheme": "http", "username": "joe", "password": "secret"},
                "[::1]:5000": {"ca": "/etc/ca.pem", "username": "joe", "password_file": "/run/secret"}}"#,
        );
        let all = all.unwrap();
        assert_eq!(all.get("a.example"), Some(&RegistrySetting::default()));
        assert_eq!(all.get("b.example:5000").unwrap().scheme, Scheme::Http);
        assert_eq!(all.get("[::1]:5000").unwrap().ca, Some("/etc/ca.pem".into()));
        assert_eq!(all.get("b.example"), None, "another port is another registry");
        assert!(!format!("{all:?}").contains("secret\""), "{all:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        for (json, words) in [
            (r#"{"a.example": {"shceme": "http"}}"#, "unknown field `shceme`"),
            (r#"{"a.example": {"scheme": "ftp"}}"#, "unknown variant `ftp`"),
            (r#"{"https://a.example": {}}"#, "`https://a.example` is no registry"),
            (r#"{"a.example/path": {}}"#, "`a.example/path` is no registry"),
            (r#"{"library": {}}"#, "`library` is no registry"),
            (r#"{"": {}}"#, "`` is no registry"),
            (r#"{"a.example": {"scheme": "http", "ca": "/x"}}"#, "of `a.example`: `ca` is of no use"),
            (r#"{"a.example": {"username": "joe"}}"#, "a login is `username` with"),
            (r#"{"a.example": {"password": "p"}}"#, "a login is `username` with"),
            (r#"{"a.example": {"username": "", "password": "p"}}"#, "a login is `username` with"),
            (r#"{"a.example": {"username": "j", "password": "p", "password_file": "/x"}}"#, "leave one of them out"),
        ] {
            let problem = parse(json).unwrap_err();
            assert!(problem.contains(words), "{json}: {problem}");
        }
    }
}
