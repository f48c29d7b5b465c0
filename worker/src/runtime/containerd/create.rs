//! The making of one container, up to its task that is created and waits to be started.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use containerd_client::services::v1::container::Runtime as ShimName;
use containerd_client::services::v1::{Container as Record, CreateContainerRequest, CreateTaskRequest};
use containerd_client::tonic::Status;
use prost_types::Any;
use schemas::Code;
use schemas::task::{Container, Mount};
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, PATIENCE, ours};
use super::groups::{self, Span};
use super::image::Image;
use super::input::{Beside, Pipes};
use super::labels::{Ways, signal};
use super::network;
use super::snapshot::SNAPSHOTTER;
use super::spec::{Net, Plan};
use super::status::{refused, words};
use super::users::{self, User, UserError};
use super::{NAME, namespace, view};
use crate::runtime::container::labels::Owner;
use crate::runtime::{Bounds, StartError};

/// What containerd calls a specification of OCI.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// What runs containers unless a task asks for something else.
const RUNC: &str = "io.containerd.runc.v2";
/// Its options, and their field with the name of another program like runc.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
const BINARY_NAME: u8 = 6 << 3 | 2;
/// Inits that distributions have: static, so that they run in any image.
const INITS: [&str; 4] = ["tini-static", "docker-init", "catatonit", "tini"];

/// A container to make.
pub(super) struct Wish<'a> {
    pub(super) id: String,
    /// Whose it is, and what for.
    pub(super) labels: HashMap<String, String>,
    pub(super) container: &'a Container,
    pub(super) image: &'a Image,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) limits: &'a Bounds,
    /// The job's own folder, if it has one.
    pub(super) folder: Option<&'a Path>,
    /// Checked.
    pub(super) mounts: &'a [Mount],
    pub(super) network: &'a str,
    pub(super) working_dir: &'a str,
    pub(super) hostname: String,
    pub(super) span: Span,
    /// Its output goes to files that stay, not to us.
    pub(super) to_files: bool,
}

/// A created container.
pub(super) struct Made {
    /// Of its first process.
    pub(super) pid: u32,
    /// What it writes, unless that goes to files.
    pub(super) pipes: Option<Pipes>,
    pub(super) address: Option<IpAddr>,
}

/// Users that were looked up, by image and word.
#[derive(Default)]
pub(super) struct Users {
    known: Mutex<HashMap<(String, String), User>>,
}

impl Users {
    /// Whom a container of this image runs as.
    pub(super) async fn find(&self, engine: &Engine, image: &Image, user: &str) -> Result<User, StartError> {
        if !users::needs_files(user) {
            return Ok(User::default());
        }
        let key = (image.chain.clone(), user.to_owned());
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned() {
            return Ok(known);
        }
        let failed = |source: std::io::Error| StartError::Failed {
            what: "the image's users cannot be read".to_owned(),
            source: Some(source),
        };
        let wanted = user.to_owned();
        let found = look_up(engine, image, move || Ok(users::by_files(&wanted))).await.map_err(failed)?;
        let found = found.map_err(|error| match error {
            UserError::Files(source) => failed(source),
            error => StartError::Refused { code: Code::UserNotFound, message: error.to_string() },
        })?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found.clone());
        Ok(found)
    }
}

/// Looks into the files of an image.
async fn look_up<T: Send + 'static>(
    engine: &Engine,
    image: &Image,
    look: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let failed = |status: Status| std::io::Error::other(words(&status));
    let lease = engine.lease().await.map_err(failed)?;
    let key = format!("shoal-view-{:016x}", rand::random::<u64>());
    let found = match engine.view(&key, &image.chain, &lease).await {
        Ok(mounts) => {
            let found = view::within(mounts, view::place()?, look).await;
            let _ = engine.remove_snapshot(&key).await;
            found
        }
        Err(status) => Err(failed(status)),
    };
    engine.give_back(lease).await;
    found
}

/// What a worker of containerd needs to make containers.
pub(super) struct Maker<'a> {
    pub(super) engine: &'a Engine,
    pub(super) owner: &'a Owner,
    pub(super) users: &'a Users,
}

