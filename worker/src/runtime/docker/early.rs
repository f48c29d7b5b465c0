//! What an instance writes before anybody listens: kept from its first byte, up to a bound, until somebody takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bollard::container::{AttachContainerResults, LogOutput};
use futures_util::StreamExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::attend::{ASK_AGAIN, attach};
use super::core::Core;
use super::output::Output;

/// Most bytes kept of each instance; what comes after is lost, while it can go on.
const KEPT: usize = 64 << 10;
/// Most bytes that are quoted.
const QUOTED: usize = 400;

/// The first output of one instance. Dropped, nobody takes it any more.
pub(super) struct Early {
    said: Arc<Mutex<Said>>,
    take: oneshot::Sender<Output>,
}

#[derive(Default)]
struct Said {
    pieces: VecDeque<LogOutput>,
    bytes: usize,
}

impl Early {
    /// Listens to a container that is attached to before it starts, as long as it lives and this runtime does.
    pub(super) fn listen(
        core: &Arc<Core>,
        id: &str,
        attached: AttachContainerResults,
        gone: CancellationToken,
    ) -> Self {
        let said = Arc::<Mutex<Said>>::default();
        let (take, taken) = oneshot::channel();
        let (of, id, keeping) = (core.clone(), id.to_owned(), said.clone());
        core.attendants.spawn(async move {
            let listening = async {
                let mut attached = attached;
                let Some((mut output, is_open)) = keep(&mut attached, &keeping, taken).await else { return };
                let pieces = std::mem::take(&mut keeping.lock().unwrap_or_else(PoisonError::into_inner).pieces);
                for piece in pieces {
                    output.write(piece).await;
                }
                follow(&of, &id, is_open.then_some(attached), output, &gone).await;
            };
            of.closed.run_until_cancelled(listening).await;
        });
        Self { said, take }
    }

    /// Hands it on with all that comes; given back where nobody listens any more.
    pub(super) fn hand_to(self, output: Output) -> Result<(), Output> {
        self.take.send(output)
    }

    /// Its last words, as far as they were kept; for people.
    pub(super) fn last_words(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<u8> = said.pieces.iter().flat_map(|piece| piece.as_ref().to_vec()).collect();
        let text = String::from_utf8_lossy(&all);
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        line.trim().chars().take(QUOTED).collect()
    }
}

/// Until somebody takes it: then where to, and whether the container may write more. `None` when nobody will.
async fn keep(
    attached: &mut AttachContainerResults,
    said: &Mutex<Said>,
    mut taken: oneshot::Receiver<Output>,
) -> Option<(Output, bool)> {
    let mut is_open = true;
    loop {
        let piece = tokio::select! {
            biased;
            taken = &mut taken => return taken.ok().map(|output| (output, is_open)),
            piece = attached.output.next(), if is_open => piece,
        };
        let Some(Ok(piece)) = piece else {
            is_open = false;
            continue;
        };
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        // A container whose output nobody takes away would stand still.
        if said.bytes < KEPT {
            said.bytes += piece.as_ref().len();
            said.pieces.push_back(piece);
        }
    }
}

/// Carries all there is until the container has ended, over every outage of the engine.
pub(super) async fn follow(
    core: &Core,
    id: &str,
    mut attached: Option<AttachContainerResults>,
    mut output: Output,
    gone: &CancellationToken,
) {
    loop {
        if let Some(attached) = attached.take() {
            output.carry(attached, None, gone).await;
        }
        let inspect = || core.engine.docker.inspect_container(id, None);
        let found = core.engine.insist(&core.closed, inspect).await;
        let is_running = found
            .is_some_and(|found| found.is_ok_and(|found| found.state.and_then(|state| state.running).unwrap_or(false)));
        if !is_running {
            return;
        }
        match attach(&core.engine, id, false).await {
            Ok(again) => attached = Some(again),
            Err(error) => {
                tracing::debug!(id, %error, "an instance is not attached again");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}
