//! The loop as it should be.

use std::time::Duration;

use schemas::transcript::Event;
use serde_json::json;
use shoal_agents::{ImplementError, Implementer};

use crate::bench::Bench;
use crate::support::scripted::Scripted;

#[tokio::test]
async fn a_bug_is_found_fixed_tested_and_told() {
    let bench = Bench::new(json!([
        { "say": "I look around.", "calls": [{ "name": "list_files" }, { "name": "read_file", "arguments": { "path": "add.sh" } }] },
        { "expect": "minus", "calls": [{ "name": "edit_file", "arguments": { "path": "add.sh", "old": "$1 - $2", "new": "$1 + $2" } }] },
        { "expect": "edited add.sh at line 2", "calls": [{ "name": "run_command", "arguments": { "command": "test \"$(sh add.sh 2 3)\" = 5" } }] },
        { "expect": "^exit code 0", "say": "add.sh adds now.", "usage": { "prompt_tokens": 900, "completion_tokens": 7, "prompt_tokens_details": { "cached_tokens": 800 } } },
    ]));
    bench.file("add.sh", "# minus\necho $(($1 - $2))\n");
    let mut implementer = bench.implementer(None);
    let finish = implementer.work(&bench.room(), "Make add.sh add.").await.unwrap();
    assert_eq!(bench.server.violations(), [""; 0]);
    assert_eq!(finish.said, "add.sh adds now.");
    assert_eq!(bench.read("add.sh"), "# minus\necho $(($1 + $2))\n");
    assert_eq!(implementer.model().as_deref(), Some("scripted-1"));
    // Everything is told as it happens, in order.
    let kinds: Vec<&str> = bench
        .people
        .told()
        .iter()
        .map(|event| match event {
            Event::Prompt { .. } => "prompt",
            Event::Turn { .. } => "turn",
            Event::Used { .. } => "used",
            Event::Text { .. } => "text",
            Event::ToolCall { .. } => "call",
            Event::ToolResult { failed: false, .. } => "result",
            other => panic!("{other:?}"),
        })
        .collect();
    let expected =
        "prompt turn used text call result call result turn used call result turn used call result turn used text";
    assert_eq!(kinds.join(" "), expected);
    // Kept after each turn, with what was done.
    let kept = bench.people.kept();
    assert_eq!(kept.iter().map(|progress| progress.used.turns).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let summary = &kept[3].summary;
    for done in ["add.sh", "test \"$(sh add.sh 2 3)\" = 5`: exit code 0", "add.sh adds now."] {
        assert!(summary.contains(done), "{summary}");
    }
    assert_eq!(implementer.used(), kept[3].used);
    // The key travelled as a header alone; the request is the protocol's.
    let request = bench.server.requests()[3].clone();
    assert_eq!(request["authorized"], true);
    assert!(!request["body"].to_string().contains(crate::support::scripted::KEY));
    assert_eq!(request["body"]["stream_options"]["include_usage"], true);
}

#[tokio::test]
async fn a_second_round_goes_on_in_the_same_conversation() {
    let bench = Bench::new(json!([
        { "say": "done" },
        { "expect": "2 tests failed", "seen": "Do the task", "say": "done again" },
    ]));
    let mut implementer = bench.implementer(None);
    implementer.work(&bench.room(), "Do the task.").await.unwrap();
    assert_eq!(implementer.work(&bench.room(), "2 tests failed").await.unwrap().said, "done again");
    assert_eq!(bench.server.violations(), [""; 0]);
    assert_eq!(bench.turns(), [1, 2]);
    let roles: Vec<String> = bench.server.last_messages().into_iter().map(|(role, _)| role).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
}

#[tokio::test]
async fn people_s_words_come_before_the_next_turn_even_after_the_last_words() {
    let bench = Bench::new(json!([{ "say": "done" }, { "expect": "also fix the README", "say": "that too" }]));
    let mut implementer = bench.implementer(None);
    let room = bench.room();
    let say = async {
        // While the model finds its words.
        while bench.turns().is_empty() {
            tokio::task::yield_now().await;
        }
        bench.people.say("also fix the README");
    };
    let (finish, ()) = tokio::join!(implementer.work(&room, "Do the task."), say);
    assert_eq!(finish.unwrap().said, "that too");
    assert_eq!(bench.server.violations(), [""; 0]);
}

#[tokio::test]
async fn a_question_is_put_to_people_and_silence_is_no_end() {
    let ask = |question: &str| json!({ "calls": [{ "name": "ask_people", "arguments": { "question": question } }] });
    let bench = Bench::new(json!([
        ask("Which name?"),
        { "expect": "^call it shoal$", "calls": [{ "name": "ask_people", "arguments": { "question": "Which colour?" } }] },
        { "expect": "nobody answered within 1s; go on as you think best", "say": "done" },
    ]));
    bench.people.answer("call it shoal");
    assert_eq!(bench.works().await.unwrap().said, "done");
    assert_eq!(bench.people.asked(), ["Which name?", "Which colour?"]);
}

#[tokio::test]
async fn an_attempt_that_was_cut_off_is_resumed_without_paying_its_turns_again() {
    let bench = Bench::of(Scripted::conversations(json!([
        { "match": "An earlier attempt", "turns": [
            { "seen": "- a.txt", "calls": [{ "name": "read_file", "arguments": { "path": "a.txt" } }] },
            { "expect": "first", "say": "all done" },
        ] },
        { "match": "Do the task", "turns": [
            { "say": "I begin with a.", "calls": [{ "name": "write_file", "arguments": { "path": "a.txt", "content": "first" } }] },
            { "calls": [{ "name": "run_command", "arguments": { "command": "exit 3" } }] },
            { "hang": true },
        ] },
    ])));
    let room = bench.room();
    let mut first = bench.implementer(None);
    {
        let mut work = first.work(&room, "Do the task.");
        let third = async {
            while bench.turns().len() < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! { ended = &mut work => panic!("{ended:?}"), () = third => {} }
    }
    let kept = bench.people.kept().pop().unwrap();
    assert_eq!(kept.used.turns, 2);
    // As it is kept: JSON beside the patch.
    let kept = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
    let mut second = bench.implementer(Some(kept));
    assert_eq!(second.work(&room, "Do the task.").await.unwrap().said, "all done");
    assert_eq!(bench.server.violations(), [""; 0]);
    assert_eq!(second.used().turns, 4, "over both attempts");
    assert_eq!(bench.turns(), [1, 2, 3, 3, 4], "the third is begun anew, the first two are not");
    let (_, prompt) = bench.server.last_messages()[1].clone();
    for known in ["Do the task.", "- a.txt", "`exit 3`: exit code 3", "I begin with a."] {
        assert!(prompt.contains(known), "{prompt}");
    }
    let last = bench.people.kept().pop().unwrap();
    assert!(last.summary.contains("a.txt"), "a third attempt knows of the first: {}", last.summary);
}

#[tokio::test]
async fn a_refusal_and_a_filter_are_told_apart_from_failures() {
    let bench = Bench::new(json!([{ "refusal": "I cannot help with that." }]));
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Refused(why) if why == "I cannot help with that."), "{error:?}");
    assert_eq!(bench.server.requests().len(), 1);
    let bench = Bench::new(json!([{ "say": "half a", "finish": "content_filter" }]));
    assert!(matches!(bench.works().await.unwrap_err(), ImplementError::Refused(why) if why.contains("filter")));
}

