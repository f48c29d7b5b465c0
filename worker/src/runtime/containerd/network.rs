//! Which network a container is in, and how it gets there: none, shared, the machine's, or one by CNI with an address.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemas::Code;

use super::cni::{Attachment, CniError, Network};
use super::engine::Engine;
use super::groups::key;
use super::input::Beside;
use super::spec::Net;
use super::{NAME, namespace};
use crate::runtime::StartError;
use crate::runtime::container::labels::Owner;
use crate::runtime::instances::{ADDRESS_TRIES, no_address};

/// Before the second try of a connection; doubled before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What a container is connected to.
pub(super) struct Connected {
    pub(super) net: Net,
    pub(super) address: Option<IpAddr>,
}

/// The name of the namespace that all containers of a worker share which ask for it.
pub(super) fn shared(owner: &Owner) -> String {
    format!("{}{}", shared_by_worker(owner), key(&owner.instance))
}

/// How the names of those begin that this worker has, in whichever life.
pub(super) fn shared_by_worker(owner: &Owner) -> String {
    format!("shared-{}-", key(&format!("{}/{}", owner.fleet, owner.worker)))
}

/// Whether a network of this name is one by CNI, which has to be taken back.
pub(super) fn is_cni(network: &str) -> bool {
    !matches!(network, "none" | "host" | "shared")
}

/// Connects the container `id`. What it made is found by the id alone, and taken back by [`disconnect`].
pub(super) async fn connect(engine: &Engine, owner: &Owner, id: &str, network: &str) -> Result<Connected, StartError> {
    let failed =
        |source| StartError::Failed { what: format!("the network `{network}` cannot be made"), source: Some(source) };
    match network {
        "none" => Ok(Connected { net: Net::Own, address: None }),
        "host" => Ok(Connected { net: Net::Host, address: None }),
        "shared" => {
            let path = namespace::ensure(&shared(owner)).await.map_err(failed)?;
            Ok(Connected { net: at(&path), address: None })
        }
        network => {
            let found = Network::find(network, &engine.place.cni_bin_dirs).map_err(|error| refused(network, error))?;
            let path = namespace::ensure(id).await.map_err(failed)?;
            let result = Beside::of(id).cni_result();
            let attachment = Attachment { id, namespace: &path, folders: &engine.place.cni_bin_dirs, result: &result };
            let address = try_to_connect(&found, attachment, network).await?;
            Ok(Connected { net: at(&path), address: Some(address) })
        }
    }
}

fn at(path: &std::path::Path) -> Net {
    Net::At(path.to_string_lossy().into_owned())
}

/// Again where it fails or gives no address; each time from the beginning.
async fn try_to_connect(found: &Network, at: Attachment<'_>, network: &str) -> Result<IpAddr, StartError> {
    let mut pause = FIRST_PAUSE;
    let mut why = None;
    // The first try is at the start itself.
    for tries in 0..=ADDRESS_TRIES {
        match found.connect(at).await {
            Ok(Some(address)) => return Ok(address),
            Ok(None) => {}
            Err(error @ CniError::NoPlugin { .. }) => return Err(refused(network, error)),
            Err(error) => {
                tracing::debug!(id = at.id, network, tries, %error, "not connected yet");
                why = Some(error);
            }
        }
        if let Err(error) = found.disconnect(at).await {
            tracing::debug!(id = at.id, network, %error, "not taken back");
        }
        if tries < ADDRESS_TRIES {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
    Err(match (no_address(at.id, network, ADDRESS_TRIES), why) {
        (StartError::Refused { code, message }, Some(why)) => {
            StartError::Refused { code, message: format!("{message}: {why}") }
        }
        (error, _) => error,
    })
}

fn refused(network: &str, error: CniError) -> StartError {
    match error {
        CniError::Unknown(_) | CniError::Description { .. } => {
            StartError::Refused { code: Code::PolicyForbidden, message: error.to_string() }
        }
        // It waits for a worker that has them.
        CniError::NoPlugin { .. } => StartError::Unavailable { runtime: NAME, why: error.to_string() },
        CniError::Kept { .. } | CniError::Plugin { .. } => StartError::Failed {
            what: format!("the network `{network}` cannot be made"),
            source: Some(std::io::Error::other(error.to_string())),
        },
    }
}

/// Takes back what [`connect`] made, or began to make, of a container that nothing runs in any more.
pub(super) async fn disconnect(folders: &[PathBuf], id: &str, network: &str) -> std::io::Result<()> {
    if !is_cni(network) {
        return Ok(());
    }
    let path = namespace::path(id);
    match Network::find(network, folders) {
        Ok(found) => {
            found
                .disconnect(Attachment { id, namespace: &path, folders, result: &Beside::of(id).cni_result() })
                .await
                .map_err(std::io::Error::other)?;
        }
        // Its description is gone, and with it the means.
        Err(error) => tracing::warn!(id, network, %error, "its address may stay taken"),
    }
    namespace::remove(id)
}
