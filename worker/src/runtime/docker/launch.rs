//! The start of an instance: image, create, attach, start, address; each step undone if a later one fails.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bollard::models::{ContainerInspectResponse, EndpointSettings};
use bollard::query_parameters::CreateContainerOptionsBuilder;
use schemas::Code;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::NAME;
use super::attend::{attach, settled};
use super::core::Core;
use super::create::{Plan, Work, check_limits};
use super::early::Early;
use super::engine::PATIENCE;
use super::labels::{instance_labels, instance_name};
use super::refusal::{attach_refused, create_refused, is_unreachable, start_refused, words};
use crate::policy::FUNCTION_NETWORK;
use crate::runtime::StartError;
use crate::runtime::instances::{ADDRESS_TRIES, Launch, Launched, no_address};

/// Before the second look for an address; doubled before each further one.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a request that nobody saw answered may still make something.
const MAY_STILL_COME: Duration = Duration::from_secs(300);

/// One that runs, not yet anybody's.
struct Made {
    launched: Launched,
    early: Early,
    gone: CancellationToken,
}

impl Core {
    /// Launches in a task of its own, which takes back what it made when nobody waits for it any more.
    pub(super) async fn launch(self: Arc<Self>, wish: Launch) -> Result<Launched, StartError> {
        if self.closed.is_cancelled() {
            return Err(StartError::Failed { what: "the docker runtime is closed".to_owned(), source: None });
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
        let name = instance_name(&wish);
        let mut is_made = false;
        let made = self.begin_instance(&wish, &name, &given_up, &mut is_made).await;
        let Made { launched, early, gone } = match made {
            Ok(made) => made,
            Err(error) => {
                if is_made {
                    self.undo(&name).await;
                }
                // What was said about it is complete before it is known to have failed.
                drop(wish);
                let _ = tell.send(Err(error));
                return;
            }
        };
        let id = launched.id.clone();
        self.kept.begin(&id, early, gone);
        if tell.send(Ok(launched)).is_err() || kept.await.is_err() {
            self.undo(&name).await;
            self.kept.forget(&id);
        }
    }

    /// Everything up to the address. `is_made` says that there may be a container.
    async fn begin_instance(
        self: &Arc<Self>,
        wish: &Launch,
        name: &str,
        given_up: &CancellationToken,
        is_made: &mut bool,
    ) -> Result<Made, StartError> {
        let (container, engine) = (&wish.container, &self.engine);
        let policy = &self.settings.policy;
        policy.check_function(&self.settings, container)?;
        self.check_mounts(container)?;
        let facts = engine.facts();
        for warning in check_limits(&wish.limits, &self.settings.limits, &facts)? {
            wish.notes.say(&warning).await;
        }
        let gave_up = || StartError::Failed { what: "the launch was given up".to_owned(), source: None };
        let ensuring = self.images.ensure(&container.image, self.pull_policy(container), &wish.notes);
        let image = given_up.run_until_cancelled(ensuring).await.ok_or_else(gave_up)??;
        let network = container.network.as_deref().unwrap_or(FUNCTION_NETWORK);
        let mounts = policy.mounts(&self.settings, container)?;
        let plan = Plan {
            container,
            env: wish.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            limits: &wish.limits,
            image: &image.id,
            working_dir: container.working_dir.as_deref(),
            labels: instance_labels(&self.owner, wish),
            network,
            mounts: &mounts,
            work: Work::None,
            facts: &facts,
        };
        // No request from here on is broken off half way: what the engine made of it would not be known.
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let created = engine.ask(PATIENCE, engine.docker.create_container(Some(options), plan.body())).await;
        // A refusal made nothing; what has that name already is another's.
        *is_made = created.as_ref().map_or_else(|error| is_unreachable(error).is_some(), |_| true);
        let id = created.map_err(|error| create_refused(error, container))?.id;
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        let attached = attach(engine, &id, false).await.map_err(|error| attach_refused(error, container))?;
        let gone = CancellationToken::new();
        let early = Early::listen(self, &id, attached, gone.clone());
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        if let Some(why) = engine.trouble().borrow().clone() {
            return Err(StartError::Unavailable { runtime: NAME, why });
        }
        self.start_created(&id, container).await?;
        let looking = self.look_for_address(wish, name, &id, network, &early);
        let address = given_up.run_until_cancelled(looking).await.ok_or_else(gave_up)??;
        Ok(Made { launched: Launched { id, name: name.to_owned(), address }, early, gone })
    }

    /// The first look is at the start itself; if it finds none, [`ADDRESS_TRIES`] more follow.
    async fn look_for_address(
        &self,
        wish: &Launch,
        name: &str,
        id: &str,
        network: &str,
        early: &Early,
    ) -> Result<IpAddr, StartError> {
        let (mut looks, mut pause) = (0, LOOK_AGAIN);
        loop {
            let found = self.engine.ask(PATIENCE, self.engine.docker.inspect_container(id, None)).await;
            let found = found.map_err(|error| start_refused(error, &wish.container))?;
            if !found.state.as_ref().and_then(|state| state.running).unwrap_or(false) {
                return Err(self.exited(name, id, found, early).await);
            }
            let networks = found.network_settings.and_then(|settings| settings.networks);
            if let Some(address) = address(networks.into_iter().flatten(), network) {
                return Ok(address);
            }
            if looks == ADDRESS_TRIES {
                return Err(no_address(name, network, looks));
            }
            tokio::time::sleep(pause).await;
            (looks, pause) = (looks + 1, pause * 2);
        }
    }

    /// It ended before it could be told of.
    async fn exited(&self, name: &str, id: &str, found: ContainerInspectResponse, early: &Early) -> StartError {
        let (state, _) = settled(&self.engine, id, found.state.unwrap_or_default(), || false).await;
        let (code, how) = match (state.oom_killed, state.exit_code) {
            (Some(true), _) => (Code::OutOfMemory, "was killed for its memory".to_owned()),
            (_, exit) => (Code::InstanceExited, format!("ended with exit code {}", exit.unwrap_or_default())),
        };
        let mut message = format!("the container `{name}` {how} as soon as it was started");
        let last = early.last_words();
        if !last.is_empty() {
            message = format!("{message}; its last words: {last}");
        }
        StartError::Refused { code, message }
    }

    /// Removes what a launch made, or may have made, by its name: nothing else can have it.
    async fn undo(&self, name: &str) {
        let removed = self.remove(name).await;
        if let Err(error) = &removed {
            tracing::warn!(name, error = words(error), "an instance is not taken back yet; a sweep will");
        }
        // Of an engine that is away it is not known what it will still do.
        if removed.is_err() || self.engine.trouble().borrow().is_some() {
            self.undone.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Instant::now());
        }
    }

