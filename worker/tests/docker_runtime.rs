//! The Docker runtime on a real engine.
#![cfg(target_os = "linux")]

#[path = "support/engine.rs"]
mod engine;
#[path = "support/proxy.rs"]
mod proxy;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::ListContainersOptionsBuilder;
use schemas::task::{Container, PullPolicy};
use schemas::{AgentId, Bytes, Code, Cpu, Limit, QueueName, StartId, TaskId, TaskKey, Workload};
use shoal_worker::GuardCommand;
use shoal_worker::logs::Notes;
use shoal_worker::policy::ContainerSettings;
use shoal_worker::runtime::docker::guard::CONTAINER_GUARD_ARGUMENT;
use shoal_worker::runtime::docker::{DockerConfig, DockerRuntime};
use shoal_worker::runtime::{Bounds, Exit, Job, Runtime, RuntimeError, StartError, Started, Status};
use tokio::io::AsyncReadExt;

use engine::{IMAGE, engine};
use proxy::Proxy;

/// Becomes the guard before `main`, which belongs to the test harness and would start threads.
#[used]
#[unsafe(link_section = ".init_array")]
static GUARD: extern "C" fn(c_int, *const *const c_char) = {
    extern "C" fn become_guard(count: c_int, arguments: *const *const c_char) {
        if count < 2 {
            return;
        }
        // SAFETY: glibc hands the arguments of `main` to what stands in this section.
        let argument = unsafe { CStr::from_ptr(*arguments.add(1)) };
        if argument.to_bytes() == CONTAINER_GUARD_ARGUMENT.as_bytes() {
            shoal_worker::container_guard_main();
            std::process::exit(0);
        }
    }
    become_guard
};

/// No test waits longer; in time means in far less.
const TOO_LONG: Duration = Duration::from_secs(60);

/// A runtime of a worker of its own.
struct Fixture {
    docker: Docker,
    runtime: DockerRuntime,
    worker: AgentId,
    folder: tempfile::TempDir,
}

impl Fixture {
    /// `None` where no engine answers.
    async fn new() -> Option<Self> {
        Self::with(ContainerSettings::default()).await
    }

    async fn with(settings: ContainerSettings) -> Option<Self> {
        let docker = engine().await?;
        let worker = AgentId::new(format!("test-{:08x}", rand::random::<u32>())).unwrap();
        let config = DockerConfig {
            settings,
            fleet: "test".to_owned(),
            worker: worker.clone(),
            instance: "one".to_owned(),
            scratch: std::env::temp_dir().join(format!("shoal-test-pulls-{:016x}", rand::random::<u64>())),
            guard: GuardCommand::this_program(),
        };
        let runtime = within(DockerRuntime::new(config)).await.unwrap();
        Some(Self { docker, runtime, worker, folder: tempfile::tempdir().unwrap() })
    }

    fn job(&self, container: Container) -> Job {
        let start = StartId::new(format!("s{:08x}", rand::random::<u32>())).unwrap();
        let folder = self.folder.path().join(start.as_str());
        std::fs::create_dir(&folder).unwrap();
        Job {
            result_file: self.folder.path().join(format!("{start}.result")),
            start,
            key: TaskKey::new(QueueName::new("queue").unwrap(), TaskId::new("Task_1").unwrap()),
            attempt: 1,
            env: container.env.clone(),
            workload: Workload::Container(container),
            folder,
            artifacts: Vec::new(),
            notes: Notes::nowhere(),
            limits: ContainerSettings::default().limits,
            alive_until: None,
            binds: Vec::new(),
        }
    }

    fn shell(&self, script: &str) -> Job {
        self.job(shell(script))
    }

    /// Starts `job` and reads its output to the end.
    async fn run(&self, job: Job) -> Output {
        let start = job.start.clone();
        let started = within(self.runtime.start(job)).await.unwrap();
        self.finish(&start, started).await
    }

