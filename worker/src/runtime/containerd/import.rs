//! Images out of archives, as `docker save` and tools of OCI write them: without any registry.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use containerd_client::types::Descriptor;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::content::Piece;
use super::image::{Images, ImportError, Target, is_for, read, sha256};
use crate::image::ImageName;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Where lists give names to what they list.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image of an archive.
struct Packed {
    names: Vec<ImageName>,
    manifest: Descriptor,
}

/// What `docker save` says of one image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Target>,
}

/// All of an archive: its images, and where each blob is.
struct Archive {
    images: Vec<Packed>,
    blobs: HashMap<String, Piece>,
    /// Manifests that the archive does not have as files.
    _made: Option<made::Folder>,
}

impl Images {
    /// Imports every image for this machine of an archive, by `docker save` or of OCI's layout. Returns their names.
    pub(super) async fn import(&self, archive: &Path, architecture: &'static str) -> Result<Vec<String>, ImportError> {
        let path = archive.to_owned();
        let opened = tokio::task::spawn_blocking(move || open(&path, architecture)).await;
        let archive = opened.unwrap_or_else(|_| Err(ImportError::Archive("reading it panicked".to_owned())))?;
        let engine = self.engine();
        let lease = engine.lease().await?;
        let mut names = Vec::new();
        let storing = async {
            for image in archive.images {
                let manifest = self.store(&lease, image.manifest, &archive.blobs).await?;
                for name in image.names {
                    self.name(&name, manifest.clone()).await?;
                    names.push(name.to_string());
                }
            }
            Ok(())
        };
        let stored: Result<(), ImportError> = storing.await;
        engine.give_back(lease).await;
        stored.map(|()| names)
    }
}

/// Files of our own beside the archive, gone with the value.
mod made {
    use std::path::{Path, PathBuf};

    pub(super) struct Folder(PathBuf);

    impl Folder {
        pub(super) fn new() -> std::io::Result<Self> {
            let path = std::env::temp_dir().join(format!("shoal-import-{:016x}", rand::random::<u64>()));
            std::fs::create_dir(&path)?;
            Ok(Self(path))
        }

        pub(super) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn open(path: &Path, architecture: &str) -> Result<Archive, ImportError> {
    let files = files(path)?;
    if let Some(piece) = files.get(Path::new("manifest.json")).filter(|_| !files.contains_key(Path::new("index.json")))
    {
        return saved(&files, &read(piece)?);
    }
    let Some(piece) = files.get(Path::new("index.json")) else {
        return Err(ImportError::Archive("it has neither index.json nor manifest.json".to_owned()));
    };
    let index: Index =
        serde_json::from_slice(&read(piece)?).map_err(|error| ImportError::Archive(error.to_string()))?;
    let blobs: HashMap<String, Piece> = files
        .into_iter()
        .filter_map(|(path, piece)| {
            let mut parts = path.components().rev().map(|part| part.as_os_str().to_str());
            let (hash, algorithm, blobs) = (parts.next()??, parts.next()??, parts.next()??);
            (blobs == "blobs").then(|| (format!("{algorithm}:{hash}"), piece))
        })
        .collect();
    let images = index.manifests.into_iter().filter(|target| is_for(target, architecture)).map(|target| {
        let name = NAMES.iter().find_map(|name| target.annotations.get(*name));
        let name = name.ok_or_else(|| ImportError::Archive("its index gives an image no name".to_owned()))?;
        Ok(Packed { names: vec![parse(name)?], manifest: one(target, &blobs, architecture)? })
    });
    Ok(Archive { images: images.collect::<Result<_, ImportError>>()?, blobs, _made: None })
}

/// The manifest itself, where the index names a list.
fn one(target: Target, blobs: &HashMap<String, Piece>, architecture: &str) -> Result<Descriptor, ImportError> {
    if !target.media_type.contains("index") && !target.media_type.contains("manifest.list") {
        return Ok(target.into());
    }
    let piece =
        blobs.get(&target.digest).ok_or_else(|| ImportError::Archive(format!("{} is missing", target.digest)))?;
    let list: Index = serde_json::from_slice(&read(piece)?).map_err(|error| ImportError::Archive(error.to_string()))?;
    let mut fits = list.manifests.into_iter().filter(|of| is_for(of, architecture) && blobs.contains_key(&of.digest));
    let fits = fits.next().ok_or_else(|| ImportError::Archive("it has nothing for this machine".to_owned()))?;
    Ok(fits.into())
}

fn parse(name: &str) -> Result<ImageName, ImportError> {
    ImageName::parse(name).map_err(|why| ImportError::Archive(format!("`{name}` is no name of an image: {why}")))
}

/// What `docker save` wrote; manifests are made of what it says, its layers are plain tars.
fn saved(files: &HashMap<PathBuf, Piece>, manifest: &[u8]) -> Result<Archive, ImportError> {
    let images: Vec<Saved> =
        serde_json::from_slice(manifest).map_err(|error| ImportError::Archive(error.to_string()))?;
    let folder = made::Folder::new()?;
    let mut blobs = HashMap::new();
    let mut take = |path: &str| {
        let piece = files.get(&plain(Path::new(path)));
        let piece = piece.cloned().ok_or_else(|| ImportError::Archive(format!("the file {path} is missing")))?;
        let digest = digest(&piece)?;
        blobs.insert(digest.clone(), piece.clone());
        Ok::<_, ImportError>((digest, piece.size, kind(&piece)?))
    };
    let mut packed = Vec::new();
    for (at, image) in images.into_iter().enumerate() {
        let (config, size, _) = take(&image.config)?;
        let config = json!({"mediaType": CONFIG, "digest": config, "size": size});
        let mut layers = Vec::new();
        for layer in &image.layers {
            let (digest, size, suffix) = take(layer)?;
            layers.push(json!({"mediaType": format!("{LAYER}{suffix}"), "digest": digest, "size": size}));
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let bytes = manifest.to_string().into_bytes();
        let file = folder.path().join(at.to_string());
        std::fs::write(&file, &bytes)?;
        let names = image.repo_tags.unwrap_or_default().iter().map(|name| parse(name)).collect::<Result<_, _>>()?;
        packed.push((names, sha256(&bytes), Piece { file, offset: 0, size: bytes.len() as u64 }));
    }
    let images = packed.into_iter().map(|(names, digest, piece)| {
        let size = piece.size as i64;
        blobs.insert(digest.clone(), piece);
        let manifest = Descriptor { media_type: MANIFEST.to_owned(), digest, size, annotations: HashMap::new() };
        Packed { names, manifest }
    });
    Ok(Archive { images: images.collect(), blobs, _made: Some(folder) })
}

fn digest(piece: &Piece) -> io::Result<String> {
    let mut file = File::open(&piece.file)?;
    file.seek(SeekFrom::Start(piece.offset))?;
    let (mut hash, mut left) = (Sha256::new(), file.take(piece.size));
    let mut bytes = vec![0; 1 << 20];
    loop {
        match left.read(&mut bytes)? {
            0 => break,
            read => hash.update(&bytes[..read]),
        }
    }
    Ok(format!("sha256:{}", hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// How a layer is packed, as its media type ends.
fn kind(piece: &Piece) -> io::Result<&'static str> {
    let start = read(&Piece { size: piece.size.min(4), ..piece.clone() })?;
    Ok(match start[..] {
        [0x1f, 0x8b, ..] => "+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
        _ => "",
    })
}

/// Where each file lies in the archive itself; a link to another is where that lies.
fn files(path: &Path) -> io::Result<HashMap<PathBuf, Piece>> {
    let mut archive = tar::Archive::new(File::open(path)?);
    let (mut files, mut links) = (HashMap::new(), Vec::new());
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = plain(&entry.path()?);
        match (entry.header().entry_type(), entry.link_name()?) {
            (kind, Some(link)) if kind.is_symlink() => {
                let link = name.parent().unwrap_or(Path::new("")).join(link);
                links.push((name, plain(&link)));
            }
            (kind, Some(link)) if kind.is_hard_link() => links.push((name, plain(&link))),
            (kind, _) if kind.is_file() => {
                let (offset, size) = (entry.raw_file_position(), entry.size());
                files.insert(name, Piece { file: path.to_owned(), offset, size });
            }
            _ => {}
        }
    }
    for (name, link) in links {
        if let Some(piece) = files.get(&link).cloned() {
            files.insert(name, piece);
        }
    }
    Ok(files)
}

/// Without `.` and `..`, and from the top of the archive.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path, entries: &[(&str, &[u8])], link: Option<(&str, &str)>) -> PathBuf {
        let path = folder.join("archive.tar");
        let mut archive = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        if let Some((name, to)) = link {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, name, to).unwrap();
        }
        archive.into_inner().unwrap();
        path
    }

