//! The NATS agent protocol, spoken by a plain client that follows what is published: it discovers, takes the subject from
//! what it discovers, reads headers before bodies, and ignores what it does not know.

use async_nats::Subscriber;
use futures_util::StreamExt;
use schemas::State;
use serde_json::{Value, json};

use super::{World, mends, succeeded};
use crate::support::repo::RIGHT;
use crate::support::{Fleet, Program, eventually, in_time};

/// Codes that the protocol knows.
const CODES: [u16; 7] = [400, 401, 403, 404, 409, 429, 500];

/// An agent, as `$SRV.INFO.agents` tells of it.
#[derive(Debug)]
struct Agent {
    info: Value,
}

/// What a caller is told.
#[derive(Debug)]
enum Chunk {
    Response { text: String, data: Value },
    Query { reply_subject: String, prompt: String },
    Error(u16, String),
    End,
}

/// One stream of replies.
struct Replies {
    inbox: Subscriber,
    /// Acks so far.
    acks: usize,
}

/// Everyone who answers.
async fn agents(fleet: &Fleet) -> Vec<Value> {
    let inbox = fleet.nats.new_inbox();
    let mut replies = fleet.nats.subscribe(inbox.clone()).await.expect("an inbox");
    fleet.nats.publish_with_reply("$SRV.INFO.agents", inbox, "".into()).await.expect("published");
    let mut found = Vec::new();
    while let Ok(Some(reply)) = tokio::time::timeout(std::time::Duration::from_millis(400), replies.next()).await {
        if reply.status.is_none() {
            found.push(serde_json::from_slice(&reply.payload).expect("JSON"));
        }
    }
    found
}

/// Waits until so many answer for a session.
async fn sessions(fleet: &Fleet, session: &str, many: usize) -> Vec<Agent> {
    eventually(format!("{many} agents of the session {session}"), async || {
        let all = agents(fleet).await;
        let found: Vec<Value> = all.iter().filter(|info| info["metadata"]["session"] == session).cloned().collect();
        match found.len() == many {
            true => Ok(found.into_iter().map(|info| Agent { info }).collect()),
            false => Err(format!("{all:?}")),
        }
    })
    .await
}

async fn session(fleet: &Fleet, name: &str) -> Agent {
    let agent = sessions(fleet, name, 1).await.remove(0);
    let (info, metadata) = (&agent.info, &agent.info["metadata"]);
    assert_eq!(
        (info["name"].as_str(), info["type"].as_str()),
        (Some("agents"), Some("io.nats.micro.v1.info_response"))
    );
    assert_eq!((metadata["agent"].as_str(), metadata["owner"].as_str()), (Some("shoal"), Some("shoal")));
    assert_eq!(metadata["protocol_version"], "0.3");
    for endpoint in [agent.endpoint("prompt"), agent.endpoint("status")] {
        assert_eq!(endpoint["queue_group"], "agents");
        let tokens: Vec<&str> = endpoint["subject"].as_str().expect("a subject").split('.').collect();
        let verb = endpoint["name"].as_str().expect("a name");
        assert_eq!(tokens, ["agents", verb, "shoal", "shoal", name]);
    }
    agent
}

impl Agent {
    fn endpoint(&self, name: &str) -> &Value {
        let endpoints = self.info["endpoints"].as_array().expect("endpoints");
        endpoints.iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name} in {}", self.info))
    }

    /// Sends a prompt as it stands, as far as the agent says that it takes it.
    async fn prompt(&self, fleet: &Fleet, payload: impl Into<Vec<u8>>) -> Replies {
        let payload = payload.into();
        let endpoint = self.endpoint("prompt");
        let most = endpoint["metadata"]["max_payload"].as_str().and_then(|most| most.strip_suffix("KB"));
        let most: usize = most.expect("an integer and KB").parse().expect("an integer");
        assert!(payload.len() <= most * 1024);
        assert_eq!(endpoint["metadata"]["attachments_ok"], "false");
        let inbox = fleet.nats.new_inbox();
        let replies = fleet.nats.subscribe(inbox.clone()).await.expect("an inbox");
        let subject = endpoint["subject"].as_str().expect("a subject").to_owned();
        fleet.nats.publish_with_reply(subject, inbox, payload.into()).await.expect("published");
        Replies { inbox: replies, acks: 0 }
    }
}