    async fn finish(&self, start: &StartId, mut started: Started) -> Output {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let read = async {
            let (a, b) = tokio::join!(started.stdout.read_to_end(&mut stdout), started.stderr.read_to_end(&mut stderr));
            assert!(a.is_ok() && b.is_ok());
            self.runtime.wait(start).await.unwrap()
        };
        let exit = within(read).await;
        Output {
            stdout: String::from_utf8_lossy(&stdout).into(),
            stderr: String::from_utf8_lossy(&stderr).into(),
            exit,
        }
    }

    /// What the engine has of this worker, by kind and state.
    async fn left(&self) -> Vec<String> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("shoal.worker={}", self.worker)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await.unwrap();
        found.into_iter().map(|container| container.labels.unwrap()["shoal.kind"].clone()).collect()
    }

    async fn inspect(&self, start: &StartId) -> ContainerInspectResponse {
        let filters = HashMap::from([("label".to_owned(), vec![format!("shoal.start={start}")])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await.unwrap();
        let id = found[0].id.clone().unwrap();
        self.docker.inspect_container(&id, None).await.unwrap()
    }

    /// Nothing of this worker is left once it is closed.
    async fn close(self) {
        within(self.runtime.close()).await;
        assert_eq!(self.left().await, Vec::<String>::new());
    }
}

#[derive(Debug)]
struct Output {
    stdout: String,
    stderr: String,
    exit: Exit,
}

fn shell(script: &str) -> Container {
    Container { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..Container::new(IMAGE) }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TOO_LONG, future).await.expect("it takes too long")
}

