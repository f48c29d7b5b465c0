//! Goes through the folders of a workspace, as git would: what `.gitignore` files name is left out.
//!
//! The crate `ignore` brings the rules; its own walker goes by paths, and a path may lead elsewhere by the time it is
//! opened. So the going is by [`Tree`], and the rules are read through it too.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::place::Place;
use super::tree::{Kind, Tree, TreeError};

/// Folders below each other.
const DEPTH: usize = 64;
/// Names in one folder.
const NAMES: usize = 20_000;
/// Bytes of a `.gitignore` that count.
const IGNORE_BYTES: u64 = 64 << 10;

/// Bounds on one walk.
#[derive(Debug)]
pub struct Bounds<'a> {
    /// Names looked at.
    pub entries: usize,
    /// Folders below the first.
    pub depth: usize,
    /// When it must be over.
    pub until: Instant,
    /// Nobody waits for it any more.
    pub gone: &'a AtomicBool,
}

impl<'a> Bounds<'a> {
    /// A hundred thousand names, twenty seconds.
    pub fn new(gone: &'a AtomicBool) -> Self {
        Self { entries: 100_000, depth: DEPTH, until: Instant::now() + Duration::from_secs(20), gone }
    }

    /// Why a walk ends here, if it does.
    pub fn reached(&self, entries: usize) -> Option<&'static str> {
        if self.gone.load(Ordering::Relaxed) {
            Some("nobody waits for it")
        } else if entries >= self.entries {
            Some("the folder has too many entries")
        } else {
            (Instant::now() >= self.until).then_some("it took too long")
        }
    }
}

/// Calls `visit` with everything below `start`, a folder before what is in it; until `visit` answers false. Tells why it
/// ended before it saw everything, if so.
pub fn walk(
    tree: &Tree,
    start: &Place,
    bounds: &Bounds<'_>,
    visit: &mut dyn FnMut(&Place, Kind) -> bool,
) -> Result<Option<&'static str>, TreeError> {
    // The rules of the folders above count too.
    let mut rules = Vec::new();
    for above in start.path().ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let above = Place::parse(&above.to_string_lossy(), Path::new("/")).unwrap_or_else(|_| Place::root());
        rules.extend(rules_of(tree, &above));
    }
    let mut walk = Walk { tree, bounds, visit, entries: 0, ended: None };
    walk.folder(start, &mut rules, 0, true)?;
    Ok(walk.ended)
}

struct Walk<'a, 'b> {
    tree: &'a Tree,
    bounds: &'a Bounds<'b>,
    visit: &'a mut dyn FnMut(&Place, Kind) -> bool,
    entries: usize,
    ended: Option<&'static str>,
}

impl Walk<'_, '_> {
    fn folder(
        &mut self,
        folder: &Place,
        rules: &mut Vec<Gitignore>,
        depth: usize,
        first: bool,
    ) -> Result<(), TreeError> {
        let (names, more) = match self.tree.list(folder, NAMES) {
            Ok(listed) => listed,
            Err(error) if first => return Err(error),
            // Gone, or replaced by a link, since its name was read; or not ours to read.
            Err(_) => return Ok(()),
        };
        if more {
            self.ended = Some("a folder has too many entries");
        }
        let own = rules_of(self.tree, folder);
        let depth_of_rules = rules.len();
        rules.extend(own);
        for named in names {
            self.entries += 1;
            if let Some(reached) = self.bounds.reached(self.entries) {
                self.ended = Some(reached);
                break;
            }
            let Some(place) = folder.join(&named.name) else { continue };
            if ignored(rules, place.path(), named.kind == Kind::Folder) {
                continue;
            }
            if !(self.visit)(&place, named.kind) {
                self.ended = Some("there is too much of it");
                break;
            }
            if named.kind == Kind::Folder && depth < self.bounds.depth.min(DEPTH) {
                self.folder(&place, rules, depth + 1, false)?;
                if self.ended.is_some_and(|ended| ended != "a folder has too many entries") {
                    break;
                }
            }
        }
        rules.truncate(depth_of_rules);
        Ok(())
    }
}

/// What the `.gitignore` of a folder says.
fn rules_of(tree: &Tree, folder: &Place) -> Option<Gitignore> {
    let file = folder.join(".gitignore".as_ref())?;
    let text = tree.read(&file, IGNORE_BYTES).ok()?;
    let mut builder = GitignoreBuilder::new(folder.path());
    for line in String::from_utf8_lossy(&text).lines() {
        // A line that is no pattern is none for git either.
        let _ = builder.add_line(None, line);
    }
    builder.build().ok()
}

/// The innermost rule that matches decides.
fn ignored(rules: &[Gitignore], path: &Path, is_folder: bool) -> bool {
    let decided = rules.iter().rev().map(|rules| rules.matched(path, is_folder)).find(|found| !found.is_none());
    decided.is_some_and(|found| found.is_ignore())
}
