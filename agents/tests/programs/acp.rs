//! The Agent Client Protocol, against an agent that is strict about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemas::transcript::Event;
use serde_json::{Value, json};
use shoal_agents::implementer::acp::{AcpAgent, Permissions};
use shoal_agents::implementer::command::Template;
use shoal_agents::{ImplementError, Implementer, Used};

use crate::{Place, runs, until};

/// An agent with its script and its log.
struct Scripted {
    agent: AcpAgent,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Scripted {
    fn new(prompts: Value) -> Self {
        Self::with(prompts, None, Permissions::Allow)
    }

    fn with(prompts: Value, timeout: Option<Duration>, permissions: Permissions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (script, log) = (folder.path().join("script"), folder.path().join("log"));
        std::fs::write(&script, prompts.to_string()).unwrap();
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/model/acp_agent.py");
        let words = ["python3", program, script.to_str().unwrap(), log.to_str().unwrap()].map(str::to_owned);
        let agent = AcpAgent::new(Template::parse(&words).unwrap(), timeout, permissions, Used::default());
        Self { agent, log, _folder: folder }
    }

    /// Everything of one kind that the agent saw.
    fn saw(&self, what: &str) -> Vec<Value> {
        saw(&self.log, what)
    }
}

fn saw(log: &Path, what: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<(String, Value)>(line).ok());
    lines.filter(|(of, _)| of == what).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn an_agent_works_in_one_session_over_all_rounds_and_its_updates_are_told() {
    let place = Place::new();
    let root = place.path().to_str().unwrap().to_owned();
    let mut scripted = Scripted::new(json!([
        [["think", "hm"], ["say", "I look "], ["say", "first."],
         ["tool", {"id": "t1", "title": "run tests", "input": {"cmd": "make test"}, "output": "1 failed", "failed": true}],
         ["write", {"path": format!("{root}/src/new.txt"), "content": "one\ntwo\nthree\n"}],
         ["read", {"path": format!("{root}/src/new.txt"), "line": 2, "limit": 1}],
         ["say", "Do"], ["say", "ne."]],
        [["say", "Mended."]],
    ]));
    assert_eq!(place.work(&mut scripted.agent, "do it, hunter2-hunter2").await.unwrap().said, "Done.");
    assert_eq!(place.work(&mut scripted.agent, "mend it").await.unwrap().said, "Mended.");

    assert_eq!(place.texts(), ["I look first.", "Done.", "Mended."]);
    let told = place.people.told();
    assert!(told.contains(&Event::ToolCall {
        id: "t1".into(),
        name: "run tests".into(),
        arguments: r#"{"cmd":"make test"}"#.into()
    }));
    assert!(told.contains(&Event::ToolResult { id: "t1".into(), text: "1 failed".into(), failed: true }));
    assert_eq!(std::fs::read_to_string(place.path().join("src/new.txt")).unwrap(), "one\ntwo\nthree\n");

    assert_eq!(scripted.saw("violation"), Vec::<Value>::new());
    assert_eq!(scripted.saw("session/new")[0]["cwd"], root.as_str());
    assert_eq!((scripted.saw("initialize").len(), scripted.saw("session/new").len()), (1, 1));
    let prompts: Vec<Value> =
        scripted.saw("session/prompt").iter().map(|prompt| prompt["prompt"][0]["text"].clone()).collect();
    assert_eq!(prompts, ["do it, ***", "mend it"]);
    assert_eq!(scripted.saw("answer")[1], json!({"content": "two\n"}));
    assert_eq!((scripted.agent.used().turns, place.people.kept().len()), (2, 2));
}

#[tokio::test]
async fn files_outside_the_workspace_links_and_git_are_refused_to_an_agent() {
    let place = Place::new();
    let root = place.path().to_str().unwrap().to_owned();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "no").unwrap();
    std::os::unix::fs::symlink(outside.path(), place.path().join("out")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), place.path().join("link")).unwrap();
    std::fs::create_dir(place.path().join(".git")).unwrap();
    std::fs::write(place.path().join("binary"), b"\xff\xfe").unwrap();
    let read = |path: String| json!(["read", {"path": path}]);
    let write = |path: String| json!(["write", {"path": path, "content": "x"}]);
    let mut scripted = Scripted::new(json!([[
        read("/etc/passwd".into()),
        read(format!("{root}/../x")),
        read(format!("{root}/link")),
        read(format!("{root}/out/secret")),
        read("relative".into()),
        read(format!("{root}/none")),
        read(format!("{root}/binary")),
        read(root.clone()),
        write(format!("{root}/.git/hooks/pre-push")),
        write(format!("{root}/link")),
        write(format!("{root}/out/new")),
        write("/tmp/shoal-acp-escape".into()),
    ]]));
    place.work(&mut scripted.agent, "x").await.unwrap();
    let answers = scripted.saw("answer");
    assert_eq!(answers.len(), 12);
    for answer in answers {
        assert_eq!(answer["code"], -32602, "{answer}");
        assert!(answer["data"].is_string(), "{answer}");
    }
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "no");
    assert!(!outside.path().join("new").exists() && !place.path().join(".git/hooks").exists());
    assert!(!std::path::Path::new("/tmp/shoal-acp-escape").exists());
}