impl Replies {
    async fn next(&mut self) -> Chunk {
        loop {
            let message = in_time("the next chunk", self.inbox.next()).await.expect("the inbox is open");
            assert_eq!(message.status, None, "nobody answers");
            if let Some(headers) = &message.headers {
                let code = headers.get("Nats-Service-Error-Code").expect("headers only of errors");
                let words = headers.get("Nats-Service-Error").expect("words").as_str();
                let code = code.as_str().parse().expect("a number");
                assert!(CODES.contains(&code) && !words.is_empty() && !words.contains('\n'), "{code} {words}");
                return Chunk::Error(code, words.to_owned());
            }
            if message.payload.is_empty() {
                return Chunk::End;
            }
            let chunk: Value = serde_json::from_slice(&message.payload).expect("a chunk is JSON");
            let data = chunk["data"].clone();
            if self.acks == 0 {
                assert_eq!(chunk, json!({"type": "status", "data": "ack"}), "the first chunk");
            }
            match chunk["type"].as_str() {
                Some("status") => self.acks += usize::from(data == "ack"),
                Some("response") => {
                    let text = data.as_str().or_else(|| data["text"].as_str()).expect("a text");
                    return Chunk::Response { text: text.trim_end().to_owned(), data };
                }
                Some("query") => {
                    let field =
                        |name: &str| data[name].as_str().unwrap_or_else(|| panic!("no {name}: {data}")).to_owned();
                    assert!(!field("id").is_empty());
                    return Chunk::Query { reply_subject: field("reply_subject"), prompt: field("prompt") };
                }
                // Of tomorrow.
                _ => {}
            }
        }
    }

    /// Reads until it was told so many times that somebody is there, past whatever else is said.
    async fn acked(&mut self, times: usize) {
        while self.acks < times {
            let message = in_time("an ack", self.inbox.next()).await.expect("the inbox is open");
            let chunk: Value = serde_json::from_slice(&message.payload).expect("a chunk, not the end");
            self.acks += usize::from(chunk == json!({"type": "status", "data": "ack"}));
        }
    }

    /// The next one, which is a text.
    async fn text(&mut self) -> (String, Value) {
        match self.next().await {
            Chunk::Response { text, data } => (text, data),
            other => panic!("no text: {other:?}"),
        }
    }

    /// The next one, which is an error, and the end behind it.
    async fn error(mut self) -> (u16, String) {
        let Chunk::Error(code, words) = self.next().await else { panic!("no error") };
        self.nothing_after_the_end().await;
        (code, words)
    }

    /// All texts up to the end.
    async fn until_the_end(mut self) -> Vec<(String, Value)> {
        let mut texts = Vec::new();
        loop {
            match self.next().await {
                Chunk::Response { text, data } => texts.push((text, data)),
                Chunk::End => return texts,
                other => panic!("{other:?} after {texts:?}"),
            }
        }
    }

    async fn nothing_after_the_end(&mut self) {
        let end = self.next().await;
        assert!(matches!(end, Chunk::End), "{end:?}");
        let after = tokio::time::timeout(std::time::Duration::from_millis(200), self.inbox.next()).await;
        assert!(after.is_err(), "{after:?}");
    }
}

/// Makes jobs on the world's remote of prompts to `default`.
async fn takes_prompts(world: &World) {
    let file = world.fleet.folder().join("job.yaml");
    std::fs::write(&file, format!("repository: {}\nbudget:\n  turns: 20\n", world.repo.url())).expect("a file");
    world.fleet.shoal(&["queues", "set", "default", "--agent-job", &file.display().to_string()]).await.ok();
}

