//! Secrets of the worker and of a job, and a model that tells them wherever it can: nobody finds one anywhere.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use futures_util::{StreamExt, TryStreamExt};
use schemas::{Code, State};
use serde_json::{Value, json};

use super::host::Host;
use super::{World, scripted, succeeded};
use crate::support::Program;
use crate::support::repo::RIGHT;

/// What git logs in with.
const GIT: &str = "gt/Zq9+Key 7w=&Git?";
/// What the job may have.
const JOB: &str = "n0t/For+Eyes 47=&%x";
const BRANCH: &str = "feature/task-t-add-do-not-subtract";

/// Everything that must not be found, each with what it is.
struct Hunted(Vec<(String, Vec<u8>)>);

impl Hunted {
    fn new() -> Self {
        let mut forms = Vec::new();
        for (name, secret) in [("the git token", GIT), ("the model's key", scripted::KEY), ("the job's secret", JOB)] {
            let bytes = secret.as_bytes();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let url = |space: &str| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
                let letter = |byte: &u8| match byte {
                    b' ' => space.to_owned(),
                    byte if plain(*byte) => char::from(*byte).to_string(),
                    byte => format!("%{byte:02X}"),
                };
                bytes.iter().map(letter).collect::<String>()
            };
            let mut add = |how: &str, text: String| forms.push((format!("{name}, {how}"), text.into_bytes()));
            add("as it is", secret.to_owned());
            add("hex", hex.clone());
            add("HEX", hex.to_uppercase());
            add("url", url("%20"));
            add("form", url("+"));
            add("json", serde_json::to_string(secret).expect("a text").trim_matches('"').to_owned());
            for before in 0..3 {
                let text = [&vec![0; before], bytes].concat();
                for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                    let encoded = engine.encode(&text);
                    add("base64", encoded[(before * 8).div_ceil(6)..text.len() * 8 / 6].to_owned());
                }
            }
        }
        Self(forms)
    }

    fn look(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        let found = |form: &[u8]| bytes.windows(form.len()).any(|window| window == form);
        let finds = self.0.iter().filter(|(_, form)| found(form));
        finds
            .map(|(what, _)| format!("{place}: {what}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(2000)])))
            .collect()
    }
}

/// Subject and bytes of every message.
type Heard = std::sync::Arc<std::sync::Mutex<Vec<(String, Vec<u8>)>>>;

/// A world whose remote is behind HTTP with a login, a worker with all its secrets, and who hears every message.
struct Watched {
    world: World,
    host: Host,
    worker: Program,
    heard: tokio::task::JoinHandle<()>,
    messages: Heard,
}

impl Watched {
    async fn of(turns: Value) -> Self {
        let world = World::of(turns).await;
        let host = Host::of(world.fleet.folder(), "x-access-token", GIT).await;
        let messages: Heard = Default::default();
        // Everything that anybody says to anybody: events, beats, stores and answers.
        let mut all = world.fleet.nats.subscribe(">").await.expect("subscribed");
        world.fleet.nats.flush().await.expect("the server has it");
        let heard = tokio::spawn({
            let messages = messages.clone();
            async move {
                while let Some(message) = all.next().await {
                    let headers = message.headers.map(|headers| format!("{headers:?}")).unwrap_or_default();
                    let mut bytes = headers.into_bytes();
                    bytes.extend_from_slice(&message.payload);
                    messages.lock().expect("nobody panics with it").push((message.subject.to_string(), bytes));
                }
            }
        });
        let worker = world
            .builder("w")
            .env("SHOAL_ALLOWED_REPOSITORIES", &format!("{}/**", host.url))
            .env("GIT_TOKEN", GIT)
            .env("NPM_SECRET", JOB)
            .env("SHOAL_JOB_SECRETS", "npm=env:NPM_SECRET")
            .env("SHOAL_LOG_LEVEL", "debug")
            .start()
            .await;
        Self { world, host, worker, heard, messages }
    }

    fn job(&self, more: Value) -> Value {
        let mut fields =
            json!({"repository": format!("{}/remote.git", self.host.url), "secrets": {"NPM_TOKEN": "npm"}});
        super::merge(&mut fields, more);
        self.world.job(fields)
    }

    /// Looks everywhere.
    async fn nothing_is_found(self) {
        let Self { world, mut worker, heard, messages, host: _host } = self;
        let hunted = Hunted::new();
        let mut found = Vec::new();
        // Streams, and with them buckets, objects, records, the registry, logs, transcripts.
        let streams: Vec<_> = world.fleet.js.streams().try_collect().await.expect("all streams");
        assert!(streams.len() > 8, "{streams:?}");
        let mut read = 0;
        for stream in &streams {
            for message in world.fleet.messages(&stream.config.name, ">").await {
                let headers = format!("{:?}", message.headers);
                let place = format!("{} {}", stream.config.name, message.subject);
                found.extend(hunted.look(&place, headers.as_bytes()));
                found.extend(hunted.look(&place, &message.payload));
                read += 1;
            }
        }
        assert!(read > 20, "{read} messages");
        heard.abort();
        let messages = std::mem::take(&mut *messages.lock().expect("nobody panics with it"));
        assert!(messages.iter().any(|(subject, _)| subject.starts_with("shoal.events.")));
        for (subject, bytes) in &messages {
            found.extend(hunted.look(subject, bytes));
        }
        // Objects of the remote.
        let objects = std::process::Command::new("git")
            .args(["-C", &world.repo.url(), "cat-file", "--batch-all-objects", "--batch"])
            .output()
            .expect("git runs");
        assert!(objects.status.success() && !objects.stdout.is_empty());
        found.extend(hunted.look("an object of the remote", &objects.stdout));
        // Whatever it leaves to the next program of this machine, and its own words.
        worker.terminate();
        worker.wait().await;
        for path in super::files_below(world.fleet.folder()) {
            let bytes = std::fs::read(&path).unwrap_or_default();
            found.extend(hunted.look(&path.display().to_string(), &bytes));
        }
        assert_eq!(found, Vec::<String>::new());
    }
}

fn command(line: &str) -> Value {
    json!({"calls": [{"name": "run_command", "arguments": {"command": line}}]})
}

/// In plain, base64 and hex, from the environment and from whoever started this.
const TELL: &str = "env; echo \"npm=[$NPM_TOKEN]\"; printf %s \"$NPM_TOKEN\" | base64 -w0; echo; echo; \
                    printf 'x%s' \"$NPM_TOKEN\" | base64 -w0; echo; \
                    printf %s \"$NPM_TOKEN\" | od -An -v -tx1 | tr -d ' \\n'; echo; \
                    tr '\\0' '\\n' </proc/$PPID/environ; echo told >&2";

#[tokio::test]
async fn no_secret_is_found_anywhere_after_a_job_that_tells_all_it_knows() {
    let everything = format!("{JOB} and {} and {GIT}", scripted::KEY);
    let watched = Watched::of(json!([
        command(TELL),
        {"expect": "npm=\\[\\*\\*\\*\\]", "calls": [{"name": "write_file", "arguments": {"path": "leak.txt", "content": everything}}]},
        {"calls": [{"name": "read_file", "arguments": {"path": "leak.txt"}}]},
        command("echo \"$NPM_TOKEN\" > other.txt; cat leak.txt other.txt; base64 -w0 leak.txt; rm leak.txt other.txt"),
        {"calls": [{"name": "read_file", "arguments": {"path": everything}}]},
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": format!("It adds. By the way: {everything}.")},
    ]))
    .await;
    let fields = json!({"keep": {"every_turns": 1, "remote": true}});
    let record = watched.world.fleet.run("default.t", &watched.job(fields)).await;
    succeeded(&record);
    assert_eq!(watched.world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    let log = watched.world.artifact("t", "job.log").await;
    assert!(log.contains("npm=[***]") && log.contains("NPM_TOKEN=***") && log.contains("told"), "{log}");
    let transcript = watched.world.artifact("t", "transcript.jsonl").await;
    assert!(transcript.contains("By the way: *** and *** and ***."), "{transcript}");
    // What commands write does not reach the model either.
    let told: Vec<String> = watched
        .world
        .model
        .last_messages()
        .into_iter()
        .filter(|(role, _)| role == "tool")
        .map(|(_, text)| text)
        .collect();
    assert!(!told.is_empty() && told.iter().all(|text| Hunted::new().look("", text.as_bytes()).is_empty()), "{told:?}");
    watched.world.model_is_content();
    watched.nothing_is_found().await;
}

#[tokio::test]
async fn a_change_with_a_secret_in_it_is_not_pushed_and_kept_without_it() {
    for (content, name) in [
        (format!("token: {JOB}\n"), "npm"),
        (format!("url = https://x:{GIT}@host/\n"), "the git token"),
        (format!("{}\n", STANDARD_NO_PAD.encode(format!("ab{JOB}"))), "npm"),
    ] {
        let watched = Watched::of(json!([
            {"calls": [
                {"name": "write_file", "arguments": {"path": "config/leak.txt", "content": content}},
                {"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}},
            ]},
            {"say": format!("Here: {JOB}")},
        ]))
        .await;
        let fields = json!({"keep": {"every_turns": 1, "remote": true}});
        let record = watched.world.fleet.run("default.t", &watched.job(fields)).await;
        assert_eq!(record.state, State::Failed, "{record:#?}");
        let error = record.error.as_ref().expect("an error");
        assert_eq!(error.code, Code::ChangeRefused, "{error:?}");
        assert!(error.message.contains("config/leak.txt") && error.message.contains(name), "{error:?}");
        assert_eq!(watched.world.repo.branches(), Vec::<String>::new());
        let told = record.warnings.iter().find(|warning| warning.contains("left out")).expect("a warning");
        assert!(told.contains("config/leak.txt") && told.contains(name), "{told}");
        let patch = watched.world.artifact("t", "changes.patch").await;
        assert!(patch.contains("a/add.sh") && !patch.contains("leak"), "{patch}");
        let kept: Vec<_> = watched.world.repo.refs().into_iter().filter(|name| name != "refs/heads/main").collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_eq!(watched.world.repo.file(&kept[0], "add.sh").as_deref(), Some(RIGHT));
        assert_eq!(watched.world.repo.file(&kept[0], "config/leak.txt"), None);
        watched.nothing_is_found().await;
    }
}

#[tokio::test]
async fn no_secret_is_found_anywhere_after_tests_that_failed_with_it() {
    let watched = Watched::of(json!([
        {"calls": [
            {"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}},
            {"name": "run_command", "arguments": {"command": format!("echo '{JOB}' | wc -c")}},
            {"name": "write_file", "arguments": {"path": format!("of/{JOB}"), "content": "x"}},
            {"name": "run_command", "arguments": {"command": "rm -r of"}},
        ]},
        {"repeat": {"say": format!("I did it with {JOB}.")}},
    ]))
    .await;
    let test = format!("echo 1..1; echo \"not ok 1 - logs in with $NPM_TOKEN\"; {TELL}; exit 1");
    let playbook = json!({"name": "tells", "steps": [{"name": "test", "kind": "test", "command": test}]});
    let fields =
        json!({"playbook": {"kind": "inline", "playbook": playbook}, "keep": {"every_turns": 1, "remote": true}});
    let job = watched.job(fields);
    let record = watched.world.fleet.run("default.t", &job).await;
    let error = record.error.as_ref().expect("an error");
    assert_eq!(error.code, Code::TestsFailed, "{error:?}");
    let tests = super::report(&record).tests.expect("they ran");
    assert_eq!(tests.failed, ["logs in with ***"]);
    let asked = serde_json::to_string(&watched.world.model.requests()).expect("JSON");
    assert!(asked.contains("logs in with ***"), "{asked}");
    watched.nothing_is_found().await;
}

#[tokio::test]
async fn commands_of_a_job_do_not_have_the_workers_own_secrets() {
    // The names alone: what they are worth would be hidden in the log.
    let names = "env | sed 's/=.*//; s/^/name:/'";
    let watched = Watched::of(json!([command(TELL), command(names),
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]))
    .await;
    let record = watched.world.fleet.run("default.t", &watched.job(json!({}))).await;
    succeeded(&record);
    let log = watched.world.artifact("t", "job.log").await;
    assert!(log.contains("name:NPM_TOKEN") && log.contains("name:SHOAL_TASK_ID"), "{log}");
    for name in ["GIT_TOKEN", "OPENAI_API_KEY", "NPM_SECRET", "SHOAL_NATS_URL", "SHOAL_JOB_SECRETS", "GIT_ASKPASS"] {
        assert!(!log.contains(&format!("name:{name}\n")), "{name}: {log}");
    }
    watched.nothing_is_found().await;
}
