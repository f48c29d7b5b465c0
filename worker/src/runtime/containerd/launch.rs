//! The start of an instance: image, container, address, start; each step undone if a later one fails.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use schemas::Code;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::core::{Core, hostname};
use super::create::{Wish, working_dir};
use super::groups::{self, Span};
use super::input::Beside;
use super::instances::launched;
use super::labels::container_id;
use super::runtime::word;
use super::spec::check_limits;
use super::status::start_refused;
use super::tail;
use super::undo::undo;
use crate::policy::FUNCTION_NETWORK;
use crate::runtime::container::labels::instance_labels;
use crate::runtime::container::usage::Meter;
use crate::runtime::instances::{ADDRESS_TRIES, Launch, Launched, no_address};
use crate::runtime::{StartError, Status};

/// Before the first further look for an address; doubled before each further one.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Core {
    /// Launches in a task of its own, which takes back what it made when nobody waits for it any more.
    pub(super) async fn launch(self: Arc<Self>, wish: Launch) -> Result<Launched, StartError> {
        if self.closed.is_cancelled() {
            return Err(StartError::Failed { what: "the containerd runtime is closed".to_owned(), source: None });
        }
        let given_up = self.closed.child_token();
        let on_drop = given_up.clone().drop_guard();
        let (tell, told) = oneshot::channel();
        let (keep, kept) = oneshot::channel();
        let core = self.clone();
        self.attendants.spawn(async move { core.make_instance(wish, given_up, tell, kept).await });
        let launched = told.await;
        let broke_off = |_| Err(StartError::Failed { what: "the launch broke off".to_owned(), source: None });
        // From here to the end nothing waits, so whoever keeps it has it.
        on_drop.disarm();
        let launched = launched.unwrap_or_else(broke_off)?;
        let _ = keep.send(());
        Ok(launched)
    }

    async fn make_instance(
        self: Arc<Self>,
        wish: Launch,
        given_up: CancellationToken,
        tell: oneshot::Sender<Result<Launched, StartError>>,
        kept: oneshot::Receiver<()>,
    ) {
        let id = container_id(&format!("{}-{}", wish.function, wish.index), &wish.start);
        let mut is_made = false;
        let launched = self.begin_instance(&wish, &id, &given_up, &mut is_made).await;
        // What was said about it is complete before its end is known.
        drop(wish);
        let is_kept = match launched {
            Ok(launched) => {
                self.kept.begin(&id);
                tell.send(Ok(launched)).is_ok() && kept.await.is_ok()
            }
            Err(error) => {
                if is_made {
                    self.take_back_instance(&id).await;
                }
                let _ = tell.send(Err(error));
                return;
            }
        };
        if !is_kept {
            self.take_back_instance(&id).await;
            self.kept.forget(&id);
        }
    }

    async fn take_back_instance(&self, id: &str) {
        if let Err(error) = undo(&self.engine, id).await {
            // No record of the fleet will name it: the next boot of this worker removes it.
            tracing::warn!(id, %error, "an instance is not taken back yet");
        }
    }

    /// Everything up to the running container. `is_made` says that there may be one.
    async fn begin_instance(
        &self,
        wish: &Launch,
        id: &str,
        given_up: &CancellationToken,
        is_made: &mut bool,
    ) -> Result<Launched, StartError> {
        let (container, policy) = (&wish.container, &self.settings.policy);
        policy.check_function(&self.settings, container)?;
        for warning in check_limits(&wish.limits, &self.settings.limits, &self.engine.facts())? {
            wish.notes.say(&warning).await;
        }
        let gave_up = || StartError::Failed { what: "the launch was given up".to_owned(), source: None };
        let ensuring = self.ensure_image(container, &wish.notes);
        let image = given_up.run_until_cancelled(ensuring).await.ok_or_else(gave_up)??;
        let mounts = policy.mounts(&self.settings, container)?;
        let network = container.network.as_deref().unwrap_or(FUNCTION_NETWORK);
        let env: BTreeMap<String, String> = wish.env.iter().cloned().collect();
        let working_dir = working_dir(container, &image, "/");
        let making = Wish {
            id: id.to_owned(),
            labels: instance_labels(&self.owner, wish),
            container,
            image: &image,
            env: &env,
            limits: &wish.limits,
            folder: None,
            mounts: &mounts,
            network,
            working_dir: &working_dir,
            hostname: hostname(&wish.start),
            span: Span::Lasting,
            to_files: true,
        };
        let made = self.maker().make(making, given_up, is_made).await?;
        let address = match made.address {
            Some(address) => address,
            None => look_for_address(id, network).await?,
        };
        self.run(id, container).await?;
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        let task = self.task(id).await.map_err(|status| start_refused(&status, container))?;
        let is_gone = task.as_ref().is_none_or(|task| word(task.status) == Status::Stopped);
        if is_gone {
            let group = groups::of_container(&self.owner, Span::Lasting, id);
            return Err(exited(id, &group, task.map_or(0, |task| task.exit_status)));
        }
        Ok(launched(id.to_owned(), address))
    }
}

/// On a network whose plugins gave none: they may yet be told of one by others.
async fn look_for_address(id: &str, network: &str) -> Result<IpAddr, StartError> {
    let mut pause = LOOK_AGAIN;
    for _ in 0..ADDRESS_TRIES {
        tokio::time::sleep(pause).await;
        pause *= 2;
        if let Some(address) = Beside::of(id).address() {
            return Ok(address);
        }
    }
    Err(no_address(id, network, ADDRESS_TRIES))
}

/// It ended before it could be told of.
fn exited(id: &str, group: &str, status: u32) -> StartError {
    let meter = Meter::default();
    meter.set_group(groups::files(group));
    meter.read();
    let (code, how) = match meter.oom() {
        true => (Code::OutOfMemory, "was killed for its memory".to_owned()),
        false => (Code::InstanceExited, format!("ended with exit code {status}")),
    };
    let mut message = format!("the container `{id}` {how} as soon as it was started");
    let beside = Beside::of(id);
    let last = [beside.log("stderr"), beside.log("stdout")].map(|path| tail::last_words(&path));
    if let Some(last) = last.iter().find(|words| !words.is_empty()) {
        message = format!("{message}; its last words: {last}");
    }
    StartError::Refused { code, message }
}
