//! The work folder of a container, and what is taken out of the container itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use globset::GlobSet;
use schemas::task::WORK_FOLDER;
use tar::EntryType;

use crate::folder;

/// The result's name in the work folder; no glob gathers it.
pub(in crate::runtime) const RESULT: &str = ".result";
/// Most bytes taken out of one container.
const MOST_BYTES: u64 = 1 << 30;
/// Most bytes looked through for them.
const MOST_LOOKED_THROUGH: u64 = 4 << 30;
/// Most files and folders looked at.
const MOST_ENTRIES: usize = 100_000;
/// The result file as the container sees it.
pub(in crate::runtime) fn result_path() -> String {
    format!("{WORK_FOLDER}/{RESULT}")
}

/// Lets whatever user the image has write into the folder.
pub(in crate::runtime) fn open_to_all(folder: &Path) -> io::Result<()> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777))
}

/// Moves a plain file; anything else is no result.
pub(in crate::runtime) fn take_result(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(from) {
        Ok(meta) if meta.is_file() => std::fs::rename(from, to),
        Ok(_) => Err(io::Error::other("it is no plain file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Puts what was fetched, if anything, in the place of a folder and all that it holds.
pub(in crate::runtime) fn replace(folder: &Path, fetched: &Path) -> io::Result<()> {
    folder::remove_tree(folder)?;
    match std::fs::rename(fetched, folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir(folder),
        renamed => renamed,
    }
}

/// The folders and files that must be looked through: what stands in the globs before the first wildcard.
pub(in crate::runtime) fn prefixes(globs: &[String]) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = globs.iter().map(|glob| prefix(glob)).collect();
    prefixes.sort();
    // A folder comes before what is below it.
    prefixes.dedup_by(|below, above| below.starts_with(&*above));
    prefixes
}

fn prefix(glob: &str) -> PathBuf {
    let literal = |part: &&str| !part.contains(['*', '?', '[', '{', '\\']);
    let parts = glob.split('/').filter(|part| !part.is_empty() && *part != ".");
    // What climbs out matches nothing.
    parts.take_while(literal).take_while(|part| *part != "..").collect()
}

/// What is taken from an archive.
pub(in crate::runtime) enum Take {
    /// Its only file, to there.
    Result(PathBuf),
    /// What matches, below there.
    Matching { globs: GlobSet, prefix: PathBuf, into: PathBuf },
}

/// Takes plain files only: no links, nothing outside.
pub(in crate::runtime) fn unpack(archive: impl Read, take: &Take) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive.take(MOST_LOOKED_THROUGH));
    let mut left = MOST_BYTES;
    for (at, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        if at == MOST_ENTRIES {
            return Err(io::Error::other(format!("there are more than {MOST_ENTRIES} files and folders")));
        }
        let kind = entry.header().entry_type();
        if !matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse) {
            if matches!(take, Take::Result(_)) {
                return Err(io::Error::other("it is no plain file"));
            }
            continue;
        }
        let target = match take {
            Take::Result(file) => file.clone(),
            Take::Matching { globs, prefix, into } => {
                // The engine names everything below the last part of what was asked for.
                let path = match below_first(&entry.path()?) {
                    Some(below) if below.as_os_str().is_empty() => prefix.clone(),
                    Some(below) => prefix.join(below),
                    None => continue,
                };
                if !globs.is_match(&path) {
                    continue;
                }
                into.join(path)
            }
        };
        let size = entry.size();
        left = left.checked_sub(size).ok_or_else(|| io::Error::other(format!("it is more than {MOST_BYTES} bytes")))?;
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&target)?;
        io::copy(&mut entry, &mut file)?;
        file.flush()?;
    }
    Ok(())
}

/// A path without its first part, if it stays below it.
fn below_first(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components().filter(|part| *part != Component::CurDir);
    if !matches!(parts.next()?, Component::Normal(_)) {
        return None;
    }
    parts.map(|part| matches!(part, Component::Normal(_)).then_some(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_size(if *kind == EntryType::Regular { content.len() as u64 } else { 0 });
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            if *kind == EntryType::Symlink {
                header.set_link_name(content).unwrap();
            }
            header.set_cksum();
            let body = if *kind == EntryType::Regular { content.as_bytes() } else { b"" };
            archive.append(&header, body).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn only_plain_files_that_match_and_stay_inside_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("folder");
        let archive = archive(&[
            ("out/", EntryType::Directory, ""),
            ("out/a.txt", EntryType::Regular, "a"),
            ("out/b.log", EntryType::Regular, "b"),
            ("out/link.txt", EntryType::Symlink, "/etc/passwd"),
            ("out/../../escaped.txt", EntryType::Regular, "e"),
            ("/absolute.txt", EntryType::Regular, "e"),
            ("out/deep/c.txt", EntryType::Regular, "c"),
        ]);
        let globs = objects::globs(&["out/**/*.txt".to_owned()]).unwrap();
        unpack(&archive[..], &Take::Matching { globs, prefix: "out".into(), into: into.clone() }).unwrap();
        assert_eq!(std::fs::read_to_string(into.join("out/a.txt")).unwrap(), "a");
        assert_eq!(std::fs::read_to_string(into.join("out/deep/c.txt")).unwrap(), "c");
        assert_eq!(std::fs::read_dir(into.join("out")).unwrap().count(), 2);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_result_is_a_plain_file_or_none() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("result");
        unpack(&archive(&[(".result", EntryType::Regular, "42")])[..], &Take::Result(to.clone())).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "42");
        let link = archive(&[(".result", EntryType::Symlink, "/etc/passwd")]);
        assert!(unpack(&link[..], &Take::Result(root.path().join("no"))).is_err());
    }

    #[test]
    fn what_stands_before_the_first_wildcard_is_fetched_once() {
        let globs = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>();
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(prefixes(&globs(&["out/**", "out/a/b.txt", "c.txt"])), paths(&["c.txt", "out"]));
        assert_eq!(prefixes(&globs(&["*.txt", "out/**"])), paths(&[""]));
        assert_eq!(prefixes(&globs(&["../up/**", "/abs/x*"])), paths(&[""]));
    }
}
