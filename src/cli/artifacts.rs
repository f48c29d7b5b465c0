//! `shoal artifacts`: files and large results that a task left, listed and fetched. What a record names is somebody else's
//! word: nothing is ever written outside the folder that was asked for, nor through a link, nor over what is there.

use std::fmt::Write as _;
use std::io;
use std::path::{Component, Path, PathBuf};

use clap::{Args, Subcommand};
use dispatcher::client::{Client, ClientError};
use globset::{GlobBuilder, GlobMatcher};
use schemas::record::{Artifact, TaskResult};
use schemas::{StartId, TaskRecord};
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format, Table, printable};

/// The path under which a large result is listed and fetched; no artifact can have it.
const RESULT: &str = ".shoal/result";

/// `shoal artifacts …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Artifacts {
    /// List what a task left, start by start
    List(List),
    /// Fetch files that a task left; their digests are checked
    Get(Get),
}

/// Flags of `shoal artifacts list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
    /// Only of this start of an attempt
    #[arg(long)]
    pub start: Option<StartId>,
}

/// Flags of `shoal artifacts get`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Without a path everything is fetched. Of a path that several attempts left, the newest is taken. A large \
    result is `.shoal/result`.\nExit code 1 if a path is not there, would lie outside the folder, exists already (--force), or \
    its digest is wrong.\n\nExamples:\n  shoal artifacts get order-42 --to out\n  shoal artifacts get order-42 'out/**.txt'\n  \
    shoal artifacts get order-42 out/report.csv --to - | head"
)]
pub struct Get {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
    /// Paths or globs as `shoal artifacts list` shows them: `*` stays in its folder, `**` crosses
    #[arg(value_name = "PATH|GLOB")]
    pub paths: Vec<String>,
    /// Folder to write below, made if it is missing; `-` writes one file to stdout
    #[arg(long, default_value = ".", value_name = "DIR|-")]
    pub to: PathBuf,
    /// Only of this start of an attempt
    #[arg(long)]
    pub start: Option<StartId>,
    /// Replace files that exist
    #[arg(long)]
    pub force: bool,
}

/// Something that a task left.
#[derive(Clone, Debug, Serialize)]
struct Left<'a> {
    path: &'a str,
    bytes: u64,
    digest: &'a str,
    /// Number of the attempt that left it; none of one that was handed back.
    attempt: Option<u32>,
    start: Option<&'a StartId>,
    #[serde(skip)]
    artifact: Option<&'a Artifact>,
}

/// Runs one of them.
pub async fn run(args: Artifacts, on: &Server<'_>) -> Result<Exit, Error> {
    match args {
        Artifacts::List(args) => list(args, on).await,
        Artifacts::Get(args) => get(args, on).await,
    }
}

async fn list(args: List, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let record = record(&client, &args.id).await?;
    let left = left(&record, args.start.as_ref());
    match on.output() {
        Format::Json => output::json(&left),
        Format::Table => {
            let mut table = Table::new(&["PATH", "BYTES", "ATTEMPT", "START", "DIGEST"]);
            for one in left {
                table.row([
                    one.path.to_owned(),
                    one.bytes.to_string(),
                    one.attempt.map_or("-".into(), |number| number.to_string()),
                    one.start.map_or("-".into(), ToString::to_string),
                    one.digest.to_owned(),
                ]);
            }
            table.print();
        }
    }
    for warning in &record.warnings {
        output::talk(format_args!("warning: {}", printable(warning)));
    }
    Ok(exit::DONE)
}

async fn record(client: &Client, id: &str) -> Result<TaskRecord, Error> {
    let key = client.find(id).await?;
    match client.get(&key).await?.current() {
        Some(current) => Ok(current.record.clone()),
        None => Err(Error::Failed {
            problem: format!("task {key} has not begun, and left nothing yet"),
            hint: format!("shoal wait {key}; or see why it waits: shoal explain {key}"),
            source: None,
        }),
    }
}

/// What a task left, in the order of the record; the large result last.
fn left<'a>(record: &'a TaskRecord, start: Option<&StartId>) -> Vec<Left<'a>> {
    let attempt = |start: &StartId| {
        let attempt = record.attempts.iter().find(|attempt| attempt.start.as_ref() == Some(start))?;
        attempt.number.map(|number| number.get())
    };
    let mut left: Vec<Left> = record
        .artifacts
        .iter()
        .map(|artifact| Left {
            path: &artifact.path,
            bytes: artifact.bytes,
            digest: &artifact.digest,
            attempt: attempt(&artifact.start),
            start: Some(&artifact.start),
            artifact: Some(artifact),
        })
        .collect();
    if let Some(TaskResult::Object(object)) = &record.result {
        // Only the start that succeeded leaves one.
        let of = record.attempts.last().and_then(|attempt| attempt.start.as_ref());
        left.push(Left {
            path: RESULT,
            bytes: object.bytes,
            digest: &object.digest,
            attempt: of.and_then(attempt),
            start: of,
            artifact: None,
        });
    }
    left.retain(|one| start.is_none_or(|start| one.start == Some(start)));
    left
}

