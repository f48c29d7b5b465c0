//! The process runtime with real processes.
//!
//! The guard is this very program, asked for before the test harness exists; see [`GUARD`]. The worker that is
//! killed or frozen is this program too, running the test `a_worker_to_be_killed`.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemas::{Cpu, Limit, StartId, Workload};
use shoal_worker::runtime::process::{GUARD_ARGUMENT, ProcessConfig, ProcessRuntime, guard_main};
use shoal_worker::runtime::{Bounds, Exit, Job, Listed, Runtime, StartError, Started, Status};
use tokio::io::AsyncReadExt;

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
        if argument.to_bytes() == GUARD_ARGUMENT.as_bytes() {
            guard_main();
            std::process::exit(0);
        }
    }
    become_guard
};

/// No test waits longer; in time means in far less.
const TOO_LONG: Duration = Duration::from_secs(30);
const UNLIMITED: Bounds = Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited };

/// A runtime and a folder to work in.
struct Fixture {
    runtime: ProcessRuntime,
    folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let runtime = ProcessRuntime::new(ProcessConfig::new("test")).await.unwrap();
        Self { runtime, folder: tempfile::tempdir().unwrap() }
    }

    fn job(&self, command: &[&str]) -> Job {
        job(self.folder.path(), command)
    }

    fn shell(&self, script: &str) -> Job {
        self.job(&["sh", "-c", script])
    }

    /// Starts `job` and reads its output to the end.
    async fn run(&self, job: Job) -> Output {
        let start = job.start.clone();
        let started = self.runtime.start(job).await.unwrap();
        self.finish(&start, started).await
    }

    async fn finish(&self, start: &StartId, mut started: Started) -> Output {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let read = async {
            let (a, b) =
                tokio::join!(started.stdout.read_to_string(&mut stdout), started.stderr.read_to_string(&mut stderr));
            assert!(a.is_ok() && b.is_ok());
            self.runtime.wait(start).await.unwrap()
        };
        let exit = within(read).await;
        Output { stdout, stderr, exit }
    }

    async fn stop(&self, start: &StartId, grace: Duration) {
        within(self.runtime.stop(start, grace)).await.unwrap();
    }
}

#[derive(Debug)]
struct Output {
    stdout: String,
    stderr: String,
    exit: Exit,
}

fn job(folder: &Path, command: &[&str]) -> Job {
    let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
    Job {
        start: fresh_start(),
        key: "default.t1".parse().unwrap(),
        workload: process(command, None),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]),
        attempt: 1,
        folder: folder.to_owned(),
        result_file: folder.with_extension("result"),
        artifacts: Vec::new(),
        notes: shoal_worker::logs::Notes::nowhere(),
        limits: UNLIMITED,
        alive_until: None,
        binds: Vec::new(),
    }
}

fn process(command: Vec<String>, stdin: Option<String>) -> Workload {
    Workload::Process(schemas::task::Process { command, env: BTreeMap::new(), stdin })
}

fn fresh_start() -> StartId {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    StartId::new(format!("t{}x{next}", std::process::id())).unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TOO_LONG, future).await.expect("took too long")
}

/// Looks again and again until `holds`; for what sends no word when it happens.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < TOO_LONG, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads one line of what a job says.
async fn line(stdout: &mut (dyn tokio::io::AsyncRead + Send + Unpin)) -> String {
    let mut line = Vec::new();
    loop {
        match within(stdout.read_u8()).await {
            Ok(b'\n') | Err(_) => return String::from_utf8(line).unwrap(),
            Ok(byte) => line.push(byte),
        }
    }
}

fn pid(text: &str) -> i32 {
    text.trim().parse().unwrap_or_else(|_| panic!("no pid: {text:?}"))
}

/// Whether the process is there, zombies aside.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The processes below `pid`.
fn children(pid: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()).collect()
}

fn command_name(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill {pid}");
}

/// Leaves the shell's session and family, ignores SIGTERM, and says its pid in the file `daemon`.
const DAEMON: &str = "(setsid sh -c 'trap \"\" TERM HUP; echo $$ > daemon.new; mv daemon.new daemon; \
                      while :; do sleep 1000; done' </dev/null >/dev/null 2>&1 &) ; \
                      while [ ! -e daemon ]; do sleep 0.01; done; ";

fn daemon_pid(folder: &Path) -> i32 {
    pid(&std::fs::read_to_string(folder.join("daemon")).unwrap())
}

