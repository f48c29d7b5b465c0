//! Searches files for a regular expression.

use std::io::Read;

use globset::GlobBuilder;
use regex::RegexBuilder;
use schemars::JsonSchema;
use serde::Deserialize;

use super::files::shown;
use super::output::{self, RESULT_BYTES};
use super::place::Place;
use super::tree::{Kind, Tree, TreeError};
use super::walk::{Bounds, walk};
use crate::secret::Mask;

/// Larger files are left out, and told.
const FILE_BYTES: u64 = 8 << 20;
/// Bytes read in all.
const ALL_BYTES: u64 = 1 << 30;
/// Bytes of a line that are looked at: with the pattern's bound, no line takes long.
const LINE_BYTES: usize = 64 << 10;
/// Lines shown.
const MATCHES: usize = 200;

/// What `search` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Regular expression, in the syntax of Rust's `regex`; looked for in each line. `(?i)` in front ignores case.
    pub pattern: String,
    /// File or folder, relative to the workspace's root; default the root.
    #[serde(default)]
    pub path: Option<String>,
    /// Only files whose path matches this, as `*.rs` or `src/**/*.ts`.
    #[serde(default)]
    pub glob: Option<String>,
}

/// Each line that matches, as `path:line: text`. What is masked is masked before anything is looked for, so that no pattern
/// can ask for it.
pub(super) fn search(
    tree: &Tree,
    start: &Place,
    args: &Search,
    mask: &Mask,
    bounds: &Bounds<'_>,
) -> Result<Result<String, String>, TreeError> {
    let pattern = match RegexBuilder::new(&args.pattern).size_limit(256 << 10).build() {
        Ok(pattern) => pattern,
        Err(error) => return Ok(Err(format!("`pattern` is no regular expression: {error}"))),
    };
    let glob =
        match args.glob.as_deref().map(|glob| GlobBuilder::new(glob).literal_separator(glob.contains('/')).build()) {
            None => None,
            Some(Ok(glob)) => Some(glob.compile_matcher()),
            Some(Err(error)) => return Ok(Err(format!("`glob` cannot be read: {error}"))),
        };
    let (mut found, mut lines, mut read, mut large, mut full) = (String::new(), 0, 0_u64, 0, None);
    let mut look = |place: &Place| {
        let Ok((file, size)) = tree.file(place) else { return true };
        if size > FILE_BYTES {
            large += 1;
            return true;
        }
        let mut bytes = Vec::new();
        if file.take(FILE_BYTES).read_to_end(&mut bytes).is_err() || output::is_binary(&bytes) {
            return true;
        }
        read += bytes.len() as u64;
        let text = mask.text(&String::from_utf8_lossy(&bytes));
        for (number, line) in text.lines().enumerate() {
            if let Some(why) = bounds.reached(0) {
                full = Some(why);
                return false;
            }
            if !pattern.is_match(output::beginning(line, LINE_BYTES)) {
                continue;
            }
            lines += 1;
            found.push_str(&format!("{}:{}: {}\n", shown(place), number + 1, output::line(line)));
            if lines >= MATCHES || found.len() >= RESULT_BYTES - 2 * output::LINE_BYTES {
                full = Some("there are too many matches");
                return false;
            }
        }
        if read >= ALL_BYTES {
            full = Some("the files are too large together");
        }
        full.is_none()
    };
    let ended = match tree.kind(start)? {
        Kind::File => {
            look(start);
            None
        }
        Kind::Folder => walk(tree, start, bounds, &mut |place, kind| {
            kind != Kind::File || glob.as_ref().is_some_and(|glob| !glob.is_match(place.path())) || look(place)
        })?,
        Kind::Link => return Err(TreeError::Link(start.to_string())),
        Kind::Other => return Err(TreeError::Kind(start.to_string(), "a file or a folder")),
    };
    if found.is_empty() {
        found.push_str("no line matches\n");
    }
    if let Some(why) = full.or(ended) {
        found
            .push_str(&format!("[… not everything is shown: {why}; search for less, or in a folder further down …]\n"));
    }
    if large > 0 {
        found.push_str(&format!("[{large} files larger than 8 MiB were not searched]\n"));
    }
    Ok(Ok(found))
}