async fn get(args: Get, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let record = record(&client, &args.id).await?;
    let left = left(&record, args.start.as_ref());
    let chosen = choose(&left, &args.paths).map_err(|path| {
        let hint = format!("see what there is: shoal artifacts list {}", record.key());
        match path {
            Missing::Path(name) => ClientError::NotFound { kind: "artifact", name }.into(),
            Missing::Glob(problem) => Error::usage(problem, hint),
            Missing::Everything => {
                Error::Failed { problem: format!("task {} left no artifacts", record.key()), hint, source: None }
            }
        }
    })?;
    if args.to.as_os_str() == "-" {
        let [one] = chosen[..] else {
            let problem = format!("{} files match, and stdout takes one", chosen.len());
            return Err(Error::usage(problem, "name one, or a folder with --to DIR"));
        };
        fetch(&client, &record, one, &mut tokio::io::stdout()).await?;
        return Ok(exit::DONE);
    }
    let failed =
        |source| Error::failed(format!("cannot make the folder {}", args.to.display()), "name another", source);
    std::fs::create_dir_all(&args.to).map_err(failed)?;
    let (mut table, mut got, mut lost) = (Table::new(&["PATH", "BYTES", "FILE"]), Vec::new(), 0);
    for one in chosen {
        match save(&client, &record, one, &args.to, args.force).await {
            Ok(file) => {
                let file = file.display().to_string();
                got.push(json!({"path": one.path, "bytes": one.bytes, "start": one.start, "file": file}));
                table.row([one.path.to_owned(), one.bytes.to_string(), file]);
            }
            Err(error) => {
                lost += 1;
                output::talk(format_args!("{}: {}", printable(one.path), output::chain(&error)));
            }
        }
    }
    match on.output() {
        Format::Json => output::json(&got),
        Format::Table if got.is_empty() => {}
        Format::Table => table.print(),
    }
    Ok(if lost > 0 { exit::FAILED } else { exit::DONE })
}

/// What was asked for and is not there.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    /// No path, and none that the glob fits.
    Path(String),
    /// It is no glob.
    Glob(String),
    /// Nothing was named, and there is nothing.
    Everything,
}

/// Of everything that was left what is meant: the newest of each path.
fn choose<'l, 'a>(left: &'l [Left<'a>], paths: &[String]) -> Result<Vec<&'l Left<'a>>, Missing> {
    let mut globs: Vec<(&String, GlobMatcher, bool)> = Vec::new();
    for path in paths {
        // As a task's own globs are read.
        let glob = GlobBuilder::new(path).literal_separator(true).build().map_err(|e| Missing::Glob(e.to_string()))?;
        globs.push((path, glob.compile_matcher(), false));
    }
    let mut chosen: Vec<&Left> = Vec::new();
    for one in left.iter().rev() {
        let mut wanted = paths.is_empty();
        for (path, glob, found) in &mut globs {
            // A file may be called `a[1].txt`, which as a glob is another.
            if one.path == *path || glob.is_match(one.path) {
                (wanted, *found) = (true, true);
            }
        }
        if wanted && chosen.iter().all(|newer| newer.path != one.path) {
            chosen.push(one);
        }
    }
    if let Some((path, ..)) = globs.iter().find(|(_, _, found)| !found) {
        return Err(Missing::Path((*path).clone()));
    }
    if chosen.is_empty() {
        return Err(Missing::Everything);
    }
    chosen.reverse();
    Ok(chosen)
}

async fn fetch(
    client: &Client,
    record: &TaskRecord,
    one: &Left<'_>,
    out: &mut (impl AsyncWrite + Unpin + Send),
) -> Result<(), ClientError> {
    match one.artifact {
        Some(artifact) => client.artifact_to(record, artifact, out).await.map(drop),
        None => client.result_to(record, out).await.map(drop),
    }
}

