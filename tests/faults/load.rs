//! Tasks of the load: what each does, what it writes down while it does it, and how it may end.

use std::path::Path;

use schemas::State;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::history::{Kind, Plan};
use crate::support::{IMAGE, With};

/// How long a job is given to stop.
pub const GRACE_MS: i64 = 1_000;
/// Where containers see the folder of effects.
const INSIDE: &str = "/effects";

/// Makes the tasks of one round.
pub struct Load {
    dice: Dice,
    /// Folder of the file of effects.
    folder: String,
    /// In the environment of every job, so that its processes are known.
    mark: String,
    /// Of 10,000 tasks, processes and containers; the rest are calls, which cost next to nothing.
    processes: u64,
    containers: u64,
    made: u64,
}

/// One task before it is submitted.
pub struct Planned {
    /// See [`crate::history::Submission::nonce`].
    pub nonce: String,
    /// `<queue>.<id>`.
    pub key: String,
    /// What it does.
    pub plan: Plan,
    /// As it is sent.
    pub body: Vec<u8>,
    /// How it is submitted.
    pub manner: Manner,
}

/// How a task is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Once.
    Plain,
    /// By so many at once, all with the same message id.
    Storm(u8),
    /// And cancelled so many milliseconds later.
    Cancelled(u64),
}

/// What a job does besides leaving its traces.
enum Deed {
    /// Works for so many tenths of a second, then ends with this code.
    Work(u64, i32),
    /// Fails until this attempt, then does well.
    Retry(u32),
    /// A script that replaces all that follows the begin.
    Zoo(&'static str),
}

impl Load {
    /// Jobs write their effects to `effects` in `folder`. So many tasks are asked for a second.
    pub fn new(seed: u64, folder: &Path, mark: &str, containers: bool, rate: u64) -> Self {
        let folder = folder.display().to_string();
        // No more a second than two cores bear: five processes, a good one container.
        let processes = (50_000 / rate).min(800);
        let containers = if containers { (12_000 / rate).min(300) } else { 0 };
        Self { dice: Dice::new(seed, "load"), folder, mark: mark.to_owned(), processes, containers, made: 0 }
    }

    /// The next task, or two that want the same id.
    pub fn next(&mut self) -> Vec<Planned> {
        self.made += 1;
        let key = format!("{}.t-{}", self.dice.one_of(&["default", "default", "other"]), self.made);
        let throw = self.dice.between(0, 10_000);
        // An id that was used before, or is in use: refused or run again, never both at once.
        if throw < 300 {
            let other = self.call(key.clone());
            return vec![self.call(key), other];
        }
        let throw = throw - 300;
        vec![match throw {
            _ if throw < self.processes / 4 => self.process(format!("default.again-{}", self.made % 8)),
            _ if throw < self.processes * 5 / 4 => self.process(key),
            _ if throw < self.processes * 5 / 4 + self.containers => self.container(key),
            _ => self.call(key),
        }]
    }

    fn call(&mut self, key: String) -> Planned {
        let nonce = self.dice.word();
        let body = json!({"workload": {"kind": "call", "handler": "echo", "payload": nonce}});
        let mut plan = plan(Kind::Call, State::Succeeded, 1);
        let mut manner = if self.dice.once_in(10) { Manner::Storm(3) } else { Manner::Plain };
        if self.dice.once_in(50) {
            manner = Manner::Cancelled(self.dice.between(0, 50));
            plan.cancelled = true;
        }
        Planned { nonce, key, plan, body: body.to_string().into_bytes(), manner }
    }

    fn process(&mut self, key: String) -> Planned {
        let tenths = self.dice.between(0, 12);
        match self.dice.between(0, 20) {
            0..=1 => self.job(key, Kind::Process, Deed::Work(tenths, 3), 2, false, false),
            2..=4 => self.job(key, Kind::Process, Deed::Retry(2), 2, false, false),
            5..=7 => self.job(key, Kind::Process, Deed::Work(tenths, 0), 1, true, false),
            8 => {
                // A deadline that may pass before a slot is free.
                let mut planned = self.job(key, Kind::Process, Deed::Work(tenths, 0), 2, false, false);
                let expires = schemas::Timestamp::now().plus(self.dice.pause(1_000, 6_000));
                let task: Value = serde_json::from_slice(&planned.body).expect("our own");
                planned.body = task.with("expires_at", expires.to_string()).to_string().into_bytes();
                planned.plan.expires = true;
                planned
            }
            11 => {
                // Long enough to be killed, frozen and handed back with its worker.
                let tenths = self.dice.between(20, 80);
                self.job(key, Kind::Process, Deed::Work(tenths, 0), 3, tenths.is_multiple_of(3), tenths % 5 == 1)
            }
            9 => {
                // Stops at no signal but the last, and leaves a daemon behind.
                let script =
                    "trap '' TERM; (setsid sh -c 'while :; do sleep 0.1; done' &) ; sleep 0.2; say end; exit 3";
                self.job(key, Kind::Process, Deed::Zoo(script), 3, false, false)
            }
            10 => self.zoo(key, Kind::Process),
            _ => {
                let cancelled = self.dice.once_in(3);
                self.job(key, Kind::Process, Deed::Work(tenths, 0), 3, false, cancelled)
            }
        }
    }

    fn container(&mut self, key: String) -> Planned {
        let tenths = self.dice.between(0, 12);
        match self.dice.between(0, 8) {
            0 => self.job(key, Kind::Container, Deed::Work(tenths, 3), 2, false, false),
            1 => self.job(key, Kind::Container, Deed::Work(tenths, 0), 1, true, false),
            2 => self.zoo(key, Kind::Container),
            _ => {
                let cancelled = self.dice.once_in(3);
                self.job(key, Kind::Container, Deed::Work(tenths, 0), 3, false, cancelled)
            }
        }
    }

