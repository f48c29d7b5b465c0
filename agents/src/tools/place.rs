//! A place below the workspace's root, as a model names it.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// A path below the root: no `..`, no root, no `.git`, no zero byte. Empty is the root itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(PathBuf);

/// Why a path names no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// It leads out of the workspace, or would.
    #[error("{0}: only paths below the workspace's root are allowed, written relative to it, without `..`")]
    Outside(String),
    /// It is git's own.
    #[error("{0}: `.git` is not yours to touch")]
    Git(String),
    /// It names the root where a file is wanted.
    #[error("a path below the workspace's root is needed")]
    Root,
}

impl Place {
    /// What a model wrote. A path that begins with `root`, the workspace as commands see it, is taken for one below it.
    pub fn parse(text: &str, root: &Path) -> Result<Self, PlaceError> {
        let given = Path::new(text.trim_end_matches('\n'));
        let below = given.strip_prefix(root).unwrap_or(given);
        let outside = || PlaceError::Outside(text.chars().take(200).collect());
        let mut place = PathBuf::new();
        for component in below.components() {
            match component {
                Component::Normal(name) if is_git(name) => {
                    return Err(PlaceError::Git(text.chars().take(200).collect()));
                }
                Component::Normal(name) => place.push(name),
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) | Component::ParentDir => return Err(outside()),
            }
        }
        if text.contains('\0') || place.as_os_str().len() > 4000 { Err(outside()) } else { Ok(Self(place)) }
    }

    /// The same for a file: never the root.
    pub fn file(text: &str, root: &Path) -> Result<Self, PlaceError> {
        let place = Self::parse(text, root)?;
        if place.is_root() { Err(PlaceError::Root) } else { Ok(place) }
    }

    /// The root.
    pub fn root() -> Self {
        Self(PathBuf::new())
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// Relative to the root.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file or folder in it, unless it is git's own.
    pub fn join(&self, name: &OsStr) -> Option<Self> {
        (!is_git(name)).then(|| Self(self.0.join(name)))
    }

    /// The folder that it is in, and its name in there; none for the root.
    pub fn split(&self) -> Option<(Self, &OsStr)> {
        Some((Self(self.0.parent()?.to_owned()), self.0.file_name()?))
    }
}

/// Whether git takes a name for its own, on any file system.
fn is_git(name: &OsStr) -> bool {
    name.eq_ignore_ascii_case(".git") || name.eq_ignore_ascii_case("git~1")
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_root() { f.write_str(".") } else { self.0.display().fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_root_are_places() {
        let root = Path::new("/work/space");
        for (text, place) in [
            ("src/a.rs", "src/a.rs"),
            ("./src//a.rs", "src/a.rs"),
            ("/work/space/src/a.rs", "src/a.rs"),
            ("", "."),
            ("/work/space", "."),
            (".gitignore", ".gitignore"),
            (".github/x", ".github/x"),
            ("a..b", "a..b"),
            (" odd name\u{7}", " odd name\u{7}"),
        ] {
            assert_eq!(Place::parse(text, root).unwrap().to_string(), place, "{text:?}");
        }
        for text in ["..", "../a", "a/../../b", "a/..", "/etc/passwd", "/work/spaces/a", "/", "a\0b"] {
            assert!(matches!(Place::parse(text, root), Err(PlaceError::Outside(_))), "{text:?}");
        }
        for text in [".git", ".git/config", "./.git/hooks/pre-commit", "sub/.git/config", ".GIT/config", "git~1/config"]
        {
            assert!(matches!(Place::parse(text, root), Err(PlaceError::Git(_))), "{text:?}");
        }
        assert_eq!(Place::file(".", root), Err(PlaceError::Root));
    }
}