#[tokio::test]
async fn an_exit_code_and_a_signal_are_told() {
    let fixture = Fixture::new().await;
    let exit = fixture.run(fixture.shell("exit 7")).await.exit;
    assert_eq!((exit.code, exit.signal), (Some(7), None));
    let exit = fixture.run(fixture.shell("kill -SEGV $$")).await.exit;
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGSEGV)));
}

#[tokio::test]
async fn stdout_and_stderr_are_apart_and_stdin_arrives() {
    let fixture = Fixture::new().await;
    let output = fixture.run(fixture.shell("echo out; echo err >&2; cat")).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    for content in ["hello".to_owned(), "x".repeat(1 << 20)] {
        let mut job = fixture.job(&[]);
        job.workload = process(vec!["cat".to_owned()], Some(content.clone()));
        assert!(fixture.run(job).await.stdout == content);
    }
    let mut job = fixture.job(&[]);
    job.workload = process(vec!["true".to_owned()], Some("nobody reads this".to_owned()));
    assert_eq!(fixture.run(job).await.exit.code, Some(0));
}

#[tokio::test]
async fn the_environment_and_the_folder_are_exactly_what_was_given() {
    let fixture = Fixture::new().await;
    let mut job = fixture.job(&["/usr/bin/env"]);
    job.env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x=y z".to_owned())]);
    assert_eq!(fixture.run(job).await.stdout, "A=1\nB=x=y z\n");
    let output = fixture.run(fixture.job(&["pwd"])).await;
    assert_eq!(Path::new(output.stdout.trim()), fixture.folder.path().canonicalize().unwrap());
}

#[tokio::test]
async fn a_job_begins_with_default_signals_and_no_files_but_three() {
    let fixture = Fixture::new().await;
    let output =
        fixture.run(fixture.shell("cat /proc/self/status | grep -E '^Sig(Blk|Ign)'; ls /proc/self/fd | wc -l")).await;
    let lines: Vec<&str> = output.stdout.lines().collect();
    let mask = |line: &str| u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap();
    // Signals 32 and 33 are the C library's own; it lets nobody look at them.
    assert_eq!((mask(lines[0]), mask(lines[1]) & !(3 << 31)), (0, 0), "{}", output.stdout);
    // `ls` itself has the folder open.
    assert_eq!(lines[2], "4");
}

#[tokio::test]
async fn a_job_leads_a_group_and_is_in_no_other_jobs_session() {
    let fixture = Fixture::new().await;
    let mut sessions = Vec::new();
    let mut jobs = Vec::new();
    for _ in 0..2 {
        // Pid, process group, session.
        let job = fixture.shell("cut -d ' ' -f 1,5,6 /proc/$$/stat; exec sleep 1000");
        let start = job.start.clone();
        let mut started = fixture.runtime.start(job).await.unwrap();
        let told = line(&mut *started.stdout).await;
        let [pid, group, session] = told.split(' ').map(pid).collect::<Vec<_>>()[..] else { panic!("{told}") };
        assert_eq!(pid, group);
        sessions.push(session);
        jobs.push(start);
    }
    assert_ne!(sessions[0], sessions[1]);
    // SAFETY: plain call.
    assert!(!sessions.contains(&unsafe { libc::getsid(0) }));
    for start in jobs {
        fixture.stop(&start, Duration::ZERO).await;
    }
}

#[tokio::test]
async fn a_short_job_is_told_of_once_with_all_that_it_said() {
    let fixture = Fixture::new().await;
    for _ in 0..20 {
        let job = fixture.shell("echo out; echo err >&2; exit 3");
        let start = job.start.clone();
        let output = fixture.run(job).await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(output.exit.code, Some(3));
        fixture.runtime.remove(&start).await.unwrap();
    }
    assert!(fixture.runtime.list().await.unwrap().is_empty());
    // More than a pipe holds, at once.
    let flood = fixture.run(fixture.shell("head -c 300000 /dev/zero | tr '\\0' x")).await;
    assert_eq!((flood.stdout.len(), flood.exit.code), (300_000, Some(0)));
}

#[tokio::test]
async fn a_large_environment_arrives() {
    let fixture = Fixture::new().await;
    let mut job = fixture.shell("echo ${#V1} ${#V2} ${#V3} $#");
    for name in ["V1", "V2", "V3"] {
        job.env.insert(name.to_owned(), "x".repeat(100_000));
    }
    assert_eq!(fixture.run(job).await.stdout, "100000 100000 100000 0\n");
}