    /// What goes wrong by itself.
    fn zoo(&mut self, key: String, kind: Kind) -> Planned {
        const FLOOD: &str = "head -c 3000000 /dev/zero | tr '\\0' '\\n'; say end; exit 3";
        const LONG_LINE: &str = "head -c 10000000 /dev/zero | tr '\\0' x; echo; say end; exit 3";
        const BINARY: &str = "head -c 100000 /dev/urandom; say end; exit 3";
        const NO_PROGRAM: &str = "exec /there/is/no/such/program";
        const MEMORY: &str = "exec tail /dev/zero";
        const BOMB: &str = "bomb() { bomb | bomb & }; bomb; sleep 0.3; say end; exit 3";
        match (kind, self.dice.between(0, 8)) {
            (Kind::Container, 0) => {
                let mut planned = self.job(key, kind, Deed::Work(0, 3), 1, false, false);
                let wrong = ["shoal-test/there-is-none:1", "shoal-test/busybox@sha256:abc"];
                let mut task: Value = serde_json::from_slice(&planned.body).expect("our own");
                let image = *self.dice.one_of(&wrong);
                task["workload"]["image"] = image.into();
                task["workload"]["pull"] = "never".into();
                planned.body = task.to_string().into_bytes();
                planned
            }
            (Kind::Container, 1) => self.job(key, kind, Deed::Zoo(MEMORY), 3, false, false),
            (Kind::Container, 2) => self.job(key, kind, Deed::Zoo(BOMB), 3, false, false),
            (_, 3) => self.job(key, kind, Deed::Zoo(FLOOD), 3, false, false),
            (_, 4) => self.job(key, kind, Deed::Zoo(LONG_LINE), 3, false, false),
            (_, 5) => self.job(key, kind, Deed::Zoo(BINARY), 3, false, false),
            _ => self.job(key, kind, Deed::Zoo(NO_PROGRAM), 3, false, false),
        }
    }

    /// A shell that writes down what it does. `at_most_once` excludes a cancel of the plan, so that each has its share.
    fn job(&mut self, key: String, kind: Kind, deed: Deed, lines: u32, at_most_once: bool, cancelled: bool) -> Planned {
        let nonce = self.dice.word();
        let effects = match kind {
            Kind::Container => format!("{INSIDE}/effects"),
            Kind::Call | Kind::Process => format!("{}/effects", self.folder),
        };
        let babbles = matches!(deed, Deed::Zoo(_));
        let (then, end, attempts, lines, artifact) = match deed {
            Deed::Work(tenths, code) => {
                let good = code == 0;
                let then = format!("work {tenths}; say end; exit {code}");
                (then, if good { State::Succeeded } else { State::Failed }, 1, lines, good && tenths.is_multiple_of(4))
            }
            Deed::Retry(attempt) => {
                let then = format!("work 1; say end; [ $SHOAL_TASK_ATTEMPT -ge {attempt} ] || exit 3");
                (then, State::Succeeded, attempt, lines, false)
            }
            Deed::Zoo(script) => (script.to_owned(), State::Failed, 1, 0, false),
        };
        let traces = format!(
            "say() {{ read t _ </proc/uptime; echo \"$NONCE $S $SHOAL_TASK_ATTEMPT $1 $t\" >> {effects}; }}\n\
             work() {{ n=$1; while [ $n -gt 0 ]; do sleep 0.1; say alive; n=$((n-1)); done; }}\n\
             read S </proc/sys/kernel/random/uuid\nsay begin\n\
             i=1; while [ $i -le {lines} ]; do echo $i; i=$((i+1)); done\n\
             keep() {{ until printf \"$1\" > \"$2\"; do sleep 0.2; done 2>/dev/null; }}\n\
             keep \"$NONCE:$S\" \"$SHOAL_RESULT_FILE\"\n{artifact}{then}\n",
            artifact = if artifact { "keep $NONCE out.txt\n" } else { "" },
        );
        let env = json!({"NONCE": nonce, "MARK": self.mark});
        let mut task = match kind {
            Kind::Container => {
                let mount = json!({"source": self.folder, "target": INSIDE, "read_only": false});
                json!({"workload": {"kind": "container", "image": IMAGE, "command": ["sh", "-c", traces], "env": env,
                    "mounts": [mount]}, "limits": {"memory": "32Mi", "pids": 64}})
            }
            Kind::Call | Kind::Process => {
                json!({"workload": {"kind": "process", "command": ["sh", "-c", traces], "env": env}})
            }
        };
        task = task.with("stop_grace", format!("{GRACE_MS}ms"));
        if artifact {
            task = task.with("artifacts", json!(["out.txt"]));
        }
        if attempts > 1 {
            task = task.retried(attempts + 1, "200ms");
        }
        if at_most_once {
            task = task.with("on_lost", "fail");
        }
        let mut plan = plan(kind, end, attempts);
        plan.lines = lines;
        plan.artifact = artifact;
        plan.babbles = babbles;
        plan.at_most_once = at_most_once;
        plan.cancelled = cancelled && !at_most_once;
        let manner = if plan.cancelled { Manner::Cancelled(self.dice.between(0, 1_500)) } else { Manner::Plain };
        Planned { nonce, key, plan, body: task.to_string().into_bytes(), manner }
    }
}

fn plan(kind: Kind, end: State, attempts: u32) -> Plan {
    Plan {
        kind,
        end,
        attempts,
        at_most_once: false,
        cancelled: false,
        expires: false,
        lines: 0,
        artifact: false,
        babbles: false,
    }
}
