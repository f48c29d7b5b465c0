//! What only containerd has: networks by CNI, archives, pulls of our own, lives of a worker, and the cases of instances.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use schemas::task::{Container, PullPolicy};
use schemas::{AgentId, Code, QueueName, StartId, TaskId, TaskKey, Workload};
use serde_json::json;
use shoal_worker::GuardCommand;
use shoal_worker::logs::Notes;
use shoal_worker::policy::{ContainerSettings, Policy};
use shoal_worker::runtime::containerd::{ContainerdConfig, ContainerdRuntime};
use shoal_worker::runtime::{Exit, Job, Runtime, StartError, Started};
use tokio::io::AsyncReadExt;

use crate::conformance::instances::{Place, instances_cases};
use crate::tiny_registry::TinyRegistry;
use crate::traces::Traces;
use crate::world::{IMAGE, a_worker, eventually, read_until, within};

/// One worker on the engine.
struct Fixture {
    traces: Traces,
    worker: AgentId,
    folder: tempfile::TempDir,
    starts: Mutex<Vec<StartId>>,
}

impl Fixture {
    async fn new() -> Option<Self> {
        let traces = Traces::find().await?;
        let (worker, folder, starts) = (a_worker(), tempfile::tempdir().unwrap(), Mutex::default());
        Some(Self { traces, worker, folder, starts })
    }

    fn config(&self, instance: &str) -> ContainerdConfig {
        self.traces.config(&self.worker, instance)
    }

    async fn boot(&self) -> ContainerdRuntime {
        self.boot_with(|_| ()).await
    }

    async fn boot_with(&self, change: impl FnOnce(&mut ContainerdConfig)) -> ContainerdRuntime {
        let mut config = self.config("one");
        change(&mut config);
        within(ContainerdRuntime::new(config)).await.unwrap()
    }

    fn job(&self, container: Container) -> Job {
        let start = StartId::new(format!("s{:08x}", rand::random::<u32>())).unwrap();
        self.starts.lock().unwrap().push(start.clone());
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

    async fn left(&self) -> Vec<String> {
        let starts = self.starts.lock().unwrap().clone();
        self.traces.of(&starts).await
    }
}

fn shell(script: &str) -> Container {
    Container { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..Container::new(IMAGE) }
}

async fn finish(runtime: &ContainerdRuntime, start: &StartId, mut started: Started) -> (String, String, Exit) {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let reading = async {
        let (one, other) =
            tokio::join!(started.stdout.read_to_string(&mut stdout), started.stderr.read_to_string(&mut stderr));
        assert!(one.is_ok() && other.is_ok());
        runtime.wait(start).await.unwrap()
    };
    let exit = within(reading).await;
    (stdout, stderr, exit)
}

async fn run(runtime: &ContainerdRuntime, job: Job) -> (String, String, Exit) {
    let start = job.start.clone();
    let started = within(runtime.start(job)).await.unwrap();
    finish(runtime, &start, started).await
}

fn allow(networks: &[&str]) -> Policy {
    Policy { networks: networks.iter().map(|name| (*name).to_owned()).collect(), ..Policy::default() }
}

#[tokio::test]
async fn a_running_container_is_hardened() {
    let Some(fixture) = Fixture::new().await else { return };
    let runtime = fixture.boot().await;
    let script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ls /sys/class/net; \
                  mount -t tmpfs none /tmp 2>/dev/null || echo no mount; \
                  unshare -r true 2>/dev/null || echo no namespace; \
                  [ -s /proc/keys ] || echo no keys; echo 1 2>/dev/null >/proc/sys/vm/drop_caches || echo no sysctl; \
                  cat /proc/1/cgroup | grep -q shoal || echo no group; hostname | grep -c ^s";
    let (stdout, stderr, exit) = run(&runtime, fixture.job(shell(script))).await;
    let lines: Vec<String> = stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "lo",
        "no mount",
        "no namespace",
        "no keys",
        "no sysctl",
        "no group",
        "1",
    ];
    // The kernel's order is its own.
    let (mut lines, mut expected) = (lines, expected.map(str::to_owned).to_vec());
    lines.sort();
    expected.sort();
    assert_eq!((lines, exit.code), (expected, Some(0)), "{stderr}");
    within(runtime.close()).await;
    assert_eq!(fixture.left().await, Vec::<String>::new());
}