#[tokio::test]
async fn a_start_that_fails_says_why() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new().await;
    let script = |name: &str, content: &str, mode: u32| {
        let file = fixture.folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    script("no-mode", "#!/bin/sh\n", 0o644);
    script("no-format", "what is this\n", 0o755);
    script("no-interpreter", "#!/not/there\n", 0o755);
    let code = async |job: Job| within(fixture.runtime.start(job)).await.err().unwrap().to_task_error().code.as_str();

    for absent in ["absent-program", "./absent", "/absent/program", "/bin/sh/below-a-file"] {
        assert_eq!(code(fixture.job(&[absent])).await, "command_not_found", "{absent}");
    }
    for useless in ["./no-mode", "./no-format", "./no-interpreter", "/usr/bin"] {
        assert_eq!(code(fixture.job(&[useless])).await, "command_not_executable", "{useless}");
    }
    let mut by_path = fixture.job(&["no-mode"]);
    by_path.env.insert("PATH".to_owned(), format!("/usr/bin:{}", fixture.folder.path().display()));
    assert_eq!(code(by_path).await, "command_not_executable");
    let mut too_large = fixture.job(&["true"]);
    too_large.env.insert("V".to_owned(), "x".repeat(200_000));
    assert_eq!(code(too_large).await, "command_not_executable");
    let mut no_folder = fixture.job(&["true"]);
    no_folder.folder = PathBuf::from("/not/there");
    let error = fixture.runtime.start(no_folder).await.err().unwrap();
    assert!(matches!(&error, StartError::Failed { what, .. } if what.contains("work folder")), "{error}");
    assert!(fixture.runtime.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_jobs_own_path_finds_the_program() {
    let fixture = Fixture::new().await;
    let mut nowhere = fixture.job(&["true"]);
    nowhere.env.insert("PATH".to_owned(), "/not/there".to_owned());
    assert!(matches!(fixture.runtime.start(nowhere).await, Err(StartError::CommandNotFound { .. })));
    let mut here = fixture.job(&["mine"]);
    std::os::unix::fs::symlink("/bin/true", fixture.folder.path().join("mine")).unwrap();
    here.env.insert("PATH".to_owned(), format!("/not/there:{}", fixture.folder.path().display()));
    assert_eq!(fixture.run(here).await.exit.code, Some(0));
}

#[tokio::test]
async fn only_processes_are_run() {
    let fixture = Fixture::new().await;
    let mut job = fixture.job(&["true"]);
    job.workload = serde_json::from_str(r#"{"kind":"call","handler":"noop"}"#).unwrap();
    assert!(matches!(fixture.runtime.start(job).await, Err(StartError::WrongKind { kind: "call", .. })));
}

#[tokio::test]
async fn a_polite_job_ends_by_the_signal_and_a_deaf_one_by_the_grace() {
    let fixture = Fixture::new().await;
    for (script, grace, expected) in [
        ("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done", TOO_LONG, (Some(3), None)),
        ("trap '' TERM; echo up; while :; do sleep 0.05; done", Duration::from_millis(100), (None, Some(9))),
        ("trap '' TERM; echo up; while :; do sleep 0.05; done", Duration::ZERO, (None, Some(9))),
    ] {
        let job = fixture.shell(script);
        let start = job.start.clone();
        let mut started = fixture.runtime.start(job).await.unwrap();
        assert_eq!(line(&mut *started.stdout).await, "up");
        fixture.stop(&start, grace).await;
        let exit = fixture.finish(&start, started).await.exit;
        assert_eq!((exit.code, exit.signal), expected, "{script}");
    }
}

#[tokio::test]
async fn of_two_stops_the_shorter_grace_wins() {
    let fixture = Fixture::new().await;
    let job = fixture.shell("trap '' TERM; echo up; while :; do sleep 0.05; done");
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    let (patient, firm) = (fixture.stop(&start, TOO_LONG * 10), fixture.stop(&start, Duration::from_millis(20)));
    tokio::join!(patient, firm);
    fixture.stop(&start, Duration::ZERO).await;
    assert_eq!(fixture.runtime.wait(&start).await.unwrap().signal, Some(9));
}

#[tokio::test]
async fn a_daemon_dies_with_the_main_process_and_with_a_stop() {
    for stop in [false, true] {
        let fixture = Fixture::new().await;
        let job = fixture.shell(&format!("{DAEMON} echo up; {}", if stop { "sleep 1000" } else { "exit 4" }));
        let start = job.start.clone();
        let mut started = fixture.runtime.start(job).await.unwrap();
        line(&mut *started.stdout).await;
        let daemon = daemon_pid(fixture.folder.path());
        if stop {
            assert!(runs(daemon));
            fixture.stop(&start, Duration::from_millis(50)).await;
        }
        let exit = fixture.finish(&start, started).await.exit;
        assert!(!runs(daemon));
        assert_eq!((exit.code, exit.signal), if stop { (None, Some(15)) } else { (Some(4), None) });
    }
}

#[tokio::test]
async fn a_daemon_dies_alone_among_other_jobs() {
    let fixture = Fixture::new().await;
    let other = fixture.shell("echo up; read nothing; sleep 1000");
    let other_start = other.start.clone();
    let mut other_started = fixture.runtime.start(other).await.unwrap();
    line(&mut *other_started.stdout).await;
    // Nothing of the environment is left by which it could be known.
    let script = "(env -i /usr/bin/setsid /bin/sh -c 'echo $$ > daemon.new; /bin/mv daemon.new daemon; \
                  exec /bin/sleep 1000' >/dev/null 2>&1 &); while [ ! -e daemon ]; do sleep 0.01; done";
    fixture.run(fixture.shell(script)).await;
    assert!(!runs(daemon_pid(fixture.folder.path())));
    fixture.stop(&other_start, Duration::from_secs(5)).await;
    let exit = fixture.runtime.wait(&other_start).await.unwrap();
    assert_eq!(exit.signal, Some(15), "the other job was still there to be stopped");
}

#[tokio::test]
async fn pausing_halts_and_resuming_goes_on() {
    let fixture = Fixture::new().await;
    let job = fixture.shell("echo $$; while [ ! -e go ]; do :; done; echo done");
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    let main = pid(&line(&mut *started.stdout).await);
    fixture.runtime.pause(&start).await.unwrap();
    let state = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    };
    eventually("it halts", || state(main) == Some('T')).await;
    std::fs::write(fixture.folder.path().join("go"), "").unwrap();
    fixture.runtime.resume(&start).await.unwrap();
    assert_eq!(line(&mut *started.stdout).await, "done");
    assert_eq!(fixture.finish(&start, started).await.exit.code, Some(0));
}

#[tokio::test]
async fn a_paused_job_still_hears_a_stop() {
    let fixture = Fixture::new().await;
    let job = fixture.shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done");
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    fixture.runtime.pause(&start).await.unwrap();
    fixture.stop(&start, TOO_LONG).await;
    assert_eq!(fixture.runtime.wait(&start).await.unwrap().code, Some(3));
}

#[tokio::test]
async fn usage_counts_what_was_forked() {
    let fixture = Fixture::new().await;
    let burn = "(i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done) & wait";
    let job = fixture.shell(&format!("{burn}; echo up; read x; {burn}"));
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    let now = fixture.runtime.stats(&start).await;
    let exit = fixture.finish(&start, started).await.exit;
    assert!(now.unwrap().cpu_ms.unwrap() >= 10);
    assert!(exit.usage.cpu_ms.unwrap() >= 20, "{exit:?}");
    assert!(exit.usage.wall_ms >= 20 && exit.usage.peak_memory_bytes.unwrap() > 100_000, "{exit:?}");
    assert_eq!(fixture.runtime.stats(&start).await.unwrap(), exit.usage);
}

#[tokio::test]
async fn waiting_and_stopping_twice_say_the_same_until_removed() {
    let fixture = Fixture::new().await;
    let job = fixture.shell("exit 5");
    let start = job.start.clone();
    fixture.run(job).await;
    for _ in 0..2 {
        assert_eq!(fixture.runtime.wait(&start).await.unwrap().code, Some(5));
        fixture.stop(&start, TOO_LONG).await;
    }
    let held = Listed { start: start.clone(), status: Status::Stopped };
    assert_eq!(fixture.runtime.list().await.unwrap(), [held]);
    fixture.runtime.remove(&start).await.unwrap();
    fixture.runtime.remove(&start).await.unwrap();
    assert!(fixture.runtime.wait(&start).await.is_err());
    assert!(fixture.runtime.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stop_during_the_start_ends_it() {
    let fixture = Fixture::new().await;
    let job = fixture.shell("sleep 1000");
    let start = job.start.clone();
    let (started, ()) = tokio::join!(biased; fixture.runtime.start(job), fixture.stop(&start, Duration::ZERO));
    // Either it never began, or it was killed.
    if let Ok(started) = started {
        assert_eq!(fixture.finish(&start, started).await.exit.signal, Some(9));
    }
}

#[tokio::test]
async fn a_dropped_start_leaves_nothing_running() {
    let fixture = Fixture::new().await;
    fixture.run(fixture.job(&["true"])).await;
    for polls in 1..6 {
        let job = fixture.shell("echo $$ > pid.$$; exec sleep 1000");
        let mut future = fixture.runtime.start(job);
        for _ in 0..polls {
            tokio::select! { biased; _ = &mut future => break, () = tokio::task::yield_now() => {} }
        }
        drop(future);
    }
    for Listed { start, .. } in fixture.runtime.list().await.unwrap() {
        fixture.runtime.remove(&start).await.unwrap();
    }
    fixture.runtime.close().await;
    for file in std::fs::read_dir(fixture.folder.path()).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        assert!(!runs(pid(name.strip_prefix("pid.").unwrap())));
    }
}

#[tokio::test]
async fn two_hundred_at_once_all_end_and_leave_nothing() {
    let fixture = Fixture::new().await;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    fixture.run(fixture.job(&["true"])).await;
    let before = open();
    let jobs: Vec<Job> = (0..200).map(|n| fixture.shell(&format!("echo {n}; exit {}", n % 7))).collect();
    let outputs = futures_util::future::join_all(jobs.into_iter().map(|job| fixture.run(job))).await;
    for (n, output) in outputs.iter().enumerate() {
        assert_eq!((output.stdout.trim(), output.exit.code), (n.to_string().as_str(), Some(n as i32 % 7)));
    }
    for Listed { start, .. } in fixture.runtime.list().await.unwrap() {
        fixture.runtime.remove(&start).await.unwrap();
    }
    // Some shepherds stay for the next jobs. Other tests of this program open files too.
    eventually("files are closed", || open() <= before + 40).await;
    fixture.runtime.close().await;
}

#[tokio::test]
async fn what_is_not_kept_alive_dies_and_what_is_lives_on() {
    let fixture = Fixture::new().await;
    let mut job = fixture.shell(&format!("{DAEMON} echo up; sleep 1000"));
    let start = job.start.clone();
    let until = Instant::now() + Duration::from_millis(300);
    job.alive_until = Some(until);
    let extended = until + Duration::from_millis(300);
    fixture.runtime.keep_alive(extended);
    fixture.runtime.keep_alive(until);
    let started = fixture.runtime.start(job).await.unwrap();
    let exit = fixture.finish(&start, started).await.exit;
    assert!(exit.not_kept_alive && exit.signal == Some(9), "{exit:?}");
    assert!(Instant::now() >= extended);
    assert!(!runs(daemon_pid(fixture.folder.path())));

    let mut job = fixture.shell("sleep 0.05; exit 6");
    job.alive_until = Some(Instant::now() + TOO_LONG);
    let exit = fixture.run(job).await.exit;
    assert_eq!((exit.code, exit.not_kept_alive), (Some(6), false));
}

#[tokio::test]
async fn what_may_not_live_is_not_even_started() {
    let fixture = Fixture::new().await;
    let mut job = fixture.shell("touch begun");
    job.alive_until = Some(Instant::now());
    assert!(matches!(fixture.runtime.start(job).await, Err(StartError::Failed { .. })));
    assert!(!fixture.folder.path().join("begun").exists());
}

/// The guard of a runtime of this process is found by a job of it: job, shepherd, guard.
async fn guard_and_shepherd(fixture: &Fixture) -> (i32, i32) {
    let output = fixture.run(fixture.shell("echo $PPID; awk '/^PPid/ {print $2}' /proc/$PPID/status")).await;
    let mut pids = output.stdout.lines().map(pid);
    let (shepherd, guard) = (pids.next().unwrap(), pids.next().unwrap());
    assert_eq!((command_name(shepherd).as_str(), command_name(guard).as_str()), ("shoal-shepherd", "shoal-guard"));
    (guard, shepherd)
}

#[tokio::test]
async fn a_killed_guard_ends_its_jobs_and_the_next_job_works() {
    let fixture = Fixture::new().await;
    let (guard, _) = guard_and_shepherd(&fixture).await;
    let job = fixture.shell(&format!("{DAEMON} echo up; sleep 1000"));
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    kill(guard, libc::SIGKILL);
    assert_eq!(fixture.finish(&start, started).await.exit.signal, Some(9));
    assert!(!runs(daemon_pid(fixture.folder.path())));
    let (next, _) = guard_and_shepherd(&fixture).await;
    assert_ne!(next, guard);
}

#[tokio::test]
async fn a_killed_shepherd_ends_its_job_whole() {
    let fixture = Fixture::new().await;
    let mut job = fixture.shell(&format!("{DAEMON} echo $PPID; sleep 1000"));
    job.limits.pids = Limit::At(100);
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    let shepherd = pid(&line(&mut *started.stdout).await);
    kill(shepherd, libc::SIGKILL);
    assert_eq!(fixture.finish(&start, started).await.exit.signal, Some(9));
    assert!(!runs(daemon_pid(fixture.folder.path())));
    assert!(groups_of(&start).is_empty());
    assert_eq!(fixture.run(fixture.shell("exit 2")).await.exit.code, Some(2));
}

#[tokio::test]
async fn signals_to_guard_and_shepherds_change_nothing() {
    let fixture = Fixture::new().await;
    let (guard, shepherd) = guard_and_shepherd(&fixture).await;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE, libc::SIGUSR1] {
        kill(guard, signal);
        kill(shepherd, signal);
    }
    assert_eq!(guard_and_shepherd(&fixture).await, (guard, shepherd));
}

#[tokio::test]
async fn closing_leaves_nothing_not_even_the_guard() {
    let fixture = Fixture::new().await;
    let (guard, shepherd) = guard_and_shepherd(&fixture).await;
    let mut started = fixture.runtime.start(fixture.shell(&format!("{DAEMON} echo up; sleep 1000"))).await.unwrap();
    line(&mut *started.stdout).await;
    within(fixture.runtime.close()).await;
    assert!(![guard, shepherd, daemon_pid(fixture.folder.path())].into_iter().any(runs));
    assert!(fixture.runtime.start(fixture.job(&["true"])).await.is_err());
}

#[tokio::test]
async fn a_dropped_runtime_kills_its_jobs() {
    let Fixture { runtime, folder } = Fixture::new().await;
    let job = job(folder.path(), &["sh", "-c", &format!("{DAEMON} echo up; sleep 1000")]);
    let mut started = runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    drop(runtime);
    let daemon = daemon_pid(folder.path());
    eventually("the daemon dies", || !runs(daemon)).await;
}

#[tokio::test]
async fn a_program_that_is_no_guard_is_refused() {
    let mut config = ProcessConfig::new("test");
    config.guard.program = "/bin/true".into();
    let error = ProcessRuntime::new(config).await.err().unwrap();
    assert!(error.to_string().contains("/bin/true"), "{error}");
}

/// Folders of control groups with this name, anywhere.
fn groups_of(start: &StartId) -> Vec<PathBuf> {
    fn search(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_str() == Some(name) {
                    found.push(entry.path());
                }
                search(&entry.path(), name, found);
            }
        }
    }
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), start.as_str(), &mut found);
    found
}

