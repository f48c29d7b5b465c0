//! Reads, writes, edits, lists, removes and moves files.

use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use schemars::JsonSchema;
use serde::Deserialize;

use super::output::{self, LINE_BYTES, RESULT_BYTES};
use super::place::Place;
use super::tree::{Kind, Tree, TreeError};
use super::walk::{Bounds, walk};
use crate::secret::Mask;

/// Largest file that is edited.
const EDIT_BYTES: u64 = 8 << 20;
/// Raw bytes of a range: more than is shown, so that what is masked in it is seen as a whole.
const RANGE_BYTES: usize = 4 * RESULT_BYTES;
/// Names in one listing.
const LISTED: usize = 1_000;

/// What `list_files` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListFiles {
    /// Folder, relative to the workspace's root; default the root.
    #[serde(default)]
    pub path: Option<String>,
    /// How many levels of folders to go down; default 3.
    #[serde(default)]
    pub depth: Option<u32>,
}

/// What `read_file` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// File, relative to the workspace's root.
    pub path: String,
    /// First line to read, counted from 1; default 1.
    #[serde(default)]
    pub first_line: Option<u64>,
    /// How many lines; default as many as fit into one answer.
    #[serde(default)]
    pub lines: Option<u64>,
}

/// What `write_file` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteFile {
    /// File, relative to the workspace's root; folders on the way are made.
    pub path: String,
    /// The whole new content.
    pub content: String,
}

/// What `edit_file` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EditFile {
    /// File, relative to the workspace's root.
    pub path: String,
    /// Text to replace, exactly as it is in the file, with enough around it to occur only once.
    pub old: String,
    /// Text in its place.
    pub new: String,
}

/// What `delete_file` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteFile {
    /// File, relative to the workspace's root.
    pub path: String,
}

/// What `move_file` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveFile {
    /// File or folder, relative to the workspace's root.
    pub from: String,
    /// Its new path; nothing may be there.
    pub to: String,
}

/// A path on one line, whatever is in it.
pub(super) fn shown(place: &Place) -> String {
    let text = place.to_string();
    if text.chars().any(char::is_control) { format!("{text:?}") } else { text }
}

/// The names below a folder.
pub(super) fn list(tree: &Tree, start: &Place, depth: u32, bounds: Bounds<'_>) -> Result<String, TreeError> {
    let bounds = Bounds { depth: (depth.max(1) - 1) as usize, ..bounds };
    let (mut text, mut count) = (String::new(), 0);
    let ended = walk(tree, start, &bounds, &mut |place, kind| {
        count += 1;
        let mark = match kind {
            Kind::File => String::new(),
            Kind::Folder => "/".to_owned(),
            Kind::Link => match tree.link(place) {
                Some(target) => format!(" -> {:?} (a link; not followed)", target),
                None => " (a link)".to_owned(),
            },
            Kind::Other => " (not a regular file)".to_owned(),
        };
        text.push_str(&format!("{}{mark}\n", output::line(&shown(place))));
        count < LISTED && text.len() < RESULT_BYTES
    })?;
    if text.is_empty() {
        text.push_str("the folder is empty, or everything in it is ignored\n");
    }
    if let Some(ended) = ended {
        text.push_str(&format!("[… not everything is listed: {ended}; list a folder further down …]\n"));
    }
    Ok(text)
}

/// Lines of a file.
pub(super) fn read(
    tree: &Tree,
    place: &Place,
    args: &ReadFile,
    mask: &Mask,
    bounds: &Bounds<'_>,
) -> Result<String, TreeError> {
    let (file, size) = tree.file(place)?;
    let failed = |error: std::io::Error| {
        TreeError::System(place.to_string(), nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(5)))
    };
    let mut reader = BufReader::with_capacity(64 << 10, file.take(size.max(1 << 20)));
    if output::is_binary(reader.fill_buf().map_err(failed)?) {
        return Ok(format!("{} is a binary file of {size} bytes; it is not shown", shown(place)));
    }
    let first = args.first_line.unwrap_or(1).max(1);
    let most = args.lines.unwrap_or(u64::MAX).max(1);
    let (mut raw, mut line, mut over) = (Vec::new(), 1_u64, false);
    // Every chunk is looked at once: lines before the range are counted, those in it taken, those after it counted.
    loop {
        if Instant::now() >= bounds.until || bounds.reached(0).is_some() {
            over = true;
            break;
        }
        let chunk = reader.fill_buf().map_err(failed)?;
        if chunk.is_empty() {
            break;
        }
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            if line >= first && line - first < most && raw.len() < RANGE_BYTES {
                raw.extend_from_slice(&piece[..piece.len().min(RANGE_BYTES - raw.len())]);
            }
            line += u64::from(piece.ends_with(b"\n"));
        }
        let read = chunk.len();
        reader.consume(read);
    }
    let text = mask.text(&String::from_utf8_lossy(&raw));
    let (mut shown_text, mut taken) = (String::new(), 0);
    for text in text.split_inclusive('\n') {
        let cut = output::line(text.strip_suffix('\n').unwrap_or(text));
        if shown_text.len() + cut.len() > RESULT_BYTES - LINE_BYTES / 2 {
            break;
        }
        shown_text.push_str(&cut);
        shown_text.push('\n');
        taken += 1;
    }
    let all = if over { "many".to_owned() } else { total(line, &mut reader, size).to_string() };
    Ok(match taken {
        0 if size == 0 => format!("{} is empty", shown(place)),
        0 => format!("{} has no line {first}; it has {all}", shown(place)),
        taken => format!("[{}: lines {first} to {} of {all}]\n{shown_text}", shown(place), first + taken - 1),
    })
}

/// Lines in all: a last one without an end counts, an empty one after the last end does not.
fn total(line: u64, reader: &mut BufReader<std::io::Take<std::fs::File>>, size: u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    let ends = size > 0 && reader.get_ref().get_ref().read_at(&mut last, size - 1).is_ok() && last[0] == b'\n';
    if ends { line - 1 } else { line }
}

/// Replaces the one place where `old` stands.
pub(super) fn edit(tree: &Tree, place: &Place, args: &EditFile) -> Result<Result<String, String>, TreeError> {
    if args.old.is_empty() {
        return Ok(Err("`old` is empty; to write a whole file use write_file".to_owned()));
    }
    let Ok(text) = String::from_utf8(tree.read(place, EDIT_BYTES)?) else {
        return Ok(Err(format!("{} is no UTF-8 text; use run_command to change it", shown(place))));
    };
    let mut found = text.match_indices(&args.old);
    let Some((at, _)) = found.next() else {
        let hint = "read the file again: every space, tab and line end counts";
        return Ok(Err(format!("`old` does not occur in {}; {hint}", shown(place))));
    };
    let more = found.count();
    if more > 0 {
        let hint = "take more of the text around it, so that it occurs once";
        return Ok(Err(format!("`old` occurs {} times in {}; {hint}", more + 1, shown(place))));
    }
    if args.old == args.new {
        return Ok(Err("`old` and `new` are the same; nothing would change".to_owned()));
    }
    let line = text[..at].matches('\n').count() + 1;
    tree.write(place, [&text[..at], &args.new, &text[at + args.old.len()..]].concat().as_bytes())?;
    Ok(Ok(format!("edited {} at line {line}", shown(place))))
}