#[tokio::test]
async fn user_folder_and_read_only_image_are_as_asked_for() {
    let Some(fixture) = Fixture::new().await else { return };
    let runtime = fixture.boot().await;
    let container = Container {
        user: Some("job".to_owned()),
        working_dir: Some("/app".to_owned()),
        ..shell("id -u; id -g; pwd; touch /shoal/mine && echo writable; echo $HOME")
    };
    let (stdout, stderr, _) = run(&runtime, fixture.job(container)).await;
    assert_eq!(stdout, "1000\n1000\n/app\nwritable\n/home/job\n", "{stderr}");
    let read_only =
        Container { read_only: true, ..shell("touch /x 2>/dev/null || echo no; touch /tmp/x /shoal/x && echo yes") };
    assert_eq!(run(&runtime, fixture.job(read_only)).await.0, "no\nyes\n");
    let image = |suffix: &str| Container { image: format!("{IMAGE}{suffix}"), ..shell("id -u; pwd; echo $FROM_IMAGE") };
    assert_eq!(run(&runtime, fixture.job(image("-user"))).await.0, "1000\n/shoal\n\n");
    assert_eq!(run(&runtime, fixture.job(image("-app"))).await.0, "0\n/app\nyes\n");
    let entry = Container { image: format!("{IMAGE}-entrypoint"), command: Vec::new(), ..shell("") };
    assert_eq!(run(&runtime, fixture.job(entry)).await.0, "entry point\n");
    let nobody = Container { user: Some("nosuch".to_owned()), ..shell("true") };
    let refused = within(runtime.start(fixture.job(nobody))).await.err().expect("refused").to_task_error();
    assert_eq!(refused.code, Code::UserNotFound, "{refused:?}");
    within(runtime.close()).await;
    assert_eq!(fixture.left().await, Vec::<String>::new());
}

#[tokio::test]
async fn artifacts_come_out_of_another_working_folder() {
    let Some(fixture) = Fixture::new().await else { return };
    let runtime = fixture.boot().await;
    let script = "mkdir -p out/deep; echo a > out/a.txt; echo b > out/deep/b.txt; echo c > out/c.log; \
                  ln -s /etc/passwd out/link.txt; mkfifo out/fifo.txt";
    let mut job = fixture.job(Container { working_dir: Some("/app".to_owned()), ..shell(script) });
    job.artifacts = vec!["out/**/*.txt".to_owned()];
    let (start, folder) = (job.start.clone(), job.folder.clone());
    run(&runtime, job).await;
    assert_eq!(within(runtime.collect(&start)).await.unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(folder.join("out/a.txt")).unwrap(), "a\n");
    assert_eq!(std::fs::read_to_string(folder.join("out/deep/b.txt")).unwrap(), "b\n");
    assert_eq!(std::fs::read_dir(folder.join("out")).unwrap().count(), 2, "no links, no pipes, nothing unasked");
    within(runtime.close()).await;
}

#[tokio::test]
async fn a_bridged_container_has_an_address_and_gives_it_back() {
    let Some(fixture) = Fixture::new().await else { return };
    let runtime = fixture.boot_with(|config| config.settings.policy = allow(&["bridge", "unheard-of"])).await;
    let bridged = |script: &str| Container { network: Some("bridge".to_owned()), ..shell(script) };
    let serve = "ip -4 -o addr show eth0 | awk '{print $4}'; echo hello > index.html; exec httpd -f -p 8080";
    let job = fixture.job(bridged(serve));
    let start = job.start.clone();
    let mut started = within(runtime.start(job)).await.unwrap();
    let address = read_until(&mut started.stdout, "/16\n").await;
    let address = address.trim().trim_end_matches("/16").to_owned();
    assert!(address.starts_with("10.87."), "{address}");
    eventually(async || tokio::net::TcpStream::connect((address.as_str(), 8080)).await.ok()).await;
    let held = fixture.left().await;
    assert!(held.iter().any(|trace| trace.starts_with("address")), "{held:?}");
    assert!(rules().contains(&format!("{address}/32")));
    within(runtime.stop(&start, Duration::ZERO)).await.unwrap();
    within(runtime.remove(&start)).await.unwrap();
    assert_eq!(fixture.left().await, Vec::<String>::new(), "no address, namespace, folder, snapshot");
    assert!(!rules().contains(&format!("{address}/32")), "no rule of a firewall: {}", rules());
    // One that fails behind its network gives that back too.
    let broken = Container { command: vec!["/no/such/program".to_owned()], ..bridged("") };
    assert!(within(runtime.start(fixture.job(broken))).await.is_err());
    assert_eq!(fixture.left().await, Vec::<String>::new());
    let unknown = Container { network: Some("unheard-of".to_owned()), ..shell("true") };
    let refused = within(runtime.start(fixture.job(unknown))).await.err().expect("refused").to_task_error();
    assert_eq!(refused.code, Code::PolicyForbidden, "{refused:?}");
    within(runtime.close()).await;
    assert_eq!(fixture.left().await, Vec::<String>::new());
}