impl Maker<'_> {
    /// Makes it. From the moment in which `is_made` is set there may be something to undo. Not cancel safe.
    pub(super) async fn make(
        &self,
        wish: Wish<'_>,
        given_up: &CancellationToken,
        is_made: &mut bool,
    ) -> Result<Made, StartError> {
        let engine = self.engine;
        let facts = engine.facts();
        let shim = shim(wish.container.engine_runtime.as_deref())?;
        let init = if wish.container.init { Some(find_init()?) } else { None };
        let user = wish.container.user.as_deref().or(wish.image.config.user.as_deref()).unwrap_or_default();
        let user = self.users.find(engine, wish.image, user).await?;
        let group = groups::of_container(self.owner, wish.span, &wish.id);
        let beside = Beside::of(&wish.id);
        let plan = Plan {
            container: wish.container,
            image: &wish.image.config,
            env: wish.env,
            user: &user,
            working_dir: wish.working_dir,
            mounts: wish.mounts,
            folder: wish.folder,
            etc: beside.path(),
            hostname: &wish.hostname,
            net: self.net(&wish),
            limits: wish.limits,
            facts: &facts,
            group: &group,
            init: init.as_deref(),
        };
        if plan.args().is_empty() {
            return Err(StartError::CommandNotFound { program: "the image's command".to_owned() });
        }
        let stop_signal = wish.image.config.stop_signal.as_deref().and_then(signal).unwrap_or(libc::SIGTERM as u32);
        let mut labels = wish.labels.clone();
        Ways { network: wish.network.to_owned(), group: group.clone(), stop_signal }.write(&mut labels);
        let record = Record {
            id: wish.id.clone(),
            labels,
            image: wish.container.image.clone(),
            runtime: Some(shim),
            spec: Some(Any { type_url: SPEC.to_owned(), value: plan.spec().to_string().into_bytes() }),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: wish.id.clone(),
            ..Record::default()
        };
        let gave_up = || StartError::Failed { what: "the start was given up".to_owned(), source: None };
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        // No request from here on is broken off half way: what containerd made of it would not be known.
        *is_made = true;
        const CREATE: &str = "create the container";
        let refused = |status: Status| refused(&status, wish.container, CREATE);
        let request = CreateContainerRequest { container: Some(record) };
        engine.ask(PATIENCE, engine.containers().create(ours(request))).await.map_err(refused)?;
        let rootfs = engine.prepare(&wish.id, &wish.image.chain).await.map_err(refused)?;
        let failed = |source| StartError::Failed {
            what: format!("the files of the container cannot be made in {}", beside.path().display()),
            source: Some(source),
        };
        let pipes = match wish.to_files {
            true => beside.make_files().map(|()| None),
            false => beside.make(wish.container.stdin.is_some()).map(Some),
        };
        let pipes = pipes.map_err(failed)?;
        let connected = network::connect(engine, self.owner, &wish.id, wish.network).await?;
        beside.write_etc(&wish.hostname, connected.address, connected.net == Net::Host).map_err(failed)?;
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        let has_stdin = wish.container.stdin.is_some() && !wish.to_files;
        let request = CreateTaskRequest {
            container_id: wish.id.clone(),
            rootfs,
            stdin: if has_stdin { beside.stdin() } else { String::new() },
            stdout: if wish.to_files { beside.log("stdout") } else { beside.stdout() },
            stderr: if wish.to_files { beside.log("stderr") } else { beside.stderr() },
            ..CreateTaskRequest::default()
        };
        let created = engine.ask(PATIENCE, engine.tasks().create(ours(request))).await.map_err(refused)?;
        if given_up.is_cancelled() {
            return Err(gave_up());
        }
        // Not even asked for, it certainly does not run.
        if let Some(why) = engine.trouble().borrow().clone() {
            return Err(StartError::Unavailable { runtime: NAME, why });
        }
        Ok(Made { pid: created.pid, pipes, address: connected.address })
    }

    /// The namespace that the container will be in, which is not made yet.
    fn net(&self, wish: &Wish<'_>) -> Net {
        let at = |name: &str| Net::At(namespace::path(name).to_string_lossy().into_owned());
        match wish.network {
            "none" => Net::Own,
            "host" => Net::Host,
            "shared" => at(&network::shared(self.owner)),
            _ => at(&wish.id),
        }
    }
}

/// Where it runs: the task's word, else the image's, else the work folder.
pub(super) fn working_dir(container: &Container, image: &Image, otherwise: &str) -> String {
    let of_image = image.config.working_dir.clone().filter(|folder| !folder.is_empty() && folder != "/");
    container.working_dir.clone().or(of_image).unwrap_or_else(|| otherwise.to_owned())
}

/// Which shim: the default, one by its whole name, or that of runc with another program like it.
fn shim(word: Option<&str>) -> Result<ShimName, StartError> {
    let named = |name: &str| Ok(ShimName { name: name.to_owned(), options: None });
    match word {
        None | Some("runc") => named(RUNC),
        Some("runsc") => named("io.containerd.runsc.v1"),
        Some("kata") => named("io.containerd.kata.v2"),
        Some(name) if name.contains('.') => named(name),
        Some(program) if find_program(program).is_some() && program.len() < 128 => {
            let mut value = vec![BINARY_NAME, program.len() as u8];
            value.extend(program.as_bytes());
            Ok(ShimName { name: RUNC.to_owned(), options: Some(Any { type_url: RUNC_OPTIONS.to_owned(), value }) })
        }
        Some(unknown) => {
            let message = format!(
                "this worker's containerd has no runtime `{unknown}`: it is neither the name of a shim nor a program here"
            );
            Err(StartError::Refused { code: Code::PolicyForbidden, message })
        }
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_name = !name.is_empty() && !name.contains('/');
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| is_name && path.is_file())
}

/// The machine's small init.
fn find_init() -> Result<PathBuf, StartError> {
    let usual = ["/usr/libexec/docker", "/usr/lib/docker", "/usr/libexec/podman", "/usr/bin", "/sbin"];
    let elsewhere = || usual.iter().flat_map(|folder| INITS.map(|name| Path::new(folder).join(name)));
    let found = INITS.iter().find_map(|name| find_program(name)).or_else(|| elsewhere().find(|path| path.is_file()));
    found.ok_or_else(|| {
        let message =
            format!("containerd has no init of its own, and this worker's machine has none of {}", INITS.join(", "));
        StartError::Refused { code: Code::Unimplemented, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_a_shim_or_a_program_like_runc() {
        let name = |word| shim(word).map(|shim| (shim.name, shim.options.map(|options| options.value)));
        assert_eq!(name(None).unwrap(), (RUNC.to_owned(), None));
        assert_eq!(name(Some("runsc")).unwrap().0, "io.containerd.runsc.v1");
        assert_eq!(name(Some("io.containerd.kata.v2")).unwrap().0, "io.containerd.kata.v2");
        // Any program will do for a name.
        assert_eq!(name(Some("env")).unwrap(), (RUNC.to_owned(), Some(b"\x32\x03env".to_vec())));
        let refused = name(Some("nosuch")).unwrap_err();
        assert!(matches!(refused, StartError::Refused { code: Code::PolicyForbidden, .. }), "{refused}");
    }
}