    /// Tries again what could not be taken back.
    pub(super) async fn take_back_undone(&self) {
        let undone = self.undone.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, since) in undone {
            if self.remove(&name).await.is_ok() && since.elapsed() > MAY_STILL_COME {
                self.undone.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            }
        }
    }
}

/// Where a container of these networks is reached: on the one that it was started in, else on the first by name.
pub(super) fn address(networks: impl IntoIterator<Item = (String, EndpointSettings)>, network: &str) -> Option<IpAddr> {
    let parse = |text: Option<String>| text.and_then(|text| text.parse::<IpAddr>().ok());
    let of = |(name, settings): (String, EndpointSettings)| {
        let address = parse(settings.ip_address).or_else(|| parse(settings.global_ipv6_address))?;
        Some((name != network, name, address))
    };
    networks.into_iter().filter_map(of).min().map(|(.., address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_that_of_the_network_it_was_started_in() {
        let endpoint = |v4: &str, v6: &str| EndpointSettings {
            ip_address: Some(v4.to_owned()),
            global_ipv6_address: Some(v6.to_owned()),
            ..EndpointSettings::default()
        };
        let find = |networks: &[(&str, &str, &str)], network| {
            let networks = networks.iter().map(|(name, v4, v6)| ((*name).to_owned(), endpoint(v4, v6)));
            address(networks, network).map(|address| address.to_string())
        };
        let both = [("a", "10.0.0.1", ""), ("b", "10.0.0.2", "")];
        assert_eq!(find(&both, "b").as_deref(), Some("10.0.0.2"));
        assert_eq!(find(&both, "c").as_deref(), Some("10.0.0.1"));
        assert_eq!(find(&[("b", "", ""), ("c", "10.0.0.3", "")], "b").as_deref(), Some("10.0.0.3"));
        assert_eq!(find(&[("b", "", "fd00::2")], "b").as_deref(), Some("fd00::2"));
        assert_eq!(find(&[("none", "", "")], "none"), None);
        assert_eq!(find(&[], "bridge"), None);
    }
}