#[tokio::test]
async fn an_empty_answer_is_nudged_and_three_are_malformed() {
    let bench = Bench::new(json!([{ "empty": true }, { "expect": "was empty", "say": "done" }]));
    assert_eq!(bench.works().await.unwrap().said, "done");
    let bench = Bench::new(json!([{ "repeat": { "empty": true } }]));
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Malformed(why) if why.contains("3 empty answers")), "{error:?}");
    assert_eq!(bench.turns(), [1, 2, 3]);
}

#[tokio::test]
async fn a_malformed_call_is_answered_with_what_is_wrong() {
    let bench = Bench::new(json!([
        { "malformed_call": "not json", "name": "edit_file" },
        { "expect": "arguments of edit_file are no JSON.*\n.*path \\(string\\), .*old \\(string\\)", "calls": [{ "name": "open_file" }] },
        { "expect": "there is no tool \"open_file\"; there are list_files,", "calls": [{ "name": "read_file", "arguments": { "file": "a" } }] },
        { "expect": "unknown field `file`.*\n.*read_file takes a JSON object with", "malformed_call": "[1]", "name": "odd name!" },
        { "calls": [{ "name": "list_files" }] },
        { "say": "done" },
    ]));
    assert_eq!(bench.works().await.unwrap().said, "done");
    assert_eq!(bench.results().iter().map(|(_, failed)| *failed).collect::<Vec<_>>(), [true, true, true, true, false]);
}

#[tokio::test]
async fn five_unreadable_turns_in_a_row_are_malformed() {
    let bench = Bench::new(json!([{ "repeat": { "malformed_call": "{\"path\": " } }]));
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Malformed(why) if why.contains("5 turns")), "{error:?}");
    assert_eq!(bench.turns(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn an_answer_cut_for_its_length_is_gone_on_with_and_half_a_call_is_not_done() {
    let bench = Bench::new(json!([
        { "say": "Once upon", "finish": "length" },
        { "expect": "cut off", "malformed_call": "{\"path\": \"a\", \"conte", "name": "write_file", "finish": "length" },
        { "expect": "cut off", "calls": [{ "name": "write_file", "arguments": { "path": "b", "content": "b" } }], "finish": "length" },
        { "expect": "cut off; what could be read of it was done", "say": "done" },
    ]));
    assert_eq!(bench.works().await.unwrap().said, "done");
    assert_eq!(bench.read("b"), "b");
    assert!(!bench.tree.path().join("a").exists());
    let bench = Bench::new(json!([{ "repeat": { "say": "la", "finish": "length" } }]));
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Malformed(why) if why.contains("length")), "{error:?}");
}

