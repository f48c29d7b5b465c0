//! From a request to a running program. The child shares the shepherd's memory until it executes (as `posix_spawn`
//! does it), so a start costs no copy of page tables and reports a failure by a mere store.

use std::ffi::{CString, c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::pid_t;

use super::wire::{Run, Step};

/// Stack of the child until it executes; it calls nothing deep.
const STACK: usize = 64 << 10;
/// Exit code of a child that did not get to its program; nobody sees it.
const NOT_STARTED: c_int = 127;

/// Why a start failed.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) step: Step,
    pub(super) errno: i32,
    pub(super) what: String,
}

impl Refusal {
    pub(super) fn new(step: Step, what: impl Into<String>, error: &io::Error) -> Self {
        Self { step, errno: error.raw_os_error().unwrap_or(libc::EINVAL), what: what.into() }
    }
}

/// What a shepherd keeps for starting one job after the other.
pub(super) struct Spawner {
    stack: Mapping,
    report: Mapping,
    /// Signals that are ignored here and must not be in a job.
    ignored: Vec<c_int>,
}

/// Where a child leaves word of its failure. Shared memory, so that a copied child can write it too.
#[repr(C)]
struct Report {
    step: AtomicI32,
    errno: AtomicI32,
}

impl Spawner {
    /// Prepares.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            stack: Mapping::new(STACK, libc::MAP_PRIVATE)?,
            report: Mapping::new(size_of::<Report>(), libc::MAP_SHARED)?,
            ignored: ignored_signals(),
        })
    }

    /// Starts `run` with these files for stdin, stdout and stderr, as a member of the groups behind `groups`.
    /// Returns once it executes, as leader of a process group of its own.
    pub(super) fn spawn(&self, run: &Run, stdio: [BorrowedFd<'_>; 3], groups: &[File]) -> Result<pid_t, Refusal> {
        let text = |text: &str| {
            CString::new(text).map_err(|e| Refusal::new(Step::Prepare, "pass a zero byte to a program", &e.into()))
        };
        let all = |texts: &[String]| texts.iter().map(|each| text(each)).collect::<Result<Vec<_>, _>>();
        let (candidates, argv, env) = (all(&run.candidates)?, all(&run.argv)?, all(&run.env)?);
        let folder = text(&run.folder)?;
        let pointers = |texts: &[CString]| {
            texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<*const libc::c_char>>()
        };
        let (candidates_p, argv_p, env_p) = (pointers(&candidates), pointers(&argv), pointers(&env));
        // SAFETY: plain call.
        let shepherd = unsafe { libc::getpid() };
        let group_fds: Vec<RawFd> = groups.iter().map(|file| file.as_raw_fd()).collect();
        let report = self.report.start.cast::<Report>();
        let child = Child {
            candidates: candidates_p.as_ptr(),
            argv: argv_p.as_ptr(),
            env: env_p.as_ptr(),
            folder: folder.as_ptr(),
            stdio: stdio.map(|fd| fd.as_raw_fd()),
            groups: &group_fds,
            address_space: run.address_space,
            processes: run.processes,
            no_new_privileges: run.no_new_privileges,
            ignored: &self.ignored,
            shepherd,
            report,
        };
        // SAFETY: mapped, aligned, and only ever touched as atomics.
        let report = unsafe { &*report };
        report.step.store(-1, Ordering::Relaxed);
        report.errno.store(0, Ordering::Relaxed);

        // The OOM killer kills all that share memory with its victim. A job with a bound might be the victim even
        // before it executes, so it gets a copy instead.
        let share = if run.cgroup.is_some() { 0 } else { libc::CLONE_VM };
        // SAFETY: CLONE_VFORK halts this only thread until the child has executed or is gone, so all that `child`
        // points to outlives its use, and the stack is used by one child at a time. The child calls nothing but
        // async-signal-safe functions, and all signals are blocked, so no handler runs in it.
        let pid = unsafe {
            let top = self.stack.start.cast::<u8>().add(STACK);
            let flags = share | libc::CLONE_VFORK | libc::SIGCHLD;
            libc::clone(enter, top.cast(), flags, ptr::from_ref(&child).cast_mut().cast())
        };
        if pid < 0 {
            return Err(Refusal::new(Step::Prepare, "make a process", &io::Error::last_os_error()));
        }
        match step(report.step.load(Ordering::Relaxed)) {
            None => Ok(pid),
            Some(step) => {
                // SAFETY: our own child, which is about to be gone.
                unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
                let errno = report.errno.load(Ordering::Relaxed);
                Err(Refusal { step, errno, what: String::new() })
            }
        }
    }
}

/// A step as a child can store it.
const PREPARE: i32 = 0;
const CGROUP: i32 = 1;
const RLIMIT: i32 = 2;
const FOLDER: i32 = 3;
const FIND: i32 = 4;
const EXECUTE: i32 = 5;

fn step(number: i32) -> Option<Step> {
    match number {
        PREPARE => Some(Step::Prepare),
        CGROUP => Some(Step::Cgroup),
        RLIMIT => Some(Step::Rlimit),
        FOLDER => Some(Step::Folder),
        FIND => Some(Step::Find),
        EXECUTE => Some(Step::Execute),
        _ => None,
    }
}

