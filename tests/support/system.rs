//! The machine underneath: processes, signals, a plain HTTP GET.

use std::fs;
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Makes the child that `command` starts die with this thread, so that nothing survives a killed test.
pub fn dies_with_us(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: prctl is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Sends `signal` to one process.
pub fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("a pid is a positive i32");
    // SAFETY: kill takes two numbers.
    let answer = unsafe { libc::kill(pid, signal) };
    assert_eq!(answer, 0, "signal {signal} to {pid}: {}", std::io::Error::last_os_error());
}

/// SIGSTOP to one process, and returns once none of its threads runs: the signal alone is only on its way.
pub fn freeze(pid: u32) {
    signal(pid, libc::SIGSTOP);
    let runs = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads.filter_map(|thread| state(&thread.path())).any(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while runs() {
        assert!(std::time::Instant::now() < deadline, "{pid} does not stop");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The letter that the kernel has for how a process or thread is.
fn state(process: &std::path::Path) -> Option<char> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// Whether `pid` is there and no zombie.
pub fn process_runs(pid: u32) -> bool {
    !matches!(state(format!("/proc/{pid}").as_ref()), None | Some('Z' | 'X'))
}

/// Every living process that has `marker` in its environment or arguments, this one left out.
pub fn marked_processes(marker: &str) -> Vec<u32> {
    let holds = |path: String| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(marker.len()).any(|window| window == marker.as_bytes()))
    };
    let pids = fs::read_dir("/proc").expect("/proc is there").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| holds(format!("/proc/{pid}/environ")) || holds(format!("/proc/{pid}/cmdline")))
        .filter(|pid| process_runs(*pid))
        .collect()
}

/// A word nobody else has.
pub fn random_word() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Status and body of a plain HTTP GET.
pub async fn http_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let address = address.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).await?;
    // 1.0, so that the body comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, format!("no HTTP answer: {answer}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(invalid)?;
    Ok((status, body.to_owned()))
}
