//! Names of images, as engines and registries read them. Pure.

use std::fmt;

/// The registry of a name without one.
pub const HUB: &str = "docker.io";

/// An image's name with every default filled in: `alpine` is `docker.io/library/alpine:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageName {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why something is no image's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImage {
    /// Neither registry nor path.
    #[error("its name is empty or too long")]
    Length,
    /// The part before the first `/`.
    #[error("its registry is no host with an optional port")]
    Registry,
    /// The rest.
    #[error("its path may hold a-z and 0-9, and between them `.`, `_`, `__`, `-`")]
    Path,
    /// Behind `:`.
    #[error("its tag may hold A-Z a-z 0-9 _ . - and is at most 128 characters long")]
    Tag,
    /// Behind `@`.
    #[error("its digest is not written as `sha256:` and 64 of 0-9 a-f")]
    Digest,
    /// Ids are the engine's own: they name images past every rule about names.
    #[error("it is an image id; write a name with a tag or a digest")]
    Id,
}

impl ImageName {
    /// Reads a name as `docker pull` would.
    pub fn parse(text: &str) -> Result<Self, InvalidImage> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(InvalidImage::Digest);
        }
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(InvalidImage::Tag);
        }
        let is_hash = |text: &str| text.len() == 64 && text.bytes().all(is_hex);
        if is_hash(name) || (name == "sha256" && tag.is_some_and(is_hash)) {
            return Err(InvalidImage::Id);
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => (HUB, name),
        };
        let registry = if registry == "index.docker.io" { HUB } else { registry };
        let path = if registry == HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        if name.is_empty() || registry.len() + 1 + path.len() > 255 {
            return Err(InvalidImage::Length);
        }
        if !is_host(registry) {
            return Err(InvalidImage::Registry);
        }
        if !path.split('/').all(is_component) {
            return Err(InvalidImage::Path);
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), path, tag: owned(tag), digest: owned(digest) })
    }

    /// Where it comes from, as `ghcr.io` or `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Registry and path, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// What picks one image of the repository. A digest counts alone: engines pass over the tag beside it.
    pub fn pick(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// The tag, if it decides which image it is.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref().filter(|_| self.digest.is_none())
    }

    /// The digest.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The repository as people write it, the shortest last: for the hub without its name, and without `library`.
    pub fn spellings(&self) -> Vec<String> {
        let mut all = vec![self.repository()];
        if self.registry == HUB {
            all.push(self.path.clone());
            all.extend(self.path.strip_prefix("library/").map(str::to_owned));
        }
        all
    }
}

/// The whole name, which every engine reads as this name and never as an id.
impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let between = if self.digest.is_some() { '@' } else { ':' };
        write!(f, "{}/{}{between}{}", self.registry, self.path, self.pick())
    }
}

fn is_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

fn is_digest(text: &str) -> bool {
    match text.split_once(':') {
        Some(("sha256", hash)) => hash.len() == 64 && hash.bytes().all(is_hex),
        Some(("sha512", hash)) => hash.len() == 128 && hash.bytes().all(is_hex),
        _ => false,
    }
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Whether the first part of a name is a registry and no part of a path on the hub.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let alnum = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
            alnum(label.bytes().next())
                && alnum(label.bytes().last())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    is_host && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// `a-z 0-9` with single `.`, one or two `_`, or any number of `-` between.
fn is_component(text: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = text.starts_with(alnum) && text.ends_with(alnum);
    let mut between = text.split(alnum).filter(|part| !part.is_empty());
    ends && between.all(|part| matches!(part, "." | "_" | "__") || part.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccdddddddddddddddd";

    #[test]
    fn defaults_are_filled_in() {
        for (text, whole) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("library/alpine", "docker.io/library/alpine:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/acme/x", "docker.io/acme/x:latest"),
            ("acme/x:V1.2_a-b", "docker.io/acme/x:V1.2_a-b"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/a/b__c:1", "localhost:5000/a/b__c:1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("evil.example/alpine", "evil.example/alpine:latest"),
            ("DOCKER.IO/library/alpine", "DOCKER.IO/library/alpine:latest"),
            ("Foo/bar", "Foo/bar:latest"),
            ("deadbeef", "docker.io/library/deadbeef:latest"),
        ] {
            assert_eq!(ImageName::parse(text).map(|name| name.to_string()).as_deref(), Ok(whole), "{text}");
        }
    }

    #[test]
    fn a_digest_counts_and_the_tag_beside_it_does_not() {
        let name = ImageName::parse(&format!("alpine:3@sha256:{HASH}")).unwrap();
        assert_eq!(name.to_string(), format!("docker.io/library/alpine@sha256:{HASH}"));
        assert_eq!((name.tag(), name.digest()), (None, Some(&*format!("sha256:{HASH}"))));
    }

    #[test]
    fn what_is_no_name_is_told() {
        use InvalidImage::{Digest, Id, Length, Path, Registry, Tag};
        let long = "a".repeat(300);
        for (text, why) in [
            ("", Length),
            (&long, Length),
            ("Alpine", Path),
            ("a//b", Path),
            ("/a", Path),
            ("a/", Path),
            ("a..b", Path),
            ("a___b", Path),
            ("-a", Path),
            ("a_", Path),
            ("../a", Registry),
            ("evil.example:99999/a", Registry),
            ("evil_x.example/a", Registry),
            ("a:", Tag),
            ("a:-b", Tag),
            ("a:b:c", Tag),
            ("a@sha256:abc", Digest),
            (&format!("a@sha256:{}", HASH.to_uppercase()), Digest),
            (&format!("a@md5:{HASH}"), Digest),
            ("a@", Digest),
            (HASH, Id),
            (&format!("sha256:{HASH}"), Id),
        ] {
            assert_eq!(ImageName::parse(text), Err(why), "{text}");
        }
    }
}
