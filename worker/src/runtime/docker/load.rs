//! Images of registries that the settings speak of: pulled by this worker, handed to the engine as an archive.
//!
//! An engine keeps repository digests only of what it pulled itself. What is handed to it stands under its name; an image
//! that is asked for by digest has none, and stands under a name of our own: [`pinned`].

use std::io::Cursor;
use std::path::Path;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::ImportImageOptionsBuilder;
use futures_util::TryStreamExt;
use serde_json::json;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::ReaderStream;

use crate::image::ImageName;
use crate::registry::{Blob, Pulled};

/// A registry that can never be: nobody can push or pull what stands below it (RFC 2606), and who may not use an image by
/// its own name is not allowed this one either.
const PINNED: &str = "shoal-pinned.invalid";
/// Room for the next piece of an archive.
const PIECE: usize = 256 << 10;

/// What an image that is asked for by digest is called on the engine; `None` of one by tag. The digest is verified before
/// it is called so, and stands in the tag.
pub(super) fn pinned(name: &ImageName) -> Option<String> {
    let (_, hash) = name.digest()?.split_once(':')?;
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let words: String = name.repository().to_ascii_lowercase().chars().map(plain).collect();
    let words: Vec<_> = words.split('-').filter(|word| !word.is_empty()).collect();
    Some(format!("{PINNED}/{}:{hash}", words.join("-")))
}

/// Hands it over under this name. Cancel safe: an archive that breaks off is no image.
pub(super) async fn load(docker: &Docker, name: &str, pulled: &Pulled) -> Result<(), Error> {
    let archive = archive(name, pulled).await.map_err(|err| Error::IOError { err })?;
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let pieces = ReaderStream::with_capacity(archive, PIECE);
    docker.import_image_stream(options, pieces, None).try_collect::<Vec<_>>().await.map(drop)
}

/// As `docker save` writes it, which every engine reads. Layers stay as they are; engines unpack them by their first bytes.
async fn archive(name: &str, pulled: &Pulled) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    let file = |blob: &Blob| blob.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let config = format!("{}.json", file(&pulled.config));
    let layer = |blob: &Blob| format!("{}.tar", file(blob));
    let layers: Vec<_> = pulled.layers.iter().map(layer).collect();
    let manifest = json!([{"Config": config, "RepoTags": [name], "Layers": layers}]).to_string().into_bytes();

    let mut all: Box<dyn AsyncRead + Send + Unpin> =
        Box::new(entry("manifest.json", manifest.len() as u64, Cursor::new(manifest))?);
    let mut add = async |name: &str, path: &Path, size: u64| {
        let before = std::mem::replace(&mut all, Box::new(tokio::io::empty()));
        all = Box::new(before.chain(entry(name, size, File::open(path).await?)?));
        std::io::Result::Ok(())
    };
    add(&config, &pulled.config.path, pulled.config.size).await?;
    for (at, blob) in pulled.layers.iter().enumerate() {
        // The same layer may be there twice; its file needs to be there once.
        if !layers[..at].contains(&layers[at]) {
            add(&layers[at], &blob.path, blob.size).await?;
        }
    }
    // Two empty blocks end an archive.
    Ok(Box::new(all.chain(Cursor::new(vec![0; 1024]))))
}

fn entry(
    name: &str,
    size: u64,
    content: impl AsyncRead + Send + Unpin + 'static,
) -> std::io::Result<impl AsyncRead + Send + Unpin + 'static> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let padding = usize::try_from(size.next_multiple_of(512) - size).expect("less than a block");
    Ok(Cursor::new(header.as_bytes().to_vec()).chain(content).chain(Cursor::new(vec![0; padding])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_by_digest_has_a_name_that_nobody_can_push() {
        let hash = "a".repeat(64);
        let name = |text: &str| ImageName::parse(&text.replace('#', &format!("@sha256:{hash}"))).unwrap();
        assert_eq!(pinned(&name("registry.local:5000/app:1")), None);
        for (image, expected) in [
            ("registry.local:5000/app#", "registry-local-5000-app"),
            ("registry.local:5000/deep/my_app:1#", "registry-local-5000-deep-my-app"),
            ("[::1]:5000/app#", "1-5000-app"),
        ] {
            let pinned = pinned(&name(image)).unwrap();
            assert_eq!(pinned, format!("shoal-pinned.invalid/{expected}:{hash}"));
            ImageName::parse(&pinned).unwrap();
        }
        let long = ImageName::parse(&format!("a@sha512:{}", "b".repeat(128))).unwrap();
        ImageName::parse(&pinned(&long).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn an_archive_holds_every_file_once() {
        let folder = tempfile::tempdir().unwrap();
        let blob = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(format!("sha256-{name}"));
            std::fs::write(&path, bytes).unwrap();
            Blob { digest: format!("sha256:{name}"), media_type: String::new(), size: bytes.len() as u64, path }
        };
        let (config, one, two) = (blob("c", b"{}"), blob("1", &[7; 512]), blob("2", b"two"));
        let layers = vec![one.clone(), two, one];
        let pulled = Pulled { digest: "sha256:m".into(), manifest: blob("m", b"m"), config, layers };
        let mut bytes = Vec::new();
        archive("r/a:1", &pulled).await.unwrap().read_to_end(&mut bytes).await.unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let files: Vec<(String, Vec<u8>)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
                (entry.path().unwrap().display().to_string(), bytes)
            })
            .collect();
        let manifest: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
        let layers = ["sha256-1.tar", "sha256-2.tar", "sha256-1.tar"];
        assert_eq!(manifest, json!([{"Config": "sha256-c.json", "RepoTags": ["r/a:1"], "Layers": layers}]));
        let rest: Vec<_> = files[1..].iter().map(|(name, bytes)| (name.as_str(), bytes.len())).collect();
        assert_eq!(rest, [("sha256-c.json", 2), ("sha256-1.tar", 512), ("sha256-2.tar", 3)]);
    }
}