/// Writes one file below `folder`: beside its place first, and there only when it is whole and its digest fits.
async fn save(
    client: &Client,
    record: &TaskRecord,
    one: &Left<'_>,
    folder: &Path,
    force: bool,
) -> Result<PathBuf, Error> {
    let refused = |why: String| Error::Failed {
        problem: why,
        hint: "write it to stdout: shoal artifacts get ID PATH --to -".into(),
        source: None,
    };
    let within = below(one.path).ok_or_else(|| refused("this path would lead out of the folder".into()))?;
    let parent = make_folders(folder, &within).map_err(|error| refused(format!("cannot make its folder: {error}")))?;
    let place = folder.join(&within);
    let not_written = |error: io::Error| refused(format!("cannot write {}: {error}", place.display()));
    match std::fs::symlink_metadata(&place) {
        Ok(there) if there.is_dir() => return Err(refused(format!("{} is a folder", place.display()))),
        Ok(_) if !force => {
            return Err(Error::Failed {
                problem: format!("{} exists already", place.display()),
                hint: "replace it with --force, or name another folder with --to DIR".into(),
                source: None,
            });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(not_written(error)),
    }
    let mut name = String::from(".shoal-");
    for byte in one.digest.bytes().filter(u8::is_ascii_alphanumeric).take(16) {
        name.push(char::from(byte));
    }
    // A String takes everything.
    let _ = write!(name, "-{}.part", std::process::id());
    let beside = parent.join(name);
    let written = async {
        // New, or not at all: never through a link that somebody put there.
        let file =
            tokio::fs::OpenOptions::new().write(true).create_new(true).open(&beside).await.map_err(not_written)?;
        let mut file = tokio::io::BufWriter::with_capacity(256 << 10, file);
        fetch(client, record, one, &mut file).await?;
        file.shutdown().await.map_err(not_written)?;
        put_in_place(&beside, &place, force).map_err(not_written)
    };
    let written: Result<(), Error> = written.await;
    if written.is_err() {
        // What is left of it helps nobody; the error counts more.
        let _ = std::fs::remove_file(&beside);
    }
    written.map(|()| place.clone())
}

/// Moves a whole file to its place; a link that lies there is replaced, not followed.
fn put_in_place(beside: &Path, place: &Path, force: bool) -> io::Result<()> {
    if !force {
        // Fails if something came there meanwhile.
        match std::fs::hard_link(beside, place) {
            Ok(()) => return std::fs::remove_file(beside),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // Not every file system has links; that nothing lies there was looked at.
            Err(_) => {}
        }
    }
    std::fs::rename(beside, place)
}

/// A record's path as a path below a folder; `None` for one that leads elsewhere.
fn below(path: &str) -> Option<PathBuf> {
    let mut within = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => within.push(name),
            Component::CurDir | Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    // What a path leaves out of itself (`a//b`, `a/`) is not what the task meant either.
    (!path.is_empty() && !path.contains('\0') && within.to_str() == Some(path)).then_some(within)
}

/// Makes the folders that a file needs, and refuses to go through a link. Returns the innermost.
fn make_folders(folder: &Path, within: &Path) -> io::Result<PathBuf> {
    let mut at = folder.to_owned();
    for name in within.parent().into_iter().flat_map(Path::iter) {
        at.push(name);
        match std::fs::create_dir(&at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !std::fs::symlink_metadata(&at)?.is_dir() {
                    return Err(io::Error::other(format!("{} is no folder", at.display())));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(path: &str, start: &str) -> Artifact {
        Artifact {
            path: path.into(),
            start: StartId::new(start).unwrap(),
            bytes: 1,
            digest: "SHA-256=".into(),
            bucket: None,
            more: Default::default(),
        }
    }

    fn chosen(artifacts: &[Artifact], paths: &[&str]) -> Result<Vec<String>, Missing> {
        let mut record =
            TaskRecord::new(&"q.a".parse().unwrap(), 1, schemas::State::Succeeded, schemas::Timestamp::now());
        record.artifacts = artifacts.to_vec();
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let left = left(&record, None);
        let name = |one: &&Left| format!("{}:{}", one.start.unwrap(), one.path);
        choose(&left, &paths).map(|chosen| chosen.iter().map(name).collect())
    }

    #[test]
    fn only_plain_relative_paths_lie_below_a_folder() {
        for path in ["a", "a/b.txt", ".hidden", "a b", "...", "a\\b"] {
            assert_eq!(below(path), Some(PathBuf::from(path)), "{path}");
        }
        for path in ["", "/", "/etc/passwd", "..", "../a", "a/../../b", "a/..", "./a", "a/./b", "a//b", "a/", "a\0b"] {
            assert_eq!(below(path), None, "{path:?}");
        }
    }

    #[test]
    fn no_folder_is_made_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("out")).unwrap();
        assert!(make_folders(folder.path(), Path::new("out/deep/a.txt")).is_err());
        assert!(make_folders(folder.path(), Path::new("other/deep/a.txt")).unwrap().is_dir());
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_newest_of_each_path_is_taken() {
        let artifacts = [artifact("out/a", "s1"), artifact("out/b", "s1"), artifact("out/a", "s2")];
        assert_eq!(chosen(&artifacts, &[]).unwrap(), ["s1:out/b", "s2:out/a"]);
        assert_eq!(chosen(&artifacts, &["out/a"]).unwrap(), ["s2:out/a"]);
        assert_eq!(chosen(&artifacts, &["**"]).unwrap().len(), 2);
        assert_eq!(chosen(&artifacts, &["*"]), Err(Missing::Path("*".into())));
        assert_eq!(chosen(&artifacts, &["out/a", "out/c"]), Err(Missing::Path("out/c".into())));
        assert_eq!(chosen(&[], &[]), Err(Missing::Everything));
        assert_eq!(chosen(&[artifact("a[1]", "s1")], &["a[1]"]).unwrap(), ["s1:a[1]"]);
    }
}
