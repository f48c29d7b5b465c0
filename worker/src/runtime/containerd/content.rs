//! The content store: blobs by their digest, and leases that hold what nothing refers to yet.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::tonic::Status;
use prost_types::FieldMask;
use tokio::sync::mpsc;

use super::engine::{Engine, PATIENCE, leased, ours};
use super::status::{is_missing, is_there, no_answer};

/// Largest manifest or configuration that is read.
const LARGEST_READ: i64 = 8 << 20;
/// Written at once.
const PIECE: usize = 1 << 20;
/// For one blob.
const WRITE_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// A lease that nobody gives back ends by itself.
const LEASE_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A blob to be written: these bytes of this file.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) file: PathBuf,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// Holds what is made under it until it is given back.
pub(super) struct Lease {
    pub(super) id: String,
}

impl Engine {
    /// A lease of its own. Dropped without being given back, it ends after a day.
    pub(super) async fn lease(&self) -> Result<Lease, Status> {
        let until = jiff::Timestamp::try_from(SystemTime::now() + LEASE_KEPT).unwrap_or_default();
        let id = format!("shoal-{:016x}", rand::random::<u64>());
        let labels =
            HashMap::from([("containerd.io/gc.expire".to_owned(), until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())]);
        let request = CreateRequest { id: id.clone(), labels };
        self.ask(PATIENCE, self.leases().create(ours(request))).await?;
        Ok(Lease { id })
    }

    /// Gives it back; one that stays ends by itself.
    pub(super) async fn give_back(&self, lease: Lease) {
        let request = DeleteRequest { id: lease.id, sync: false };
        if let Err(status) = self.ask(PATIENCE, self.leases().delete(ours(request))).await
            && !is_missing(&status)
        {
            tracing::debug!(%status, "a lease is left to end by itself");
        }
    }

    /// Whether the blob is there, whole.
    pub(super) async fn has(&self, digest: &str) -> Result<bool, Status> {
        let request = InfoRequest { digest: digest.to_owned() };
        match self.ask(PATIENCE, self.content().info(ours(request))).await {
            Ok(_) => Ok(true),
            Err(status) if is_missing(&status) => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// A small blob as a whole; `None` if it is not there.
    pub(super) async fn read(&self, digest: &str) -> Result<Option<Vec<u8>>, Status> {
        let request = InfoRequest { digest: digest.to_owned() };
        let size = match self.ask(PATIENCE, self.content().info(ours(request))).await {
            Ok(answer) => answer.info.unwrap_or_default().size,
            Err(status) if is_missing(&status) => return Ok(None),
            Err(status) => return Err(status),
        };
        if size > LARGEST_READ {
            return Err(Status::invalid_argument(format!("{digest} has {size} bytes, which is no manifest")));
        }
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut content = self.content();
        let reading = async {
            let mut pieces = content.read(ours(request)).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.message().await? {
                bytes.extend(piece.data);
            }
            Ok(containerd_client::tonic::Response::new(bytes))
        };
        self.ask(PATIENCE, reading).await.map(Some)
    }

    /// Labels of a blob beside those that it has: what it refers to is kept as long as it is.
    pub(super) async fn label(&self, digest: &str, labels: HashMap<String, String>) -> Result<(), Status> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        self.ask(PATIENCE, self.content().update(ours(request))).await.map(|_| ())
    }

    /// Writes a blob, checked against its digest; one that is there is as good.
    pub(super) async fn write(
        &self,
        lease: &Lease,
        digest: &str,
        piece: Piece,
        labels: HashMap<String, String>,
    ) -> Result<(), Status> {
        if self.has(digest).await? {
            return self.keep(lease, digest, labels).await;
        }
        let (to, mut requests) = mpsc::channel(2);
        let (digest_of, name) = (digest.to_owned(), format!("shoal-{:016x}", rand::random::<u64>()));
        let total = piece.size as i64;
        let reading = tokio::task::spawn_blocking(move || send(&piece, &name, &digest_of, labels, &to));
        let pieces = futures_util::stream::poll_fn(move |context| requests.poll_recv(context));
        let mut content = self.content();
        let writing = async {
            let mut answers = content.write(leased(pieces, &lease.id)).await?.into_inner();
            let mut written = 0;
            while let Some(answer) = answers.message().await? {
                written = answer.offset;
                if answer.action == WriteAction::Commit as i32 {
                    return Ok(written);
                }
            }
            Err(Status::data_loss(format!("the blob {digest} was cut off at {written} of {total} bytes")))
        };
        let written = tokio::time::timeout(WRITE_PATIENCE, writing).await.unwrap_or_else(|_| Err(no_answer()));
        match (written, reading.await) {
            // What could not be read is told by its reader; the other end only saw it break off.
            (_, Ok(Err(error))) => {
                Err(Status::failed_precondition(format!("the blob {digest} cannot be read: {error}")))
            }
            (Ok(_), _) => Ok(()),
            (Err(status), _) if is_there(&status) => Ok(()),
            (Err(status), _) => Err(status),
        }
    }

    /// One that is there already, held by the lease from now on.
    async fn keep(&self, lease: &Lease, digest: &str, labels: HashMap<String, String>) -> Result<(), Status> {
        use containerd_client::services::v1::{AddResourceRequest, Resource};
        let resource = Resource { id: digest.to_owned(), r#type: "content".to_owned() };
        let request = AddResourceRequest { id: lease.id.clone(), resource: Some(resource) };
        self.ask(PATIENCE, self.leases().add_resource(ours(request))).await?;
        if labels.is_empty() { Ok(()) } else { self.label(digest, labels).await }
    }
}

/// Sends a blob in pieces, the last of them with the wish to keep it.
fn send(
    piece: &Piece,
    name: &str,
    digest: &str,
    labels: HashMap<String, String>,
    to: &mpsc::Sender<WriteContentRequest>,
) -> std::io::Result<()> {
    let mut file = std::fs::File::open(&piece.file)?;
    file.seek(SeekFrom::Start(piece.offset))?;
    let total = piece.size as i64;
    let request = |action: WriteAction, offset: u64, data: Vec<u8>, labels| WriteContentRequest {
        action: action.into(),
        r#ref: name.to_owned(),
        total,
        expected: digest.to_owned(),
        offset: offset as i64,
        data,
        labels,
    };
    let mut sent = 0;
    while sent < piece.size {
        let mut bytes = vec![0; PIECE.min((piece.size - sent) as usize)];
        file.read_exact(&mut bytes)?;
        let size = bytes.len() as u64;
        // Nobody takes it any more: they tell why.
        if to.blocking_send(request(WriteAction::Write, sent, bytes, HashMap::new())).is_err() {
            return Ok(());
        }
        sent += size;
    }
    let _ = to.blocking_send(request(WriteAction::Commit, sent, Vec::new(), labels));
    Ok(())
}
