//! How git gets a user and a token.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::secret::Secret;
use std::sync::Arc;

/// What a remote takes. The token exists in git's own child only, while it runs.
#[derive(Clone, Debug)]
pub struct Login {
    /// Whatever the host wants there; many take any word beside a token.
    pub user: String,
    /// Password or token.
    pub token: Arc<Secret>,
}

pub(super) const ORIGIN: &str = "SHOAL_GIT_ORIGIN";
pub(super) const SCHEME: &str = "SHOAL_GIT_SCHEME";
pub(super) const USER: &str = "SHOAL_GIT_USER";
pub(super) const TOKEN: &str = "SHOAL_GIT_TOKEN";

/// Git asks `Username for 'https://host': `, then `Password for 'https://user@host': `. A redirection to another host is
/// asked for by that host's name, and gets no answer. The script has no secret in it.
const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
"Username for '$SHOAL_GIT_SCHEME://$SHOAL_GIT_ORIGIN': ") printf '%s\n' "$SHOAL_GIT_USER" ;;
"Password for '$SHOAL_GIT_SCHEME://"*"@$SHOAL_GIT_ORIGIN': ") printf '%s\n' "$SHOAL_GIT_TOKEN" ;;
*) exit 1 ;;
esac
"#;

/// Writes the script, by a rename: another git may be running it.
pub(super) async fn write(own: &Path) -> io::Result<PathBuf> {
    let (path, new) = (own.join("askpass"), own.join(format!("askpass.{}", std::process::id())));
    tokio::fs::write(&new, SCRIPT).await?;
    tokio::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o700)).await?;
    tokio::fs::rename(&new, &path).await?;
    Ok(path)
}

/// Scheme and host (with its port) of an http URL.
pub(super) fn origin(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    (matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains('@')).then_some((scheme, host))
}