/// What the machine forwards and rewrites for containers.
fn rules() -> String {
    let of = |args: &[&str]| std::process::Command::new("iptables").args(["-w"]).args(args).output().unwrap().stdout;
    let all = [of(&["-S"]), of(&["-t", "nat", "-S"])].concat();
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn a_network_that_gives_no_address_is_tried_and_undone() {
    let Some(fixture) = Fixture::new().await else { return };
    let plugins = fixture.folder.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    let (log, bridge) = (plugins.join("log"), plugins.join("bridge"));
    let fails = format!(
        "#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >> {}\n[ $CNI_COMMAND = DEL ] && exit 0\necho '{{\"code\":11,\"msg\":\"no more addresses\"}}'\nexit 1\n",
        log.display()
    );
    std::fs::write(&bridge, fails).unwrap();
    std::fs::set_permissions(&bridge, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = fixture.boot_with(|config| {
        config.settings.policy = allow(&["bridge"]);
        config.settings.cni_bin_dir = Some(plugins.clone());
    });
    let runtime = runtime.await;
    let job = fixture.job(Container { network: Some("bridge".to_owned()), ..shell("true") });
    let refused = within(runtime.start(job)).await.err().expect("refused").to_task_error();
    assert_eq!(refused.code, Code::IpUnavailable, "{refused:?}");
    assert!(refused.message.contains("after 5 looks") && refused.message.contains("no more addresses"), "{refused:?}");
    let calls = std::fs::read_to_string(&log).unwrap();
    let count = |word: &str| calls.lines().filter(|line| *line == word).count();
    assert_eq!(count("ADD"), 6, "once, and five times more");
    assert!(count("DEL") > 6, "what each began is taken back, and all of it at the end");
    assert_eq!(fixture.left().await, Vec::<String>::new());
    within(runtime.close()).await;
}

#[tokio::test]
async fn the_shared_network_is_one_loopback_for_all_that_ask() {
    let Some(fixture) = Fixture::new().await else { return };
    let runtime = fixture.boot_with(|config| config.settings.policy = allow(&["shared"])).await;
    let shared = |script: &str| Container { network: Some("shared".to_owned()), ..shell(script) };
    let serving = fixture.job(shared("echo hello > index.html; echo ready; exec httpd -f -p 127.0.0.1:8080"));
    let start = serving.start.clone();
    let mut started = within(runtime.start(serving)).await.unwrap();
    read_until(&mut started.stdout, "ready\n").await;
    let asks = "until wget -qO- http://127.0.0.1:8080/index.html; do sleep 0.05; done; ls /sys/class/net";
    assert_eq!(run(&runtime, fixture.job(shared(asks))).await.0, "hello\nlo\n");
    let apart = "wget -T 2 -qO- http://127.0.0.1:8080/index.html 2>/dev/null || echo alone";
    assert_eq!(run(&runtime, fixture.job(shell(apart))).await.0, "alone\n");
    within(runtime.stop(&start, Duration::ZERO)).await.unwrap();
    within(runtime.close()).await;
    assert_eq!(fixture.left().await, Vec::<String>::new());
    let shared: Vec<_> = std::fs::read_dir("/run/shoal/netns").into_iter().flatten().flatten().collect();
    assert!(shared.iter().all(|entry| !entry.file_name().to_string_lossy().contains(fixture.worker.as_str())));
}

#[tokio::test]
async fn what_an_earlier_life_left_is_swept_before_the_first_job() {
    let Some(fixture) = Fixture::new().await else { return };
    // A guard that guards nothing: as of a worker that was killed together with it.
    let unguarded = |config: &mut ContainerdConfig| {
        config.guard = GuardCommand { program: "/bin/false".into(), args: Vec::new() };
        config.settings.policy = allow(&["bridge"]);
    };
    let first = fixture.boot_with(unguarded).await;
    assert!(!first.capabilities().capabilities.iter().any(|word| word == "keep_alive"));
    let job = fixture.job(Container { network: Some("bridge".to_owned()), ..shell("sleep 1000") });
    within(first.start(job)).await.unwrap();
    assert!(fixture.left().await.len() > 4, "{:?}", fixture.left().await);
    std::mem::forget(first);
    let next = within(ContainerdRuntime::new(fixture.config("two"))).await.unwrap();
    assert_eq!(fixture.left().await, Vec::<String>::new());
    within(next.close()).await;
}

#[tokio::test]
async fn a_container_outlives_an_outage_of_its_engine() {
    let Some(fixture) = Fixture::new().await else { return };
    let mut door = crate::proxy::Proxy::to(fixture.folder.path(), fixture.traces.socket());
    let socket = fixture.folder.path().join("engine.sock");
    let runtime = fixture.boot_with(|config| config.settings.containerd_address = socket).await;
    let job = fixture.job(shell("echo ready; read line; echo \"got $line\"; exit 4"));
    let fed =
        Container { stdin: Some("x\n".to_owned()), ..shell("echo ready; sleep 3; read line; echo got $line; exit 4") };
    let job = Job { workload: Workload::Container(fed), ..job };
    let start = job.start.clone();
    let mut started = within(runtime.start(job)).await.unwrap();
    read_until(&mut started.stdout, "ready\n").await;
    let mut trouble = runtime.trouble().unwrap();
    door.shut().await;
    within(trouble.wait_for(Option::is_some)).await.unwrap();
    let refused = within(runtime.start(fixture.job(shell("true")))).await.err().expect("refused");
    assert!(matches!(refused, StartError::Unavailable { .. }), "{refused}");
    // It goes on, and what it says is heard all the same.
    assert_eq!(read_until(&mut started.stdout, "got x\n").await, "got x\n");
    door.reopen();
    within(trouble.wait_for(Option::is_none)).await.unwrap();
    assert_eq!(finish(&runtime, &start, started).await.2.code, Some(4));
    within(runtime.close()).await;
    assert_eq!(fixture.left().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_container_that_somebody_removes_is_lost_not_failed() {
    let Some(fixture) = Fixture::new().await else { return };
    let runtime = fixture.boot().await;
    let job = fixture.job(shell("echo ready; sleep 1000"));
    let start = job.start.clone();
    let mut started = within(runtime.start(job)).await.unwrap();
    read_until(&mut started.stdout, "ready\n").await;
    // Another boot of the same worker takes it for left.
    let other = within(ContainerdRuntime::new(fixture.config("two"))).await.unwrap();
    let ended = within(runtime.wait(&start)).await;
    // Who waits may see its end before it is gone.
    assert!(ended.is_err() || ended.is_ok_and(|exit| exit.signal == Some(9)));
    within(runtime.close()).await;
    within(other.close()).await;
    assert_eq!(fixture.left().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_archive_is_imported_and_runs() {
    let Some(fixture) = Fixture::new().await else { return };
    let runtime = fixture.boot().await;
    let name = format!("shoal-test/import-{:08x}:1", rand::random::<u32>());
    let layer = layer(name.as_bytes());
    let diff = {
        use sha2::Digest;
        format!("sha256:{}", sha2::Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"os": "linux", "architecture": architecture, "config": {"Cmd": ["sh", "-c", "echo imported"]},
        "rootfs": {"type": "layers", "diff_ids": [diff]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let path = fixture.folder.path().join("image.tar");
    let mut archive = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for (file, bytes) in [
        ("manifest.json", manifest.to_string().into_bytes()),
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, file, &bytes[..]).unwrap();
    }
    archive.into_inner().unwrap();
    assert_eq!(within(runtime.import(&path)).await.unwrap(), [format!("docker.io/{name}")]);
    let container = Container { command: Vec::new(), pull: Some(PullPolicy::Never), ..Container::new(&name) };
    assert_eq!(run(&runtime, fixture.job(container)).await.0, "imported\n");
    fixture.traces.forget_image(&format!("docker.io/{name}")).await;
    within(runtime.close()).await;
}

#[tokio::test]
async fn an_image_is_pulled_once_however_many_wait_for_it() {
    let Some(fixture) = Fixture::new().await else { return };
    let registry = TinyRegistry::start().await;
    let name = registry.push("acme/pulled", layer(registry.host.as_bytes()));
    let settings = json!({registry.host.clone(): {"scheme": "http"}});
    let runtime =
        fixture.boot_with(|config| config.settings.registries = serde_json::from_value(settings).unwrap()).await;
    let container = || Container { command: Vec::new(), ..Container::new(&name) };
    let never = Container { pull: Some(PullPolicy::Never), ..container() };
    let refused = within(runtime.start(fixture.job(never))).await.err().expect("refused").to_task_error();
    assert_eq!(refused.code, Code::ImageNotFound, "{refused:?}");
    let runs = (0..4).map(|_| run(&runtime, fixture.job(container())));
    for (stdout, stderr, _) in futures_util::future::join_all(runs).await {
        assert_eq!(stdout, "pulled\n", "{stderr}");
    }
    assert_eq!(registry.layers_asked.load(Ordering::Relaxed), 1);
    // What the registry still has is not fetched again.
    let always = Container { pull: Some(PullPolicy::Always), ..container() };
    assert_eq!(run(&runtime, fixture.job(always)).await.0, "pulled\n");
    assert_eq!(registry.layers_asked.load(Ordering::Relaxed), 1);
    let unknown = Container::new(format!("{}/acme/none:1", registry.host));
    let refused = within(runtime.start(fixture.job(unknown))).await.err().expect("refused").to_task_error();
    assert_eq!(refused.code, Code::ImageNotFound, "{refused:?}");
    fixture.traces.forget_image(&name).await;
    within(runtime.close()).await;
    assert_eq!(fixture.left().await, Vec::<String>::new());
}

/// The files of a small image, another for each mark.
fn layer(mark: &[u8]) -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8], mode| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    put("bin/busybox", &busybox.expect("a static busybox"), 0o755);
    put("mark", mark, 0o644);
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    tar.append_link(&mut header, "bin/sh", "busybox").unwrap();
    tar.into_inner().unwrap()
}

/// The engine for the cases of instances: a fleet of its own.
struct Containerd {
    traces: Traces,
    fleet: String,
    booted: Mutex<Vec<Arc<ContainerdRuntime>>>,
}

async fn place() -> Option<Containerd> {
    let traces = Traces::find().await?;
    Some(Containerd { traces, fleet: format!("test-{:016x}", rand::random::<u64>()), booted: Mutex::default() })
}

impl Place for Containerd {
    async fn boot(&self, worker: &str) -> Arc<dyn Runtime> {
        let instance = format!("{:016x}", rand::random::<u64>());
        let config = self.traces.config(&AgentId::new(worker).unwrap(), &instance);
        let runtime =
            Arc::new(ContainerdRuntime::new(ContainerdConfig { fleet: self.fleet.clone(), ..config }).await.unwrap());
        self.booted.lock().unwrap().push(runtime.clone());
        runtime
    }

    fn image(&self) -> String {
        "shoal-test/function:1".to_owned()
    }

    async fn containers(&self) -> Vec<String> {
        self.traces.containers("shoal.fleet", &self.fleet).await
    }

    async fn close(&self) {
        let booted = std::mem::take(&mut *self.booted.lock().unwrap());
        for runtime in booted {
            runtime.close().await;
        }
    }
}

mod instances {
    use super::{instances_cases, place};
    instances_cases!(place);
}
