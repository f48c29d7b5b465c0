//! Why an image is not pulled.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use oci_client::errors::{OciDistributionError, OciErrorCode};
use schemas::Code;

use crate::runtime::StartError;

/// Why an image is not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry has none of that name, or does not show it to strangers.
    #[error("the registry `{registry}` has no image `{image}` for us: {why}")]
    NotFound {
        /// Whole name.
        image: String,
        /// Whose word.
        registry: String,
        /// What it said.
        why: String,
    },
    /// It does not take our user and password.
    #[error("the registry `{registry}` refuses the login that this worker has for it: {why}")]
    LoginRefused {
        /// Whose word.
        registry: String,
        /// What it said.
        why: String,
    },
    /// It is not who it says it is, as far as this worker can tell.
    #[error(
        "the certificate of the registry `{registry}` is not to be trusted ({why}); its authority can be named as `ca` in \
         the setting `registries`"
    )]
    Untrusted {
        /// The registry.
        registry: String,
        /// What is wrong with the certificate.
        why: String,
    },
    /// The image is for other machines, or no image at all.
    #[error("the image `{image}` cannot be used: {why}")]
    Invalid {
        /// Whole name.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// What came is not what was asked for, however often.
    #[error("a part of the image `{image}` is not what its digest says: {why}")]
    Digest {
        /// Whole name.
        image: String,
        /// The digest, and what is wrong.
        why: String,
    },
    /// The registry cannot be reached, or failed; it may pass.
    #[error("the image `{image}` cannot be pulled: {why}")]
    Passing {
        /// Whole name.
        image: String,
        /// What was seen.
        why: String,
    },
    /// A file of the settings cannot be used.
    #[error("the setting of the registry `{registry}` cannot be used: {why}")]
    Setting {
        /// The registry.
        registry: String,
        /// Which file and why.
        why: String,
    },
    /// No room, or no rights.
    #[error("what is pulled cannot be written to {path}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl PullError {
    /// From the table.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::ImageNotFound,
            Self::LoginRefused { .. } => Code::RegistryLoginRefused,
            Self::Untrusted { .. } => Code::RegistryUntrusted,
            Self::Invalid { .. } => Code::InvalidImage,
            Self::Digest { .. } | Self::Passing { .. } | Self::Setting { .. } | Self::Write { .. } => {
                Code::ImagePullFailed
            }
        }
    }

    /// The error with its cause, for people.
    pub fn words(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    /// As a start tells it.
    pub fn to_start_error(&self) -> StartError {
        StartError::Refused { code: self.code(), message: self.words() }
    }

    /// Whether the same request may go well in a moment.
    pub(super) fn may_pass_soon(&self) -> bool {
        matches!(self, Self::Passing { .. })
    }

    /// What the client library tells. `is_known`: a user and a password were sent.
    pub(super) fn of(error: OciDistributionError, image: &str, registry: &str, is_known: bool) -> Self {
        let (image, registry) = (image.to_owned(), registry.to_owned());
        let refused = |why: String| match is_known {
            true => Self::LoginRefused { registry: registry.clone(), why },
            // A registry says the same of what it does not have.
            false => Self::NotFound { image: image.clone(), registry: registry.clone(), why },
        };
        match error {
            OciDistributionError::RequestError(error) => Self::of_request(error, image, registry),
            OciDistributionError::AuthenticationFailure(why) => refused(short(&why)),
            OciDistributionError::UnauthorizedError { .. } => refused("not authorized".to_owned()),
            OciDistributionError::RegistryError { envelope, .. } => {
                let said = envelope.errors.iter().map(|error| format!("{:?} {}", error.code, error.message));
                let why = short(&said.collect::<Vec<_>>().join(", "));
                match envelope.errors.first().map(|error| &error.code) {
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => refused(why),
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NameInvalid
                        | OciErrorCode::NotFound,
                    ) => Self::NotFound { image, registry, why },
                    _ => Self::Passing { image, why },
                }
            }
            OciDistributionError::ServerError { code: 401 | 403, message, .. } => refused(short(&message)),
            OciDistributionError::ServerError { code: 404, message, .. } => {
                Self::NotFound { image, registry, why: short(&message) }
            }
            OciDistributionError::ServerError { code, message, .. } => {
                Self::Passing { image, why: format!("the registry answers {code} {}", short(&message)) }
            }
            error @ (OciDistributionError::VersionedParsingError(_)
            | OciDistributionError::ManifestParsingError(_)
            | OciDistributionError::ManifestEncodingError(_)
            | OciDistributionError::UnsupportedMediaTypeError(_)
            | OciDistributionError::UnsupportedSchemaVersionError(_)) => {
                Self::Invalid { image, why: short(&error.to_string()) }
            }
            OciDistributionError::DigestError(error) => Self::Digest { image, why: error.to_string() },
            error => Self::Passing { image, why: short(&error.to_string()) },
        }
    }

    fn of_request(error: impl std::error::Error, image: String, registry: String) -> Self {
        // What happened is told only by the last cause.
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            why = cause.to_string();
            source = cause.source();
        }
        if let Some((_, what)) = why.split_once("invalid peer certificate: ") {
            return Self::Untrusted { registry, why: what.to_owned() };
        }
        if why.contains("InvalidContentType") {
            why = format!(
                "the registry `{registry}` does not speak TLS; if it is to be trusted without, say `scheme: http`"
            );
        }
        Self::Passing { image, why }
    }
}

/// A registry may answer with a page.
fn short(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    line.chars().take(300).collect()
}