    #[test]
    fn what_docker_saves_becomes_a_manifest_of_what_lies_in_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = br#"[{"Config":"c.json","RepoTags":["acme/x:1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
        let entries: [(&str, &[u8]); 3] = [("manifest.json", manifest), ("c.json", b"{}"), ("a/layer.tar", b"layer")];
        let path = archive(folder.path(), &entries, Some(("b/layer.tar", "../a/layer.tar")));
        let archive = open(&path, "amd64").unwrap();
        assert_eq!(archive.images[0].names, [ImageName::parse("acme/x:1").unwrap()]);
        let layer = &archive.blobs[&sha256(b"layer")];
        assert_eq!(read(layer).unwrap(), b"layer");
        let written = read(&archive.blobs[&archive.images[0].manifest.digest]).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written["layers"].as_array().map(Vec::len), Some(2));
        assert_eq!(written["layers"][1]["digest"], sha256(b"layer"));
        assert_eq!(written["config"]["digest"], sha256(b"{}"));
    }

    #[test]
    fn a_layout_of_oci_tells_its_images_and_their_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let digest = sha256(b"{}");
        let blob = format!("blobs/sha256/{}", &digest[7..]);
        let index = json!({"manifests": [
            {"mediaType": MANIFEST, "digest": digest, "size": 2, "annotations": {NAMES[0]: "docker.io/acme/x:1"}},
            {"mediaType": MANIFEST, "digest": "sha256:other", "size": 2, "platform": {"os": "linux", "architecture": "arm64"}},
        ]});
        let index = index.to_string();
        let entries: [(&str, &[u8]); 2] = [("index.json", index.as_bytes()), (&blob, b"{}")];
        let archive = open(&archive(folder.path(), &entries, None), "amd64").unwrap();
        assert_eq!(archive.images.len(), 1);
        assert_eq!(archive.images[0].manifest.digest, digest);
        assert_eq!(read(&archive.blobs[&digest]).unwrap(), b"{}");
    }

    #[test]
    fn what_is_no_archive_of_an_image_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = archive(folder.path(), &[("readme", b"x")], None);
        assert!(matches!(open(&path, "amd64"), Err(ImportError::Archive(_))));
        assert!(matches!(open(&folder.path().join("none"), "amd64"), Err(ImportError::Read(_))));
    }
}