#[tokio::test]
async fn permission_is_given_once_or_people_are_asked() {
    let options =
        json!([["a", "Always", "allow_always"], ["o", "Just once", "allow_once"], ["r", "Never", "reject_once"]]);
    let ask = json!(["permission", {"title": "rm -rf build", "options": options}]);
    let none = json!(["permission", {"title": "x", "options": [["r", "Never", "reject_once"]]}]);

    let place = Place::new();
    let mut scripted = Scripted::new(json!([[ask, none]]));
    place.work(&mut scripted.agent, "x").await.unwrap();
    let outcomes =
        |scripted: &Scripted| scripted.saw("answer").iter().map(|answer| answer["outcome"].clone()).collect::<Vec<_>>();
    let chose = |id: &str| json!({"outcome": "selected", "optionId": id});
    assert_eq!(outcomes(&scripted), [chose("o"), json!({"outcome": "cancelled"})]);
    assert!(place.people.asked().is_empty());

    let mut scripted = Scripted::with(json!([[ask, ask, ask, ask]]), None, Permissions::Ask);
    for answer in ["yes", "always", "what?"] {
        place.people.answer(answer);
    }
    place.work(&mut scripted.agent, "x").await.unwrap();
    // The last one nobody answers.
    assert_eq!(outcomes(&scripted), [chose("o"), chose("a"), chose("r"), chose("r")]);
    assert!(place.people.asked()[0].contains("rm -rf build"));
}

#[tokio::test]
async fn each_reason_to_stop_is_told_apart() {
    for (reason, words) in [
        ("refusal", "the model declined: I will not"),
        ("max_tokens", "most tokens"),
        ("max_turn_requests", "most requests"),
        ("cancelled", "was cancelled"),
    ] {
        let place = Place::new();
        let mut scripted = Scripted::new(json!([[["say", "I will not"], ["stop", reason]]]));
        let error = place.work(&mut scripted.agent, "x").await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(matches!(error, ImplementError::Refused(_)), reason == "refusal");
    }
}

#[tokio::test]
async fn an_agent_that_crashes_is_told_with_its_last_words() {
    let place = Place::new();
    let mut scripted =
        Scripted::new(json!([[["say", "hm"], ["stderr", "out of hunter2-hunter2"], ["exit", 9]], [["say", "back"]]]));
    let error = place.work(&mut scripted.agent, "x").await.unwrap_err();
    assert!(matches!(error, ImplementError::Failed(_)));
    assert_eq!(error.to_string(), "the agent program: it ended with exit code 9: out of ***");
    assert_eq!(place.texts(), ["hm"], "what it said before is told");
    // A new process for a new round, which begins its script anew.
    assert!(place.work(&mut scripted.agent, "x").await.is_err());
    assert_eq!(scripted.saw("initialize").len(), 2);
}

#[tokio::test]
async fn a_late_agent_is_cancelled_and_a_deaf_one_is_stopped() {
    let place = Place::new();
    // The handshake is in it.
    let limit = Some(Duration::from_secs(4));
    let mut scripted = Scripted::with(json!([[["say", "half"], ["hang", null]]]), limit, Permissions::Allow);
    let error = place.work(&mut scripted.agent, "x").await.unwrap_err();
    assert!(error.to_string().contains("not done after"), "{error}");
    assert_eq!(scripted.saw("session/cancel"), [json!({"sessionId": "session-1"})]);
    assert_eq!((scripted.saw("violation"), place.texts()), (vec![], vec!["half".to_owned()]));

    let place = Place::new().until(Duration::from_secs(2));
    let mut scripted = Scripted::new(json!([[["deaf", null]]]));
    let error = place.work(&mut scripted.agent, "x").await.unwrap_err();
    assert!(matches!(error, ImplementError::Budget(_)), "{error:?}");
}

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_fails_and_never_hangs() {
    for (prompts, words) in [
        (json!([[["version", 7]], []]), "unsupported ACP protocol version 7"),
        (json!([[["login", null]], []]), "logged in"),
        (json!([[["flood", 70 << 20], ["deaf", null]]]), "longer than 64 MiB"),
        (json!([[["raw", "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":"], ["exit", 0]]]), "it ended with exit code 0"),
    ] {
        let place = Place::new().until(Duration::from_secs(60));
        let mut scripted = Scripted::new(prompts);
        let error = place.work(&mut scripted.agent, "x").await.unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error:?}");
    }
    // Words that are no message harm nothing.
    let place = Place::new();
    let mut scripted = Scripted::new(json!([[["raw", "Loading model..."], ["say", "ok"]]]));
    assert_eq!(place.work(&mut scripted.agent, "x").await.unwrap().said, "ok");
}

#[tokio::test]
async fn work_that_is_dropped_leaves_no_agent_behind() {
    let place = Place::new();
    let mut scripted = Scripted::new(json!([[["say", "began"], ["deaf", null]]]));
    let log = scripted.log.clone();
    for starts in 1..=2 {
        // Dropped in the middle of a prompt. A new round is a new process.
        tokio::select! {
            ended = place.work(&mut scripted.agent, "x") => panic!("{ended:?}"),
            () = until(|| saw(&log, "session/prompt").len() == starts) => {}
        }
    }
    assert_eq!(scripted.saw("initialize").len(), 2);
    let pids: Vec<u64> = scripted.saw("pid").iter().map(|pid| pid.as_u64().unwrap()).collect();
    until(|| !pids.iter().any(|pid| runs(*pid))).await;
    assert_eq!(pids.len(), 2);
}