/// A world with a door.
async fn with_a_door(turns: Value) -> (World, Program, Agent) {
    let world = World::of(turns).await;
    let (dispatcher, _) = world.fleet.dispatcher(&[]).await;
    takes_prompts(&world).await;
    let agent = session(&world.fleet, "default").await;
    (world, dispatcher, agent)
}

/// A turn that waits for a file, and the file.
fn waits(world: &std::path::Path) -> (Value, std::path::PathBuf) {
    let gate = world.join("gate");
    let command = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    (json!({"calls": [{"name": "run_command", "arguments": {"command": command}}]}), gate)
}

#[tokio::test]
async fn a_prompt_becomes_a_pushed_branch() {
    let world = World::of(mends()).await;
    let mut beats = world.fleet.nats.subscribe("agents.hb.*.*.*").await.expect("a subscription");
    let (_dispatcher, _) = world.fleet.dispatcher(&[]).await;
    assert_eq!(agents(&world.fleet).await, Vec::<Value>::new(), "no queue takes prompts yet");
    takes_prompts(&world).await;
    let agent = session(&world.fleet, "default").await;
    let beat = in_time("a beat", beats.next()).await.expect("a beat");
    assert_eq!(beat.subject.as_str(), "agents.hb.shoal.shoal.default");
    let beat: Value = serde_json::from_slice(&beat.payload).expect("JSON");
    let status = agent.endpoint("status")["subject"].as_str().expect("a subject").to_owned();
    let status = world.fleet.nats.request(status, "whatever".into()).await.expect("a status");
    let status: Value = serde_json::from_slice(&status.payload).expect("JSON");
    for told in [&beat, &status] {
        assert_eq!(told["instance_id"], agent.info["id"]);
        assert_eq!(
            (told["agent"].as_str(), told["owner"].as_str(), told["session"].as_str()),
            (Some("shoal"), Some("shoal"), Some("default"))
        );
        assert!(
            told["interval_s"].as_u64() >= Some(1) && told["ts"].as_str().is_some_and(|ts| ts.ends_with('Z')),
            "{told}"
        );
    }

    let _worker = world.worker("w").await;
    let mut replies = agent.prompt(&world.fleet, "Add, do not subtract\nadd.sh subtracts.\n").await;
    let (key, _) = replies.text().await;
    let id = key.strip_prefix("default.").expect("the task's name").to_owned();
    let mut texts = replies.until_the_end().await;
    let (last, data) = texts.pop().expect("a result");
    assert!(texts.iter().any(|(text, _)| text == "It adds now."), "{texts:?}");
    let branch = format!("feature/task-{id}-add-do-not-subtract");
    assert_eq!(world.repo.branches(), [branch.as_str()]);
    assert_eq!(world.repo.file(&branch, "add.sh").as_deref(), Some(RIGHT));
    let commit = world.repo.tip(&branch).expect("a commit");
    let lines = [
        format!("branch {branch}"),
        format!("commit {commit}"),
        "tests: 1 passed, 0 failed, 0 skipped (sh test.sh)".to_owned(),
    ];
    assert_eq!(last, lines.join("\n"));
    let task = &data["task"];
    assert_eq!((task["id"].as_str(), task["state"].as_str()), (Some(id.as_str()), Some("succeeded")));
    assert_eq!(task["result"]["commit"].as_str(), Some(commit.as_str()));
    let record = world.fleet.ended(&key).await;
    succeeded(&record);
    let told = world.model.last_messages();
    assert!(told.iter().any(|(_, text)| text.contains("add.sh subtracts.")), "{told:?}");
    world.model_is_content();
}

