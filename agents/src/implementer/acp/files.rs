//! The workspace's files, as the agent asks for them: by the absolute path that it sees, and nowhere else.

use std::path::Path;

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{
    ReadTextFileRequest, ReadTextFileResponse, WriteTextFileRequest, WriteTextFileResponse,
};
use serde_json::json;

use crate::tools::place::Place;
use crate::tools::tree::Tree;

/// Largest file that is read or written.
const FILE_BYTES: usize = 16 << 20;

fn refused(why: impl ToString) -> Error {
    Error::invalid_params().data(json!(why.to_string()))
}

fn place(path: &Path, root: &Path) -> Result<Place, Error> {
    let text = path.to_str().ok_or_else(|| refused("the path is no UTF-8"))?;
    if !path.is_absolute() {
        return Err(refused("the path is not absolute"));
    }
    Place::file(text, root).map_err(refused)
}

/// A file, or the lines of it that are asked for.
pub(super) fn read(tree: &Tree, root: &Path, request: &ReadTextFileRequest) -> Result<ReadTextFileResponse, Error> {
    let place = place(&request.path, root)?;
    let bytes = tree.read(&place, FILE_BYTES as u64).map_err(refused)?;
    let text = String::from_utf8(bytes).map_err(|_| refused(format!("{place} is no text in UTF-8")))?;
    if request.line.is_none() && request.limit.is_none() {
        return Ok(ReadTextFileResponse::new(text));
    }
    // Counted from 1; ends of lines stay as they are.
    let from = request.line.unwrap_or(1).max(1) as usize - 1;
    let most = request.limit.map_or(usize::MAX, |limit| limit as usize);
    Ok(ReadTextFileResponse::new(text.split_inclusive('\n').skip(from).take(most).collect::<String>()))
}

/// A whole file, made where there is none.
pub(super) fn write(tree: &Tree, root: &Path, request: &WriteTextFileRequest) -> Result<WriteTextFileResponse, Error> {
    let place = place(&request.path, root)?;
    if request.content.len() > FILE_BYTES {
        return Err(refused(format!("a file may have at most {FILE_BYTES} bytes")));
    }
    tree.write(&place, request.content.as_bytes()).map_err(refused)?;
    Ok(WriteTextFileResponse::new())
}