/// Whether this machine lets us hold limits by control groups; says so where not. Ask for `cpu_limit` or `oom`:
/// rlimits can do neither.
fn can(fixture: &Fixture, word: &str) -> bool {
    let can = fixture.runtime.capabilities().capabilities.iter().any(|capability| capability == word);
    if !can {
        eprintln!("skipped: no writable control group for {word}");
    }
    can
}

#[tokio::test]
async fn too_much_memory_is_told_apart() {
    let fixture = Fixture::new().await;
    if !can(&fixture, "oom") {
        return;
    }
    let mut greedy = fixture.shell("x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}");
    greedy.limits.memory = Limit::At(schemas::Bytes::mebi(16));
    let start = greedy.start.clone();
    let output = fixture.run(greedy).await;
    assert!(output.exit.oom && output.exit.code != Some(0), "{output:?}");
    assert!(output.exit.usage.peak_memory_bytes.unwrap() <= 16 << 20);
    assert!(groups_of(&start).is_empty());

    let mut modest = fixture.shell("kill -9 $$");
    modest.limits.memory = Limit::At(schemas::Bytes::mebi(16));
    let exit = fixture.run(modest).await.exit;
    assert_eq!((exit.signal, exit.oom), (Some(9), false));
}

#[tokio::test]
async fn a_bound_too_small_to_begin_with_harms_nobody() {
    let fixture = Fixture::new().await;
    if !can(&fixture, "oom") {
        return;
    }
    let mut job = fixture.shell("echo up");
    job.limits.memory = Limit::At(schemas::Bytes(4096));
    let start = job.start.clone();
    match fixture.runtime.start(job).await {
        Ok(started) => assert!(fixture.finish(&start, started).await.exit.oom),
        Err(error) => eprintln!("it did not start: {error}"),
    }
    assert!(groups_of(&start).is_empty());
    guard_and_shepherd(&fixture).await;
}