/// Waits until `look` finds something.
async fn eventually<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F) -> T {
    within(async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Reads until `word` has come.
async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), word: &str) -> String {
    let mut text = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&text).contains(word) {
            assert!(stream.read_buf(&mut text).await.unwrap() > 0, "it ended without `{word}`");
        }
    })
    .await;
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_container_tells_its_output_and_its_exit_and_leaves_nothing() {
    let Some(fixture) = Fixture::new().await else { return };
    let job = fixture.shell("echo out; echo err >&2; exit 3");
    let start = job.start.clone();
    let output = fixture.run(job).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!((output.exit.code, output.exit.signal, output.exit.oom), (Some(3), None, false));
    assert_eq!(fixture.left().await, ["task"]);
    within(fixture.runtime.remove(&start)).await.unwrap();
    assert_eq!(fixture.left().await, Vec::<String>::new());
    // What is gone already is gone.
    within(fixture.runtime.remove(&start)).await.unwrap();
    within(fixture.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    assert!(matches!(fixture.runtime.wait(&start).await, Err(RuntimeError::NotFound { .. })));
    fixture.close().await;
}

#[tokio::test]
async fn a_container_gets_its_environment_user_folder_and_input() {
    let Some(fixture) = Fixture::new().await else { return };
    let container = Container {
        stdin: Some("fed\n".repeat(50_000)),
        user: Some("job".to_owned()),
        working_dir: Some("/app".to_owned()),
        env: [("WORD".to_owned(), "with spaces = and \"quotes\"".to_owned())].into(),
        ..shell("id -u; pwd; echo \"$WORD\"; wc -l; touch /shoal/mine && echo writable")
    };
    let output = fixture.run(fixture.job(container)).await;
    assert_eq!(output.stdout, "1000\n/app\nwith spaces = and \"quotes\"\n50000\nwritable\n", "{}", output.stderr);
    assert_eq!(output.exit.code, Some(0));
    // Without a word of where, it is the work folder.
    assert_eq!(fixture.run(fixture.shell("pwd")).await.stdout, "/shoal\n");
    // Nobody has to read what is fed to it.
    let unread = Container { stdin: Some("x".repeat(1 << 20)), ..shell("exit 0") };
    assert_eq!(fixture.run(fixture.job(unread)).await.exit.code, Some(0));
    fixture.close().await;
}

#[tokio::test]
async fn an_entrypoint_comes_before_the_command() {
    let Some(fixture) = Fixture::new().await else { return };
    let container = Container {
        entrypoint: ["echo", "first"].map(str::to_owned).to_vec(),
        command: vec!["second".to_owned()],
        ..Container::new(IMAGE)
    };
    assert_eq!(fixture.run(fixture.job(container)).await.stdout, "first second\n");
    fixture.close().await;
}

#[tokio::test]
async fn a_paused_container_stands_still_and_goes_on() {
    let Some(fixture) = Fixture::new().await else { return };
    let job = fixture.shell("while :; do echo tick; sleep 0.02; done");
    let (start, mut started) = (job.start.clone(), within(fixture.runtime.start(job)).await.unwrap());
    read_until(&mut started.stdout, "tick").await;
    let status = || async { fixture.runtime.list().await.unwrap().pop().map(|listed| listed.status) };
    assert_eq!(status().await, Some(Status::Running));
    fixture.runtime.pause(&start).await.unwrap();
    // Twice is no error.
    fixture.runtime.pause(&start).await.unwrap();
    assert_eq!(status().await, Some(Status::Paused));
    fixture.runtime.resume(&start).await.unwrap();
    fixture.runtime.resume(&start).await.unwrap();
    assert_eq!(status().await, Some(Status::Running));
    read_until(&mut started.stdout, "tick").await;
    fixture.runtime.pause(&start).await.unwrap();
    within(fixture.runtime.stop(&start, Duration::ZERO)).await.unwrap();
    assert_eq!(status().await, Some(Status::Stopped));
    let unknown = StartId::new("nobody").unwrap();
    assert!(matches!(fixture.runtime.pause(&unknown).await, Err(RuntimeError::NotFound { .. })));
    drop(started);
    fixture.close().await;
}

#[tokio::test]
async fn a_running_container_is_hardened_and_bounded() {
    let Some(fixture) = Fixture::new().await else { return };
    let mut job = fixture.shell("sleep 1000");
    job.limits =
        Bounds { cpu: Limit::At(Cpu { millis: 250 }), memory: Limit::At(Bytes::mebi(64)), pids: Limit::At(33) };
    let (start, folder) = (job.start.clone(), job.folder.clone());
    let started = within(fixture.runtime.start(job)).await.unwrap();
    let found = fixture.inspect(&start).await;
    let host = found.host_config.unwrap();
    assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(host.cap_add.unwrap_or_default(), Vec::<String>::new());
    assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    assert_eq!(host.privileged, Some(false));
    assert_eq!((host.nano_cpus, host.memory, host.pids_limit), (Some(250_000_000), Some(64 << 20), Some(33)));
    assert_eq!(host.memory_swap, Some(64 << 20));
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.pid_mode.unwrap_or_default(), "");
    assert_eq!(host.ipc_mode.as_deref(), Some("private"));
    assert_eq!(host.log_config.and_then(|log| log.typ).as_deref(), Some("none"));
    assert_eq!(host.restart_policy.unwrap().name.unwrap().to_string(), "no");
    assert_eq!(host.auto_remove, Some(false));
    let mounts: Vec<_> =
        found.mounts.unwrap().into_iter().map(|m| (m.source.unwrap(), m.destination.unwrap())).collect();
    assert!(mounts.iter().all(|mount| *mount == (folder.display().to_string(), "/shoal".to_owned())), "{mounts:?}");
    let labels = found.config.unwrap().labels.unwrap();
    assert_eq!(labels["shoal.name"], "queue.Task_1");
    assert_eq!(found.name.unwrap(), format!("/shoal-queue-Task_1-{start}"));
    drop(started);
    fixture.close().await;
}

#[tokio::test]
async fn no_bound_is_none_at_the_engine() {
    let Some(fixture) = Fixture::new().await else { return };
    let mut job = fixture.shell("sleep 1000");
    job.limits = Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited };
    let start = job.start.clone();
    let _started = within(fixture.runtime.start(job)).await.unwrap();
    let host = fixture.inspect(&start).await.host_config.unwrap();
    let none = |bound: Option<i64>| bound.is_none_or(|bound| bound <= 0);
    assert!(none(host.nano_cpus) && none(host.memory) && none(host.pids_limit), "{host:?}");
    fixture.close().await;
}

