//! People and a running job: it asks, is answered, is told things; who follows it sees all of it (A17).

use schemas::transcript::Event;
use schemas::{Code, State};
use serde_json::{Value, json};

use super::{World, mends, succeeded};
use crate::support::repo::{RIGHT, WRONG, git};
use crate::support::{Program, Publish, eventually};

/// The turns of a model that asks, and mends the fault once `answer` is what it hears.
fn asks(answer: &str) -> Value {
    json!([
        {"calls": [{"name": "ask_people", "arguments": {"question": "Which sign is it to be?"}}]},
        {"expect": answer, "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ])
}

/// A call that is over once `gate` is there.
fn waits_for(gate: &std::path::Path) -> Value {
    let command = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    json!({"name": "run_command", "arguments": {"command": command}})
}

/// Waits for what the job tells.
async fn tells<T>(world: &World, what: &str, is: impl Fn(Event) -> Option<T>) -> T {
    eventually(what, async || {
        let told = world.told("t").await;
        let events: Vec<Event> = told.into_iter().map(|entry| entry.event).collect();
        let last = format!("{:?}", events.last());
        events.into_iter().find_map(&is).ok_or(last)
    })
    .await
}

/// The id of the question, once it is asked.
async fn question(world: &World) -> String {
    tells(world, "a question", |event| match event {
        Event::Question { id, .. } => Some(id),
        _ => None,
    })
    .await
}

/// Waits until the job has heard these words.
async fn heard(world: &World, words: &str) {
    tells(world, words, |event| matches!(event, Event::Said { text } if text == words).then_some(())).await;
}

/// Ends a program by itself.
async fn ended(mut program: Program) -> crate::support::Output {
    program.wait().await
}

#[tokio::test]
async fn a_job_that_asks_goes_on_with_the_answer() {
    let world = World::of(asks("a plus")).await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    let id = question(&world).await;
    assert_eq!(world.fleet.shoal(&["agent", "answer", "t", "a plus"]).await.ok().stdout, "");
    succeeded(&world.fleet.ended("default.t").await);
    world.model_is_content();
    let answered = tells(&world, "the answer", |event| match event {
        Event::Answer { id, text } => Some((id, text)),
        _ => None,
    });
    assert_eq!(answered.await, (id, "a plus".to_owned()));
}

#[tokio::test]
async fn a_question_is_listed_and_answered_by_its_name() {
    let world = World::of(asks("a plus")).await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    let id = question(&world).await;
    let listed = world.fleet.shoal(&["agent", "questions", "t"]).await.ok().stdout;
    assert_eq!(listed, format!("{id}  Which sign is it to be?\n"));
    let listed = world.fleet.shoal(&["agent", "questions", "t", "-o", "json"]).await.ok().json();
    assert_eq!((listed[0]["id"].as_str(), listed.as_array().map(Vec::len)), (Some(id.as_str()), Some(1)), "{listed}");

    let wrong = world.fleet.shoal(&["agent", "answer", "t", "a plus", "--question", "another"]).await.exit(1);
    assert!(wrong.stderr.contains("has no open question `another`"), "{wrong:?}");
    assert!(wrong.stderr.contains("shoal agent questions default.t"), "{wrong:?}");
    world.fleet.shoal(&["agent", "answer", "t", "a plus", "--question", &id]).await.ok();
    succeeded(&world.fleet.ended("default.t").await);
    world.model_is_content();
    assert_eq!(world.fleet.shoal(&["agent", "questions", "t"]).await.ok().stdout, "", "nothing is open at the end");
}

#[tokio::test]
async fn plain_text_on_its_subject_answers_the_open_question() {
    let world = World::of(asks("a plus")).await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    question(&world).await;
    world.fleet.send(Publish::new("shoal.agents.t.in", "a plus\n")).await.expect("it is stored");
    succeeded(&world.fleet.ended("default.t").await);
    world.model_is_content();
}

#[tokio::test]
async fn an_answer_to_no_open_question_is_told_and_answers_nothing() {
    let world = World::of(asks("a plus")).await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    question(&world).await;
    let wrong = json!({"text": "a minus", "answers": "nope"}).to_string();
    world.fleet.send(Publish::new("shoal.agents.t.in", wrong)).await.expect("it is stored");
    let note = tells(&world, "a note", |event| match event {
        Event::Note { text } if text.contains("nope") => Some(text),
        _ => None,
    });
    assert_eq!(note.await, "someone answered the question `nope`, which is not open: a minus");
    world.fleet.shoal(&["agent", "answer", "t", "a plus"]).await.ok();
    succeeded(&world.fleet.ended("default.t").await);
    world.model_is_content();
}

#[tokio::test]
async fn where_nobody_answers_the_job_goes_on() {
    let world = World::of(asks("nobody answered within 1s")).await;
    let _worker = world.builder("w").env("SHOAL_QUESTION_TIMEOUT", "1s").start().await;
    let record = world.run("default.t", json!({})).await;
    succeeded(&record);
    world.model_is_content();
    assert!(world.told("t").await.iter().all(|entry| !matches!(entry.event, Event::Answer { .. })));
}

#[tokio::test]
async fn what_people_say_reaches_the_model_before_its_next_turn() {
    let model = super::Scripted::turns(json!([]));
    let mut world = World::with(model).await;
    let gate = world.fleet.folder().join("gate");
    world.model = super::Scripted::turns(json!([
        {"calls": [waits_for(&gate)]},
        {"seen": "says:\nuse a plus", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]));
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    world.fleet.in_state("default.t", State::Running).await;
    world.fleet.shoal(&["agent", "say", "t", "use a plus"]).await.ok();
    heard(&world, "use a plus").await;
    std::fs::write(&gate, "").expect("the gate");
    succeeded(&world.fleet.ended("default.t").await);
    world.model_is_content();
}

#[tokio::test]
async fn what_a_job_says_to_a_question_of_people_is_printed() {
    let mut world = World::with(super::Scripted::turns(json!([]))).await;
    let gate = world.fleet.folder().join("gate");
    world.model = super::Scripted::turns(json!([
        // Said while it was asked, and no answer to it.
        {"delay_ms": 1500, "say": "I look around.", "calls": [waits_for(&gate)]},
        {"seen": "How far are you", "say": "Half way.",
         "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]));
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    eventually("the model is asked", async || match world.model.requests().len() {
        0 => Err("not yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    let asking = world.fleet.spawn(&["agent", "ask", "t", "How far are you?"], "");
    heard(&world, "How far are you?").await;
    tells(&world, "its first words", |event| matches!(event, Event::Text { .. }).then_some(())).await;
    std::fs::write(&gate, "").expect("the gate");
    assert_eq!(ended(asking).await.ok().stdout, "Half way.\n");
    succeeded(&world.fleet.ended("default.t").await);
    world.model_is_content();
}

#[tokio::test]
async fn a_word_to_a_job_that_waits_for_its_retry_is_heard_by_the_next_attempt() {
    let model = super::Scripted::conversations(json!([
        {"match": "An earlier attempt", "turns": [
            {"calls": [{"name": "list_files", "arguments": {}}]},
            {"seen": "says:\nuse a plus", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
            {"say": "It adds now."},
        ]},
        {"match": "", "turns": [{"calls": [{"name": "write_file", "arguments": {"path": "notes", "content": "?"}}]},
            {"repeat": {"say": "I do not know."}}]},
    ]));
    let world = World::with(model).await;
    let _worker = world.worker("w").await;
    let mut job = world.job(json!({}));
    job["retry"] = json!({"max_attempts": 2, "backoff": {"initial": "4s", "factor": 1.0, "jitter": "none"}});
    world.fleet.publish("default.t", &job).await;
    world.fleet.in_state("default.t", State::Retrying).await;
    world.fleet.shoal(&["agent", "say", "t", "use a plus"]).await.ok();
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(record.attempts.len(), 2);
    world.model_is_content();
}

#[tokio::test]
async fn a_transcript_is_followed_to_its_end_and_gone_on_with_from_any_place() {
    let world = World::of(mends()).await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    // Before there is anything to see.
    let following = world.fleet.spawn(&["agent", "transcript", "-f", "t"], "");
    let _worker = world.worker("w").await;
    succeeded(&world.fleet.ended("default.t").await);
    let followed = ended(following).await.ok().stdout;
    let mut rest = followed.as_str();
    for words in [
        "-- slot",
        "-- implement",
        ">> # Task t",
        "== turn 1, scripted-1",
        " * write_file",
        "   It adds now.",
        "-- step test passed",
        "-- report",
    ] {
        rest = rest.split_once(words).unwrap_or_else(|| panic!("no `{words}` where it should be:\n{followed}")).1;
    }
    assert_eq!(world.fleet.shoal(&["agent", "transcript", "t"]).await.ok().stdout, followed);

    let whole = world.fleet.shoal(&["agent", "transcript", "t", "-o", "json"]).await.ok().stdout;
    let lines: Vec<&str> = whole.lines().collect();
    let read = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON");
    let numbers: Vec<u64> = lines.iter().map(|line| read(line)["number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=lines.len() as u64).collect::<Vec<_>>());
    let middle = lines.len() / 2;
    let sequence = read(lines[middle])["sequence"].to_string();
    let rest =
        world.fleet.shoal(&["agent", "transcript", "t", "-o", "json", "-f", "--from", &sequence]).await.ok().stdout;
    assert_eq!(rest.lines().collect::<Vec<_>>(), lines[middle + 1..]);
}

#[tokio::test]
async fn the_change_of_a_job_is_a_patch_that_git_takes() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    succeeded(&world.run("default.t", json!({})).await);
    let patch = world.fleet.folder().join("patch");
    std::fs::write(&patch, world.fleet.shoal(&["agent", "diff", "t"]).await.ok().stdout).expect("a patch");
    let work = world.fleet.folder().join("work");
    git(world.fleet.folder(), &["clone", "-q", "-b", "main", &world.repo.url(), "work"]);
    assert_eq!(std::fs::read_to_string(work.join("add.sh")).expect("a file"), WRONG);
    git(&work, &["apply", &patch.display().to_string()]);
    assert_eq!(std::fs::read_to_string(work.join("add.sh")).expect("a file"), RIGHT);
}

#[tokio::test]
async fn run_follows_a_job_and_ends_with_its_code() {
    let world = World::with(super::Scripted::conversations(json!([
        {"match": "Break it", "turns": [{"repeat": {"say": "I would rather not."}}]},
        {"match": "", "turns": mends()},
    ])))
    .await;
    let _worker = world.worker("w").await;
    let (url, id) = (world.repo.url(), ["--id", "t"]);
    let run = |title: &'static str| {
        let mut args = vec!["agent", "run", "--repository", &url, "--title", title];
        args.extend(id);
        let run = world.fleet.spawn(&args, "");
        ended(run)
    };
    let done = run("Add, do not subtract").await.ok();
    let branch = "feature/task-t-add-do-not-subtract";
    let tip = world.repo.tip(branch).expect("a branch");
    assert_eq!(done.stdout.lines().last(), Some(format!("{branch} {}", &tip[..12]).as_str()), "{done:?}");
    assert!(done.stdout.contains("-- push"), "it was followed: {done:?}");
    let last: Vec<&str> = done.stderr.lines().collect();
    assert_eq!(
        last,
        ["t", "tests: 1 passed, 0 failed, 0 skipped (sh test.sh)", "the change: shoal agent diff default.t"],
        "{done:?}"
    );

    world.fleet.message_gone("default.t").await;
    let failed = run("Break it").await.exit(1);
    assert!(failed.stderr.contains("t failed: step `test`: exit code 1"), "{failed:?}");
    assert_eq!(failed.stderr.lines().last().map(str::trim), Some("try: shoal explain default.t"), "{failed:?}");
    let record = world.fleet.record("default.t").await.expect("a record");
    assert_eq!(record.error.map(|error| error.code), Some(Code::TestsFailed));

    let args = ["agent", "run", "-o", "json", "--patch-only", "--repository", &url, "--title", "Add", "--turns", "9"];
    let done = world.fleet.shoal(&args).await.ok().json();
    let phases: Vec<&str> = done["attempts"][0]["agent"]["phases"]
        .as_array()
        .expect("phases")
        .iter()
        .filter_map(|it| it["phase"].as_str())
        .collect();
    assert!(!phases.contains(&"push") && phases.contains(&"commit"), "{done}");
    assert_eq!(world.repo.branches(), [branch]);
}

#[tokio::test]
async fn every_refusal_names_the_next_thing_to_try() {
    let mut world = World::with(super::Scripted::turns(json!([]))).await;
    let gate = world.fleet.folder().join("gate");
    world.model = super::Scripted::turns(json!([
        {"calls": [waits_for(&gate)]},
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]));
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    world.fleet.in_state("default.t", State::Running).await;
    let refused = async |args: &[&str], problem: &str, next: &str| {
        let said = world.fleet.shoal(args).await.exit(1).stderr;
        assert!(said.contains(problem), "{args:?}: no `{problem}` in: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.trim_start().starts_with("try: ") && last.contains(next),
            "{args:?}: no `{next}` at the end of: {said}"
        );
    };
    for command in ["transcript", "diff", "questions"] {
        refused(&["agent", command, "nobody"], "nobody", "shoal list").await;
    }
    refused(&["agent", "say", "nobody", "Hello."], "nobody", "shoal list").await;
    refused(&["agent", "answer", "t", "yes"], "has asked nothing that is open", "shoal agent say default.t").await;
    refused(&["agent", "diff", "t"], "keeps no change yet", "shoal agent transcript -f default.t").await;
    std::fs::write(&gate, "").expect("the gate");
    succeeded(&world.fleet.ended("default.t").await);
    for command in ["say", "ask", "answer"] {
        let words = ["agent", command, "t", "Hello?"];
        refused(&words, "task default.t has ended; nobody would hear it", "shoal agent transcript default.t").await;
    }
    let record = world.fleet.run("default.p", &crate::support::process(&["true"])).await;
    assert_eq!(record.state, State::Succeeded);
    refused(&["agent", "transcript", "p"], "no agent job", "shoal logs default.p").await;
    refused(&["agent", "diff", "p"], "no agent job", "shoal artifacts list default.p").await;

    let url = world.repo.url();
    let wrong = world.fleet.shoal(&["agent", "run", "--repository", "ext::sh", "--title", "a"]).await.exit(2);
    assert!(wrong.stderr.contains("workload.repository"), "{wrong:?}");
    let wrong = world.fleet.shoal(&["agent", "run", "--repository", &url, "--title", "a", "--acp"]).await.exit(2);
    assert!(wrong.stderr.contains("COMMAND"), "{wrong:?}");
    let refused = world.fleet.shoal(&["agent", "run", "--repository", "/etc", "--title", "a"]).await.exit(125);
    assert!(refused.stderr.contains("allowed-repositories"), "{refused:?}");
}

#[tokio::test]
async fn what_can_be_known_at_submit_is_refused_then_with_its_field() {
    let world = World::of(json!([])).await;
    let url = world.repo.url();
    let (text, long) = (world.fleet.folder().join("text"), "a".repeat(900_000));
    std::fs::write(&text, &long).expect("a file");
    let text = text.display().to_string();
    let run = ["agent", "run", "--title", "a", "--repository"];
    for (args, words) in [
        (
            vec![url.as_str(), "--description-file", &text],
            "field `workload.description`: it has 900000 bytes, and at most 32768 are allowed",
        ),
        (vec![url.as_str(), "--turns", "0"], "field `workload.budget.turns`"),
        (
            vec![url.as_str(), "--cost", "0"],
            "field `workload.budget.cost`: `0` is not allowed; allowed is more than zero",
        ),
        (vec![url.as_str(), "--image", "a b"], "field `workload.runtime.image`"),
        (
            vec![url.as_str(), "--", "agent", "{foo}"],
            "field `workload.implementer.command`: word 1: `{foo}` stands for",
        ),
        (vec!["https://host/x?token=hunter2"], "field `workload.repository`: a query"),
        (vec!["git@-oProxyCommand=x:foo"], "field `workload.repository`: a host"),
        (vec!["https://host:99999/x"], "field `workload.repository`: `99999` is no port"),
    ] {
        let args: Vec<&str> = run.into_iter().chain(args).collect();
        let refused = world.fleet.shoal(&args).await.exit(2);
        assert!(refused.stderr.contains(words), "{args:?}: no `{words}` in {}", refused.stderr);
        assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
    }

    // A raw message with the same ends at the first worker that sees it.
    let _worker = world.worker("w").await;
    for (id, more, words) in [
        ("default.t1", json!({"description": &long[..200_000]}), "workload.description"),
        ("default.t2", json!({"budget": {"turns": -1}}), "workload.budget.turns"),
    ] {
        world.fleet.publish(id, &world.job(more)).await;
        let letter = world.fleet.dead_letter(id).await;
        let header = |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
        assert_eq!(header("Shoal-Reason"), "invalid_task");
        assert!(header("Shoal-Message").contains(words), "{}", header("Shoal-Message"));
    }
}