#[tokio::test]
async fn the_settings_of_a_queue_open_and_close_its_door() {
    let (world, _dispatcher, agent) = with_a_door(json!([])).await;
    let queues = world.fleet.shoal(&["queues", "list", "-o", "json"]).await.ok().json();
    let queues = queues.as_array().expect("queues").clone();
    let default = queues.iter().find(|queue| queue["name"] == "default").expect("the queue");
    assert_eq!(default["settings"]["agent"]["repository"].as_str(), Some(world.repo.url().as_str()));
    world.fleet.shoal(&["queues", "set", "default", "--cap", "7"]).await.ok();
    sessions(&world.fleet, "default", 1).await;
    world.fleet.shoal(&["queues", "set", "default", "--agent-job", "none"]).await.ok();
    sessions(&world.fleet, "default", 0).await;
    let subject = agent.endpoint("prompt")["subject"].as_str().expect("a subject").to_owned();
    let nobody = world.fleet.nats.request(subject, "Fix it".into()).await.expect_err("nobody takes it");
    assert_eq!(nobody.kind(), async_nats::RequestErrorKind::NoResponders);

    let file = world.fleet.folder().join("wrong.yaml");
    std::fs::write(&file, "repository: https://host/a.git\npusch: patch\n").expect("a file");
    let wrong = world.fleet.shoal(&["queues", "set", "default", "--agent-job", &file.display().to_string()]).await;
    assert!(wrong.code != 0 && wrong.stderr.contains("`pusch`") && wrong.stderr.contains("`push`"), "{wrong:?}");
}