#[tokio::test]
async fn a_read_only_image_has_a_place_to_write() {
    let Some(fixture) = Fixture::new().await else { return };
    let script = "touch /bin/x 2>/dev/null && echo bad; touch /tmp/x && touch /shoal/x && echo good";
    let container = Container { read_only: true, user: Some("job".to_owned()), ..shell(script) };
    assert_eq!(fixture.run(fixture.job(container)).await.stdout, "good\n");
    fixture.close().await;
}

#[tokio::test]
async fn results_and_artifacts_come_out_of_the_work_folder() {
    let Some(fixture) = Fixture::new().await else { return };
    let mut job = fixture.shell("echo 42 > /shoal/.result; mkdir out; echo a > out/a.txt; chmod 600 out/a.txt");
    job.artifacts = vec!["out/**".to_owned()];
    check_files(&fixture, job).await;
    fixture.close().await;
}

#[tokio::test]
async fn results_and_artifacts_come_out_of_another_working_folder() {
    let Some(fixture) = Fixture::new().await else { return };
    let script = "echo 42 > /shoal/.result; mkdir out; echo a > out/a.txt; echo no > out/b.log; \
                  ln -s /etc/passwd out/link.txt; ln -s /etc /shoal/out";
    let container = Container { working_dir: Some("/app".to_owned()), ..shell(script) };
    let mut job = fixture.job(container);
    job.artifacts = vec!["out/*.txt".to_owned(), "nothing/**".to_owned()];
    let folder = job.folder.clone();
    check_files(&fixture, job).await;
    assert_eq!(std::fs::read_dir(folder.join("out")).unwrap().count(), 1);
    fixture.close().await;
}

#[tokio::test]
async fn artifacts_come_out_of_a_folder_within_the_work_folder() {
    let Some(fixture) = Fixture::new().await else { return };
    let container = Container {
        working_dir: Some("/shoal/below".to_owned()),
        ..shell("echo 42 > /shoal/.result; mkdir out; echo a > out/a.txt; ln -s /etc /shoal/link")
    };
    let mut job = fixture.job(container);
    job.artifacts = vec!["out/**".to_owned()];
    let folder = job.folder.clone();
    check_files(&fixture, job).await;
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing but what was asked for");
    fixture.close().await;
}

/// Runs a job that writes `42` as its result and `a` into `out/a.txt`.
async fn check_files(fixture: &Fixture, job: Job) {
    let (start, folder, result) = (job.start.clone(), job.folder.clone(), job.result_file.clone());
    let output = fixture.run(job).await;
    assert_eq!(output.exit.code, Some(0), "{}", output.stderr);
    assert_eq!(within(fixture.runtime.collect(&start)).await.unwrap(), Vec::<String>::new());
    within(fixture.runtime.remove(&start)).await.unwrap();
    assert_eq!(std::fs::read_to_string(result).unwrap(), "42\n");
    assert_eq!(std::fs::read_to_string(folder.join("out/a.txt")).unwrap(), "a\n");
    assert!(!folder.join(".result").exists());
}

#[tokio::test]
async fn a_result_that_is_a_link_is_none() {
    let Some(fixture) = Fixture::new().await else { return };
    let job = fixture.shell("ln -s /etc/shadow /shoal/.result");
    let (start, result) = (job.start.clone(), job.result_file.clone());
    fixture.run(job).await;
    let warnings = within(fixture.runtime.collect(&start)).await.unwrap();
    assert!(warnings.iter().any(|warning| warning.contains("no plain file")), "{warnings:?}");
    assert!(std::fs::symlink_metadata(result).is_err());
    fixture.close().await;
}