#[tokio::test]
async fn a_fork_bomb_hits_its_bound_and_dies_whole() {
    let fixture = Fixture::new().await;
    if !can(&fixture, "cpu_limit") {
        return;
    }
    let mut bomb = fixture.shell("f() { f | f & }; f 2>/dev/null; echo up; exec sleep 1000");
    bomb.limits.pids = Limit::At(64);
    let start = bomb.start.clone();
    let mut started = fixture.runtime.start(bomb).await.unwrap();
    let file = groups_of(&start).iter().map(|group| group.join("pids.events")).find(|file| file.exists()).unwrap();
    eventually("a fork is refused", || !std::fs::read_to_string(&file).unwrap_or_default().starts_with("max 0")).await;
    fixture.stop(&start, Duration::ZERO).await;
    let mut rest = String::new();
    within(started.stdout.read_to_string(&mut rest)).await.unwrap();
    assert!(fixture.runtime.wait(&start).await.unwrap().pids_exceeded);
    assert!(groups_of(&start).is_empty());
    let mut peaceful = fixture.shell("true; true");
    peaceful.limits.pids = Limit::At(64);
    assert!(!fixture.run(peaceful).await.exit.pids_exceeded);
}

#[tokio::test]
async fn an_unbounded_bomb_of_daemons_dies_whole() {
    let fixture = Fixture::new().await;
    // Each of these forks on for ever and leaves its parent behind: never more than a few at once.
    let hop = fixture.folder.path().join("hop");
    std::fs::write(&hop, "sleep 0.001; setsid sh ./hop & exit\n").unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8; do sh ./hop & done; echo up; sleep 1000";
    let job = fixture.shell(script);
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    fixture.stop(&start, Duration::ZERO).await;
    let mut rest = String::new();
    within(started.stdout.read_to_string(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn a_cpu_bound_is_in_force() {
    let fixture = Fixture::new().await;
    if !can(&fixture, "cpu_limit") {
        return;
    }
    let mut job = fixture.shell("echo up; sleep 1000");
    job.limits.cpu = Limit::At(Cpu { millis: 250 });
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    let groups = groups_of(&start);
    let read = |file: &str| groups.iter().find_map(|group| std::fs::read_to_string(group.join(file)).ok());
    match read("cpu.max") {
        Some(max) => assert_eq!(max.trim(), "25000 100000"),
        None => assert_eq!(read("cpu.cfs_quota_us").unwrap().trim(), "25000"),
    }
    assert!(!read("cgroup.procs").unwrap().trim().is_empty());
    fixture.stop(&start, Duration::ZERO).await;
    assert!(groups_of(&start).is_empty());
}

#[tokio::test]
async fn without_control_groups_rlimits_hold_what_they_can() {
    let config = ProcessConfig { cgroups: false, ..ProcessConfig::new("test") };
    let fixture = Fixture { runtime: ProcessRuntime::new(config).await.unwrap(), folder: tempfile::tempdir().unwrap() };
    let mut job = fixture.shell("ulimit -v");
    job.limits.memory = Limit::At(schemas::Bytes::mebi(256));
    assert_eq!(fixture.run(job).await.stdout.trim(), (256 << 10).to_string());
    let mut job = fixture.shell("true");
    job.limits.cpu = Limit::At(Cpu { millis: 100 });
    let refused = fixture.runtime.start(job).await;
    assert!(matches!(refused, Err(StartError::LimitUnsupported { limit: "cpu", .. })));
}

#[tokio::test]
async fn groups_of_a_dead_worker_are_swept() {
    let fixture = Fixture::new().await;
    if !can(&fixture, "cpu_limit") {
        return;
    }
    let mut job = fixture.shell("echo up; sleep 1000");
    job.limits.pids = Limit::At(64);
    let start = job.start.clone();
    let mut started = fixture.runtime.start(job).await.unwrap();
    line(&mut *started.stdout).await;
    let own = groups_of(&start)[0].parent().unwrap().to_owned();
    let stale = own.parent().unwrap().join(format!("shoal-jobs-dead-{}", std::process::id()));
    std::fs::create_dir_all(stale.join("left")).unwrap();
    // Somebody else's, as a service manager names it.
    let strange = own.parent().unwrap().join(format!("shoal-service-{}", std::process::id()));
    std::fs::create_dir_all(&strange).unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(strange.join("cgroup.procs"), stranger.id().to_string()).unwrap();
    let _other = Fixture::new().await;
    assert!(!stale.exists());
    assert!(stranger.try_wait().unwrap().is_none(), "a process of somebody else was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    std::fs::remove_dir(&strange).unwrap();
    let members = std::fs::read_to_string(groups_of(&start)[0].join("cgroup.procs")).unwrap();
    assert!(own.exists() && members.lines().next().is_some_and(|first| runs(pid(first))));
    fixture.stop(&start, Duration::ZERO).await;
}

/// Another process with a runtime and one job in it, to be killed or frozen.
struct OtherWorker {
    process: std::process::Child,
    folder: tempfile::TempDir,
}

impl OtherWorker {
    /// Starts it and waits until its job has made its daemon.
    async fn start(alive_ms: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = std::process::Command::new("/proc/self/exe")
            .args(["--exact", "a_worker_to_be_killed", "--ignored", "--nocapture"])
            .env("TEST_WORKER_FOLDER", folder.path())
            .env("TEST_WORKER_ALIVE_MS", alive_ms.to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let worker = Self { process, folder };
        eventually("the other worker's job runs", || worker.folder.path().join("main").exists()).await;
        worker
    }

    fn pids(&self) -> Vec<i32> {
        let main = pid(&std::fs::read_to_string(self.folder.path().join("main")).unwrap());
        let guard = children(self.process.id());
        let shepherds = guard.iter().flat_map(|guard| children(*guard as u32)).collect::<Vec<_>>();
        [vec![main, daemon_pid(self.folder.path())], guard, shepherds].concat()
    }
}

impl Drop for OtherWorker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
#[ignore = "not a test: the program that other tests kill"]
async fn a_worker_to_be_killed() {
    let Some(folder) = std::env::var_os("TEST_WORKER_FOLDER").map(PathBuf::from) else { return };
    let alive = std::env::var("TEST_WORKER_ALIVE_MS").unwrap().parse().unwrap();
    let runtime = ProcessRuntime::new(ProcessConfig::new("killed")).await.unwrap();
    let script = format!("trap '' TERM; {DAEMON} echo $$ > main.new; mv main.new main; sleep 1000");
    let mut job = job(&folder, &["sh", "-c", &script]);
    job.limits.pids = if runtime.capabilities().capabilities.iter().any(|word| word == "pids_limit") {
        Limit::At(100)
    } else {
        Limit::Unlimited
    };
    let alive = Duration::from_millis(alive);
    job.alive_until = Some(Instant::now() + alive);
    std::fs::write(folder.join("start"), job.start.as_str()).unwrap();
    let _started = runtime.start(job).await.unwrap();
    loop {
        runtime.keep_alive(Instant::now() + alive);
        tokio::time::sleep(alive / 4).await;
    }
}

#[tokio::test]
async fn nothing_survives_a_killed_worker() {
    let mut worker = OtherWorker::start(600_000).await;
    let pids = worker.pids();
    assert!(pids.len() >= 4 && pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    let start = StartId::new(std::fs::read_to_string(worker.folder.path().join("start")).unwrap()).unwrap();
    worker.process.kill().unwrap();
    worker.process.wait().unwrap();
    eventually("all of it dies", || !pids.iter().any(|pid| runs(*pid))).await;
    assert!(groups_of(&start).is_empty());
}

#[tokio::test]
async fn the_jobs_of_a_frozen_worker_die_when_their_time_is_over() {
    let worker = OtherWorker::start(1_000).await;
    let pids = worker.pids();
    let (jobs, helpers) = pids.split_at(2);
    let own = worker.process.id() as i32;
    kill(own, libc::SIGSTOP);
    eventually("the job dies", || !jobs.iter().any(|pid| runs(*pid))).await;
    assert!(helpers.iter().all(|pid| runs(*pid)), "guard and shepherd serve on");
    kill(own, libc::SIGCONT);
}