/// What the child is told. Raw, because between `clone` and `execve` nothing may be allocated.
struct Child<'a> {
    candidates: *const *const libc::c_char,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    folder: *const libc::c_char,
    stdio: [RawFd; 3],
    groups: &'a [RawFd],
    address_space: Option<u64>,
    processes: Option<u64>,
    no_new_privileges: bool,
    ignored: &'a [c_int],
    shepherd: pid_t,
    report: *const Report,
}

/// The child's whole life before its program.
extern "C" fn enter(child: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a `Child` and is halted while we use it.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    // SAFETY: see `Child::execute`.
    let (step, errno) = unsafe { child.execute() };
    // SAFETY: mapped shared memory that outlives us.
    unsafe {
        (*child.report).errno.store(errno, Ordering::Relaxed);
        (*child.report).step.store(step, Ordering::Relaxed);
        libc::_exit(NOT_STARTED)
    }
}

impl Child<'_> {
    /// Returns only if it failed: at which step, and why.
    ///
    /// # Safety
    /// To be called in a fresh child with all signals blocked; the pointers must be valid. Only async-signal-safe
    /// functions are called.
    unsafe fn execute(&self) -> (i32, i32) {
        macro_rules! attempt {
            ($step:expr, $call:expr) => {
                if $call < 0 {
                    return ($step, errno());
                }
            };
        }
        // SAFETY: as promised above.
        unsafe {
            // The session is the shepherd's: one at a time is as good as one each, and a new one costs a scheduling
            // group with parts on every core.
            attempt!(PREPARE, libc::setpgid(0, 0));
            attempt!(PREPARE, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
            // The shepherd may have died before that; then nobody would kill us.
            if libc::getppid() != self.shepherd {
                return (PREPARE, libc::ESRCH);
            }
            for group in self.groups {
                attempt!(CGROUP, libc::write(*group, c"0".as_ptr().cast(), 1));
            }
            if let Some(bytes) = self.address_space {
                attempt!(RLIMIT, lower(libc::RLIMIT_AS, bytes));
            }
            if let Some(count) = self.processes {
                attempt!(RLIMIT, lower(libc::RLIMIT_NPROC, count));
            }
            if self.no_new_privileges {
                attempt!(PREPARE, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
            }
            // All of these are above 2 unless they are the very ones: 0 to 2 are always open here.
            for (at, fd) in self.stdio.iter().enumerate() {
                if *fd == at as RawFd {
                    attempt!(PREPARE, libc::fcntl(*fd, libc::F_SETFD, 0));
                } else {
                    attempt!(PREPARE, libc::dup2(*fd, at as RawFd));
                }
            }
            attempt!(FOLDER, libc::chdir(self.folder));
            for signal in self.ignored {
                libc::signal(*signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            attempt!(PREPARE, libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()));
            self.search()
        }
    }

    /// Tries one candidate after the other, as a shell does: what cannot be executed is remembered, not final.
    unsafe fn search(&self) -> (i32, i32) {
        let mut found = (FIND, libc::ENOENT);
        let mut next = self.candidates;
        // SAFETY: a list of texts that ends with a null pointer; only async-signal-safe functions are called.
        unsafe {
            while !(*next).is_null() {
                libc::execve(*next, self.argv, self.env);
                match errno() {
                    libc::ENOENT | libc::ENOTDIR => {
                        // It may be there while its interpreter is not.
                        if found.0 == FIND && libc::access(*next, libc::F_OK) == 0 {
                            found = (EXECUTE, libc::ENOENT);
                        }
                    }
                    libc::ENAMETOOLONG | libc::ELOOP if found.0 == FIND => found = (FIND, errno()),
                    libc::EACCES => found = (EXECUTE, libc::EACCES),
                    other => return (EXECUTE, other),
                }
                next = next.add(1);
            }
        }
        found
    }
}

fn errno() -> i32 {
    // SAFETY: always a valid place.
    unsafe { *libc::__errno_location() }
}

/// Lowers a limit, soft and hard; never raises one.
///
/// # Safety
/// None needed beyond being async-signal-safe, which it is.
unsafe fn lower(resource: libc::__rlimit_resource_t, to: u64) -> c_int {
    // SAFETY: `limit` is a valid place for both calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(resource, &mut limit) < 0 {
            return -1;
        }
        limit.rlim_max = limit.rlim_max.min(to);
        limit.rlim_cur = limit.rlim_cur.min(limit.rlim_max);
        libc::setrlimit(resource, &limit)
    }
}

/// Signals that this process ignores: SIGPIPE by the standard library, SIGHUP under `nohup`, …
fn ignored_signals() -> Vec<c_int> {
    // SAFETY: `action` is a valid place for the answer; a wrong number is only an error.
    let ignored = |signal: &c_int| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(*signal, ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    };
    (1..=libc::SIGRTMAX()).filter(ignored).collect()
}

/// Memory of its own.
struct Mapping {
    start: *mut c_void,
    length: usize,
}

impl Mapping {
    fn new(length: usize, kind: c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, kind | libc::MAP_ANONYMOUS, -1, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, length }) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped above, of this length, used by nobody any more.
        unsafe { libc::munmap(self.start, self.length) };
    }
}