#[tokio::test]
async fn the_shared_network_is_one_loopback_for_all_that_ask() {
    let mut settings = ContainerSettings::default();
    settings.policy.networks = vec!["shared".to_owned(), "bridge".to_owned()];
    let Some(fixture) = Fixture::with(settings).await else { return };
    let on =
        |network: &str, script: &str| fixture.job(Container { network: Some(network.to_owned()), ..shell(script) });
    let serving = on("shared", "echo ready; echo hello | nc -l -p 7777");
    let mut served = within(fixture.runtime.start(serving)).await.unwrap();
    read_until(&mut served.stdout, "ready").await;
    let asking =
        on("shared", "for i in 1 2 3 4 5 6 7 8 9 10; do nc 127.0.0.1 7777 </dev/null && exit; sleep 0.1; done");
    assert_eq!(fixture.run(asking).await.stdout, "hello\n");
    let interfaces = "ls /sys/class/net | tr '\\n' ' '";
    assert_eq!(fixture.run(on("shared", interfaces)).await.stdout.trim(), "lo");
    assert_eq!(fixture.run(on("none", interfaces)).await.stdout.trim(), "lo");
    assert_eq!(fixture.run(on("bridge", interfaces)).await.stdout.trim(), "eth0 lo");
    assert!(fixture.left().await.contains(&"holder".to_owned()));

    // A holder that is gone is made anew.
    let filters = HashMap::from([(
        "label".to_owned(),
        vec![format!("shoal.worker={}", fixture.worker), "shoal.kind=holder".to_owned()],
    )]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let holder = fixture.docker.list_containers(Some(options)).await.unwrap().pop().unwrap().id.unwrap();
    let force = bollard::query_parameters::RemoveContainerOptionsBuilder::default().force(true).build();
    fixture.docker.remove_container(&holder, Some(force)).await.unwrap();
    assert_eq!(fixture.run(on("shared", interfaces)).await.stdout.trim(), "lo");
    fixture.close().await;
}

/// As of a worker that was frozen in the midst of a start, and may have been replaced meanwhile.
#[tokio::test]
async fn a_container_whose_lease_ended_while_it_was_made_is_not_started() {
    let Some(fixture) = Fixture::new().await else { return };
    let late = Job { alive_until: Some(Instant::now()), ..fixture.shell("true") };
    let refused = within(fixture.runtime.start(late)).await.err().expect("it must not start");
    assert!(matches!(refused, StartError::Unavailable { .. }), "{refused}");
    assert_eq!(fixture.left().await, Vec::<String>::new());
    fixture.close().await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let mut settings = ContainerSettings::default();
    settings.policy.networks = vec!["no-such-network".to_owned()];
    settings.policy.engine_runtimes = vec!["no-such-runtime".to_owned()];
    let Some(fixture) = Fixture::with(settings).await else { return };
    let image = |image: &str| Container { pull: Some(PullPolicy::Never), ..Container::new(image) };
    let refused: [(Container, Code); 8] = [
        (image("shoal-test/no-such-image:1"), Code::ImageNotFound),
        (Container { user: Some("nobody-knows".to_owned()), ..shell("true") }, Code::UserNotFound),
        (Container { command: vec!["no-such-program".to_owned()], ..Container::new(IMAGE) }, Code::CommandNotFound),
        (
            Container { command: vec!["/etc/not-executable".to_owned()], ..Container::new(IMAGE) },
            Code::CommandNotExecutable,
        ),
        (Container { privileged: true, ..shell("true") }, Code::PolicyForbidden),
        (Container { network: Some("host".to_owned()), ..shell("true") }, Code::PolicyForbidden),
        (Container { engine_runtime: Some("no-such-runtime".to_owned()), ..shell("true") }, Code::PolicyForbidden),
        (Container { network: Some("no-such-network".to_owned()), ..shell("true") }, Code::PolicyForbidden),
    ];
    for (container, code) in refused {
        let job = fixture.job(container);
        let start = job.start.clone();
        let error = within(fixture.runtime.start(job)).await.err().expect("it must not start").to_task_error();
        assert_eq!(error.code, code, "{}", error.message);
        assert_eq!(fixture.left().await, Vec::<String>::new(), "{}", error.message);
        assert!(matches!(fixture.runtime.wait(&start).await, Err(RuntimeError::NotFound { .. })));
    }
    let process = schemas::task::Process { command: vec!["true".to_owned()], env: Default::default(), stdin: None };
    let job = Job { workload: Workload::Process(process), ..fixture.shell("true") };
    assert!(matches!(fixture.runtime.start(job).await, Err(StartError::WrongKind { .. })));
    fixture.close().await;
}

#[tokio::test]
async fn a_container_that_somebody_removes_is_lost_not_failed() {
    let Some(fixture) = Fixture::new().await else { return };
    let job = fixture.shell("echo ready; sleep 1000");
    let (start, mut started) = (job.start.clone(), within(fixture.runtime.start(job)).await.unwrap());
    read_until(&mut started.stdout, "ready").await;
    let id = fixture.inspect(&start).await.id.unwrap();
    let force = bollard::query_parameters::RemoveContainerOptionsBuilder::default().force(true).build();
    fixture.docker.remove_container(&id, Some(force)).await.unwrap();
    assert!(matches!(within(fixture.runtime.wait(&start)).await, Err(RuntimeError::Lost { .. })));
    let mut rest = String::new();
    within(started.stdout.read_to_string(&mut rest)).await.unwrap();
    fixture.close().await;
}

#[tokio::test]
async fn a_container_outlives_an_outage_of_the_engine() {
    if engine().await.is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::open(folder.path());
    let settings = ContainerSettings { docker_host: Some(proxy.host()), ..ContainerSettings::default() };
    let Some(fixture) = Fixture::with(settings).await else { return };
    let job = fixture.shell("echo ready; while [ ! -e /shoal/end ]; do sleep 0.05; done; echo after; sleep 2; exit 5");
    let (start, end) = (job.start.clone(), job.folder.join("end"));
    let mut started = within(fixture.runtime.start(job)).await.unwrap();
    read_until(&mut started.stdout, "ready").await;
    let mut trouble = fixture.runtime.trouble().unwrap();

    proxy.shut().await;
    let seen = within(trouble.wait_for(Option::is_some)).await.unwrap().clone();
    assert!(fixture.runtime.capabilities().reason == seen, "{seen:?}");
    let refused = within(fixture.runtime.start(fixture.shell("true"))).await;
    assert!(matches!(refused, Err(StartError::Unavailable { .. })));
    assert_eq!(fixture.left().await, ["task"]);

    proxy.reopen();
    within(trouble.wait_for(Option::is_none)).await.unwrap();
    std::fs::write(end, "").unwrap();
    let output = fixture.finish(&start, started).await;
    assert_eq!(output.exit.code, Some(5));
    within(fixture.runtime.remove(&start)).await.unwrap();
    fixture.close().await;
}

#[tokio::test]
async fn a_container_that_ends_with_its_engine_is_lost() {
    let Some(docker) = engine().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::open(folder.path());
    let settings = ContainerSettings { docker_host: Some(proxy.host()), ..ContainerSettings::default() };
    let Some(fixture) = Fixture::with(settings).await else { return };
    if docker.info().await.unwrap().live_restore_enabled == Some(true) {
        return;
    }
    let job = fixture.shell("echo ready; sleep 1000");
    let (start, mut started) = (job.start.clone(), within(fixture.runtime.start(job)).await.unwrap());
    read_until(&mut started.stdout, "ready").await;
    let id = fixture.inspect(&start).await.id.unwrap();
    proxy.shut().await;
    within(fixture.runtime.trouble().unwrap().wait_for(Option::is_some)).await.unwrap();
    let kill = bollard::query_parameters::KillContainerOptionsBuilder::default().signal("SIGTERM").build();
    docker.kill_container(&id, Some(kill)).await.unwrap();
    let kill = bollard::query_parameters::KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    docker.kill_container(&id, Some(kill)).await.unwrap();
    proxy.reopen();
    assert!(matches!(within(fixture.runtime.wait(&start)).await, Err(RuntimeError::Lost { .. })));
    drop(started);
    fixture.close().await;
}

#[tokio::test]
async fn a_stop_ends_also_while_the_engine_does_not_answer() {
    if engine().await.is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::open(folder.path());
    let settings = ContainerSettings {
        docker_host: Some(proxy.host()),
        sweep_every: Duration::from_secs(1),
        ..ContainerSettings::default()
    };
    let Some(fixture) = Fixture::with(settings).await else { return };
    let job = fixture.shell("echo ready; sleep 1000");
    let (start, mut started) = (job.start.clone(), within(fixture.runtime.start(job)).await.unwrap());
    read_until(&mut started.stdout, "ready").await;
    proxy.shut().await;
    within(fixture.runtime.stop(&start, Duration::from_millis(10))).await.unwrap();
    assert!(matches!(within(fixture.runtime.wait(&start)).await, Err(RuntimeError::Lost { .. })));
    let mut rest = String::new();
    within(started.stdout.read_to_string(&mut rest)).await.unwrap();
    within(fixture.runtime.remove(&start)).await.unwrap();
    assert_eq!(fixture.left().await, ["task"]);
    // What could not be removed is swept once it is back.
    proxy.reopen();
    eventually(|| async { fixture.left().await.is_empty().then_some(()) }).await;
    fixture.close().await;
}

#[tokio::test]
async fn files_are_copied_where_the_engine_does_not_see_the_folder() {
    for read_only in [false, true] {
        let Some(fixture) = Fixture::new().await else { return };
        // The engine has other open files than we have.
        let open = std::fs::File::open(fixture.folder.path()).unwrap();
        // SAFETY: plain call on an open file.
        let fd = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&open), libc::F_DUPFD_CLOEXEC, 900) };
        let unseen = |path: &std::path::Path| {
            let below = path.strip_prefix(fixture.folder.path()).unwrap();
            std::path::Path::new(&format!("/proc/self/fd/{fd}")).join(below)
        };
        let script = "echo 42 > /shoal/.result; mkdir out; echo a > out/a.txt";
        let user = (!read_only).then(|| "job".to_owned());
        let job = fixture.job(Container { read_only, user, ..shell(script) });
        let job = Job { folder: unseen(&job.folder), artifacts: vec!["out/**".to_owned()], ..job };
        check_files(&fixture, job).await;
        // SAFETY: ours, and used by nobody any more.
        unsafe { libc::close(fd) };
        fixture.close().await;
    }
}

#[tokio::test]
async fn what_an_earlier_life_left_is_swept_before_the_first_job() {
    let Some(fixture) = Fixture::new().await else { return };
    let started = within(fixture.runtime.start(fixture.shell("sleep 1000"))).await.unwrap();
    let config = DockerConfig {
        settings: ContainerSettings::default(),
        fleet: "test".to_owned(),
        worker: fixture.worker.clone(),
        instance: "two".to_owned(),
        scratch: fixture.folder.path().join("pulls"),
        guard: GuardCommand::this_program(),
    };
    let next = within(DockerRuntime::new(config)).await.unwrap();
    assert_eq!(fixture.left().await, Vec::<String>::new());
    within(next.close()).await;
    drop(started);
    fixture.close().await;
}

#[tokio::test]
async fn forty_containers_at_once_all_tell_their_own_end() {
    let Some(fixture) = Fixture::new().await else { return };
    let runs = (0..40).map(|at| fixture.run(fixture.shell(&format!("echo {at}; exit {at}"))));
    for (at, output) in futures_util::future::join_all(runs).await.into_iter().enumerate() {
        assert_eq!((output.stdout, output.exit.code), (format!("{at}\n"), Some(at as i32)));
    }
    fixture.close().await;
}