#[tokio::test]
async fn calls_side_by_side_are_done_in_order_and_each_is_answered() {
    let write =
        |text: &str| json!({ "name": "run_command", "arguments": { "command": format!("echo {text} >> log") } });
    let bench = Bench::new(json!([{ "calls": [write("1"), write("2"), write("3")] }, { "say": "done" }]));
    bench.works().await.unwrap();
    assert_eq!(bench.read("log"), "1\n2\n3\n");
    assert_eq!(bench.results().len(), 3);
}

#[tokio::test]
async fn a_long_conversation_is_shortened_and_goes_on() {
    let read =
        |number: u32| json!({ "calls": [{ "name": "read_file", "arguments": { "path": format!("{number}.txt") } }] });
    let mut turns: Vec<_> = (0..12).map(read).collect();
    turns.push(json!({ "seen": "bytes of this older result left out", "say": "done" }));
    let mut bench = Bench::new(json!(turns));
    for number in 0..12 {
        bench.file(&format!("{number}.txt"), &format!("{number} {}\n", "x".repeat(900)).repeat(20));
    }
    bench.limits.context_tokens = 40_000;
    assert_eq!(bench.works().await.unwrap().said, "done");
    let bytes = |at: usize| bench.server.requests()[at]["body"].to_string().len();
    assert!((1..=12).all(|at| bytes(at) < 200_000), "{:?}", (1..=12).map(bytes).collect::<Vec<_>>());
    assert!(bench.notes().iter().any(|note| note.contains("shortened")), "{:?}", bench.notes());
}

#[tokio::test]
async fn an_endpoint_that_finds_the_conversation_too_long_gets_a_shorter_one() {
    let read =
        |number: u32| json!({ "calls": [{ "name": "read_file", "arguments": { "path": format!("{number}.txt") } }] });
    let too_long = json!({ "error": { "message": "This model's maximum context length is 8 tokens", "code": "context_length_exceeded" } });
    let mut turns: Vec<_> = (0..8).map(read).collect();
    turns.push(json!({ "status": 400, "body": too_long }));
    turns.push(json!({ "seen": "bytes of this older result left out", "say": "done" }));
    let bench = Bench::new(json!(turns));
    for number in 0..8 {
        bench.file(&format!("{number}.txt"), &format!("{number} {}\n", "x".repeat(900)).repeat(20));
    }
    assert_eq!(bench.works().await.unwrap().said, "done");
}

#[tokio::test]
async fn commands_that_cannot_be_run_at_all_end_the_work() {
    let bench = Bench::new(
        json!([{ "calls": [{ "name": "run_command", "arguments": { "command": "true", "folder": "gone" } }] }]),
    );
    assert!(matches!(bench.works().await.unwrap_err(), ImplementError::Shell(_)));
}

#[tokio::test]
async fn ids_that_an_endpoint_leaves_out_or_uses_again_are_made_its_own() {
    let call = |id: &str| json!({ "name": "list_files", "id": id, "arguments": { "depth": id.len() } });
    let bench = Bench::new(json!([
        { "calls": [call("call_0"), call("")] },
        { "calls": [call("call_0")] },
        { "calls": [call("call_0")], "plain": true },
        { "say": "done" },
    ]));
    assert_eq!(bench.works().await.unwrap().said, "done");
    assert_eq!(bench.results().len(), 4);
}

#[tokio::test]
async fn a_dropped_attempt_hangs_up() {
    for hang in [json!({ "hang": true }), json!({ "say": "one two", "cut_after": 2, "hang": true })] {
        let bench = Bench::new(json!([hang]));
        let gone = || bench.server.requests().first().is_some_and(|request| request["client_gone"] == true);
        let (mut implementer, room) = (bench.implementer(None), bench.room());
        {
            let mut work = implementer.work(&room, "Do the task.");
            let asked = async {
                while bench.server.requests().first().is_none_or(|request| request["turn"].is_null()) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! { ended = &mut work => panic!("{ended:?}"), () = asked => {} }
            assert!(!gone());
        }
        let hung_up = async {
            while !gone() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), hung_up).await.expect("the connection is closed");
    }
}

#[tokio::test]
async fn what_a_turn_used_is_kept_however_it_ended() {
    let bench = Bench::new(json!([{ "refusal": "no", "usage": { "prompt_tokens": 11, "completion_tokens": 3 } }]));
    bench.works().await.unwrap_err();
    let used = bench.people.kept().pop().unwrap().used;
    assert_eq!((used.turns, used.input_tokens, used.output_tokens), (1, 11, 3));
}