#[tokio::test]
async fn a_question_is_answered_by_the_reply_to_its_query() {
    let (world, _dispatcher, agent) = with_a_door(json!([
        {"calls": [{"name": "ask_people", "arguments": {"question": "Add or multiply?"}}]},
        {"expect": "Add, please", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]))
    .await;
    let _worker = world.worker("w").await;
    let mut replies = agent.prompt(&world.fleet, json!({"prompt": "Mend it", "of": "tomorrow"}).to_string()).await;
    let (key, _) = replies.text().await;
    let Chunk::Query { reply_subject, prompt } = replies.next().await else { panic!("no query") };
    assert_eq!(prompt, "Add or multiply?");
    let answer = json!({"prompt": "Add, please"}).to_string();
    world.fleet.nats.publish(reply_subject, answer.into()).await.expect("published");
    let texts = replies.until_the_end().await;
    assert_eq!(texts.last().expect("a result").1["task"]["state"], "succeeded", "{texts:?}");
    succeeded(&world.fleet.ended(&key).await);
    world.model_is_content();
}

#[tokio::test]
async fn a_job_that_fails_says_why_at_the_end() {
    let (world, _dispatcher, agent) = with_a_door(json!([{"repeat": {"say": "Nothing is wrong."}}])).await;
    let _worker = world.worker("w").await;
    let texts = agent.prompt(&world.fleet, "Mend it").await.until_the_end().await;
    let (last, data) = texts.last().expect("a result");
    assert!(last.starts_with("failed: tests_failed: "), "{last}");
    assert_eq!(
        (data["task"]["state"].as_str(), data["task"]["error"]["code"].as_str()),
        (Some("failed"), Some("tests_failed"))
    );
}

#[tokio::test]
async fn a_running_job_is_found_and_spoken_to() {
    let fleet_folder = tempfile::tempdir().expect("a folder");
    let (wait, gate) = waits(fleet_folder.path());
    let world = World::of(json!([
        wait,
        {"seen": "Use a plus, please", "say": "I hear you."},
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]))
    .await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t1", &world.job(json!({}))).await;
    let agent = session(&world.fleet, "task-default-t1").await;
    assert_eq!(
        (&agent.info["metadata"]["role"], &agent.info["metadata"]["queue"]),
        (&json!("session"), &json!("default"))
    );
    for (bad, code) in
        [("", 400), ("{}", 400), (r#"{"prompt":"a","attachments":[{"filename":"a","content":"aGk="}]}"#, 400)]
    {
        assert_eq!(agent.prompt(&world.fleet, bad).await.error().await.0, code, "{bad}");
    }
    let replies = agent.prompt(&world.fleet, "Use a plus, please").await;
    eventually("it is said to the job", async || {
        let told = world.told("t1").await;
        let said = told.iter().any(
            |entry| matches!(&entry.event, schemas::transcript::Event::Said { text } if text == "Use a plus, please"),
        );
        if said { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    std::fs::write(&gate, "").expect("a gate");
    let texts = replies.until_the_end().await;
    assert_eq!(texts.last().map(|(text, _)| text.as_str()), Some("I hear you."), "{texts:?}");
    succeeded(&world.fleet.ended("default.t1").await);
    sessions(&world.fleet, "task-default-t1", 0).await;
    world.model_is_content();
}

#[tokio::test]
async fn who_still_listens_hears_the_end_of_a_running_job() {
    let world = World::of(json!([])).await;
    let _worker = world.worker("w").await;
    let gate = world.fleet.folder().join("gate");
    // A program that hears nothing.
    let script =
        format!("while [ ! -e {} ]; do sleep 0.05; done; printf 'echo $(($1 + $2))\\n' > add.sh", gate.display());
    let job = world.job(json!({"implementer": {"kind": "command", "command": ["sh", "-c", script]}}));
    world.fleet.publish("default.t2", &job).await;
    let agent = session(&world.fleet, "task-default-t2").await;
    let replies = agent.prompt(&world.fleet, "Are you there?").await;
    std::fs::write(&gate, "").expect("a gate");
    replies.until_the_end().await;
    succeeded(&world.fleet.ended("default.t2").await);
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_code() {
    let (world, _dispatcher, agent) = with_a_door(json!([])).await;
    let fleet = &world.fleet;
    for bad in [
        &b""[..],
        b" \n",
        b"{",
        b"{}",
        br#"{"prompt":""}"#,
        br#"{"prompt":1}"#,
        br#"{"prompt":"a","attachments":[{"filename":"a.txt","content":"aGk="}]}"#,
        b"\xff\xfe",
        br#"{"prompt":"a","task_id":"a b"}"#,
        b"a\0b",
    ] {
        assert_eq!(agent.prompt(fleet, bad).await.error().await.0, 400, "{bad:?}");
    }
    let named = json!({"prompt": "Mend it", "task_id": "t1"}).to_string();
    let mut first = agent.prompt(fleet, named.clone()).await;
    assert_eq!(first.text().await.0, "default.t1");
    let (code, words) = agent.prompt(fleet, named).await.error().await;
    assert_eq!(code, 409, "{words}");
    // As many bytes as are taken, each of which JSON writes as six.
    let most = (fleet.nats.server_info().max_payload >> 11) * 1024;
    let (code, words) = agent.prompt(fleet, "\u{1}".repeat(most)).await.error().await;
    assert_eq!(code, 400, "{words}");
    let (code, words) = agent.prompt(fleet, "a".repeat(40_000)).await.error().await;
    assert_eq!(code, 400, "{words}");
    assert!(words.contains("workload.description") && words.contains("40000 bytes"), "{words}");
    let tasks = fleet.messages(&fleet.names.tasks_stream(), "shoal.tasks.>").await;
    assert_eq!(tasks.len(), 1, "nothing else became a task");
}

/// As many as are answered at once by one who speaks.
const MOST: usize = 32;

#[tokio::test]
async fn who_is_one_too_many_is_told_so_and_not_heard() {
    let world = World::of(json!([{"hang": true}])).await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t1", &world.job(json!({}))).await;
    let agent = session(&world.fleet, "task-default-t1").await;
    let mut callers = Vec::new();
    for n in 0..MOST {
        callers.push(agent.prompt(&world.fleet, format!("word {n}")).await);
    }
    let (code, words) = agent.prompt(&world.fleet, "one too many").await.error().await;
    assert_eq!((code, words.contains("too many")), (429, true), "{words}");
    world.fleet.shoal(&["cancel", "t1"]).await.ok();
    for replies in callers {
        replies.until_the_end().await;
    }
    let said = world.told("t1").await.into_iter().filter_map(|entry| match entry.event {
        schemas::transcript::Event::Said { text } => Some(text),
        _ => None,
    });
    let words: Vec<String> = (0..MOST).map(|n| format!("word {n}")).collect();
    assert_eq!(said.collect::<Vec<_>>(), words, "all but what was refused");
}

#[tokio::test]
async fn who_waits_long_is_told_that_somebody_is_there() {
    let (world, _dispatcher, door) = with_a_door(json!([{"hang": true}])).await;
    let _worker = world.worker("w").await;
    let mut of_door = door.prompt(&world.fleet, "Wait for me").await;
    let (key, _) = of_door.text().await;
    let job = session(&world.fleet, &format!("task-{}", key.replace('.', "-"))).await;
    let mut of_job = job.prompt(&world.fleet, "Are you there?").await;
    // Once at the start, and again when the protocol's 30 s are over.
    of_job.acked(1).await;
    let first = std::time::Instant::now();
    tokio::join!(of_door.acked(2), of_job.acked(2));
    assert!(first.elapsed() > std::time::Duration::from_secs(25), "{:?}", first.elapsed());
    world.fleet.shoal(&["cancel", &key]).await.ok();
}

#[tokio::test]
async fn two_dispatchers_share_one_door() {
    let (world, _one, _) = with_a_door(json!([])).await;
    let (_two, _) = world.fleet.dispatcher(&[]).await;
    let both = sessions(&world.fleet, "default", 2).await;
    assert_ne!(both[0].info["id"], both[1].info["id"]);
    assert_eq!(both[0].endpoint("prompt")["subject"], both[1].endpoint("prompt")["subject"]);
    let mut open = Vec::new();
    for n in 0..8 {
        let mut replies = both[n % 2].prompt(&world.fleet, format!("Mend number {n}")).await;
        let (key, _) = replies.text().await;
        open.push((key, replies));
    }
    let tasks = world.fleet.messages(&world.fleet.names.tasks_stream(), "shoal.tasks.>").await;
    let mut stored: Vec<String> = tasks.iter().map(|task| task.subject.to_string()).collect();
    let mut told: Vec<String> = open.iter().map(|(key, _)| format!("shoal.tasks.{key}")).collect();
    stored.sort();
    told.sort();
    assert_eq!(stored, told, "each prompt became one task");
    assert!(tasks.iter().all(|task| task.headers.get("Nats-Msg-Id").is_some()));
}

/// A job in its first turn, the caller that follows it, and its gate.
async fn in_mid_stream(folder: &std::path::Path) -> (World, Program, Program, Replies, String, std::path::PathBuf) {
    let (wait, gate) = waits(folder);
    let (world, dispatcher, agent) = with_a_door(json!([
        {"say": "I begin.", "calls": wait["calls"]},
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]))
    .await;
    let worker = world.worker("w").await;
    let mut replies = agent.prompt(&world.fleet, "Mend it").await;
    let (key, _) = replies.text().await;
    assert_eq!(replies.text().await.0, "I begin.");
    (world, dispatcher, worker, replies, key, gate)
}

#[tokio::test]
async fn a_dispatcher_killed_in_mid_stream_loses_no_job() {
    let folder = tempfile::tempdir().expect("a folder");
    let (world, mut dispatcher, _worker, replies, key, gate) = in_mid_stream(folder.path()).await;
    dispatcher.kill().await;
    drop(replies);
    std::fs::write(&gate, "").expect("a gate");
    let record = world.fleet.ended(&key).await;
    succeeded(&record);
    assert_eq!((record.attempts.len(), world.repo.branches().len()), (1, 1));
}

#[tokio::test]
async fn a_dispatcher_that_leaves_says_that_the_job_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (world, mut dispatcher, _worker, replies, key, gate) = in_mid_stream(folder.path()).await;
    dispatcher.terminate();
    let (code, words) = replies.error().await;
    assert!(code == 500 && words.contains(&key), "{code} {words}");
    dispatcher.wait().await.ok();
    std::fs::write(&gate, "").expect("a gate");
    assert_eq!(world.fleet.ended(&key).await.state, State::Succeeded);
}
