//! A remote behind real ssh: the system's own client, and a server that knows one key.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use schemas::{Code, State};
use serde_json::{Value, json};

use super::{World, mends, succeeded};
use crate::support::Program;
use crate::support::python::Python;
use crate::support::repo::RIGHT;

/// Serves the world's folder until it is dropped.
struct Host {
    server: Python,
    folder: PathBuf,
}

fn key(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
    assert!(made.expect("ssh-keygen runs").success());
    path
}

impl Host {
    /// One that knows the key `known`.
    fn start(world: &World) -> Self {
        let folder = world.fleet.folder().to_owned();
        let known = key(&folder, "known.key").with_extension("key.pub");
        let args = [("--root", folder.clone()), ("--key", known), ("--host-key", key(&folder, "host.key"))];
        let args = args.iter().flat_map(|(flag, path)| [OsStr::new(flag), path.as_os_str()]);
        Self { server: Python::start("ssh/server.py", args), folder }
    }

    /// A worker that goes there with this key, and believes the host keys in `hosts`.
    async fn worker(&self, world: &World, name: &str, key: &str) -> Program {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let ssh = format!(
            "ssh -i {} -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={}",
            at(key),
            at("hosts")
        );
        let worker = world.builder(name).queues(name).env("SHOAL_GIT_SSH_COMMAND", &ssh);
        worker.env("SHOAL_ALLOWED_REPOSITORIES", "ssh://git@127.0.0.1*/**").start().await
    }

    fn job(&self, world: &World) -> Value {
        world.job(json!({"repository": format!("ssh://git@127.0.0.1:{}{}", self.server.port, world.repo.url())}))
    }
}

#[tokio::test]
async fn a_task_becomes_a_tested_branch_over_ssh() {
    let world = World::of(mends()).await;
    let host = Host::start(&world);
    let _worker = host.worker(&world, "w", "known.key").await;
    let record = world.fleet.run("w.t", &host.job(&world)).await;
    succeeded(&record);
    assert_eq!(world.repo.file("feature/task-t-add-do-not-subtract", "add.sh").as_deref(), Some(RIGHT));
    world.model_is_content();
}

#[tokio::test]
async fn a_key_that_is_not_taken_and_a_host_that_is_another_one_are_told() {
    let world = World::of(mends()).await;
    let host = Host::start(&world);
    key(&host.folder, "stranger.key");
    let _stranger = host.worker(&world, "stranger", "stranger.key").await;
    let refused = async |key: &str| {
        let record = world.fleet.run(key, &host.job(&world)).await;
        let error = record.error.expect("an error");
        assert_eq!((record.state, error.code, record.attempts.len()), (State::Failed, Code::GitLoginRefused, 1));
        error.message
    };
    let message = refused("stranger.t").await;
    assert!(message.contains("Permission denied"), "{message}");
    // Whoever answers there now is not who answered before.
    let other = std::fs::read_to_string(host.folder.join("stranger.key.pub")).expect("a key");
    let known = format!("[127.0.0.1]:{} {other}", host.server.port);
    std::fs::write(host.folder.join("hosts"), known).expect("written");
    let _worker = host.worker(&world, "w", "known.key").await;
    let message = refused("w.t").await;
    assert!(message.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"), "{message}");
    assert_eq!(world.repo.branches(), Vec::<String>::new());
    assert!(world.model.requests().is_empty());
}
