//! `shoal explain` of agent jobs: how far one is, what it waits for, who could run it.

use schemas::State;
use schemas::transcript::Event;
use serde_json::{Value, json};

use super::{World, mends, succeeded};
use crate::support::repo::RIGHT;
use crate::support::{curl, eventually};

/// What is said of the job once it holds.
async fn explained(world: &World, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || {
        let explained = world.fleet.shoal(&["explain", "t", "-o", "json"]).await.json();
        if holds(&explained) { Ok(explained) } else { Err(explained.to_string()) }
    })
    .await
}

fn reason<'a>(explained: &'a Value, code: &str) -> (&'a str, &'a str) {
    let reasons = explained["reasons"].as_array().expect("reasons");
    let found = reasons.iter().find(|reason| reason["code"] == code).unwrap_or_else(|| panic!("{code}: {explained}"));
    (found["message"].as_str().expect("a message"), found["next"].as_str().expect("a next thing"))
}

#[tokio::test]
async fn a_job_that_waits_for_an_answer_says_its_question_and_the_command_that_answers_it() {
    let question = "Which sign is it to be?\n\ta plus, or\n\ta minus?";
    let world = World::of(json!([
        {"calls": [{"name": "ask_people", "arguments": {"question": question}}]},
        {"expect": "a plus", "calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ]))
    .await;
    let _worker = world.worker("w").await;
    let (_dispatcher, http) = world.fleet.dispatcher(&[]).await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    let asking = explained(&world, "the question", |explained| explained["reasons"][0]["code"] == "asking").await;
    let (message, next) = reason(&asking, "asking");
    assert!(message.ends_with(question), "{message}");
    assert_eq!(next, "answer it: shoal agent answer default.t 'TEXT'");
    let (message, next) = reason(&asking, "running");
    assert!(message.contains("runs on w") && message.contains("in the phase `implement` for"), "{message}");
    assert!(message.contains("in turn 1 of its model"), "{message}");
    assert!(next.contains("shoal agent transcript default.t -f") && next.contains("shoal logs -f default.t"), "{next}");
    let facts = &asking["agent"];
    assert_eq!((&facts["phase"], &facts["turns"]), (&json!("implement"), &json!(1)), "{asking}");
    assert_eq!(facts["questions"][0]["text"], question);
    assert!(facts["since"].is_string() && facts["questions"][0]["id"].is_string(), "{asking}");

    // Each line of it is a line.
    let shown = world.fleet.shoal(&["explain", "t"]).await.ok().stdout;
    assert!(
        shown.contains(": Which sign is it to be?\n        a plus, or\n        a minus?\n  try: answer it"),
        "{shown}"
    );
    assert!(!shown.contains('\u{fffd}'), "{shown}");
    // The same for programs.
    let over_http = curl(&[&format!("{http}/api/tasks/default.t/explain")]).await.status(200).json();
    assert_eq!((&over_http["reasons"][0]["code"], &over_http["agent"]), (&json!("asking"), facts));

    world.fleet.shoal(&["agent", "answer", "default.t", "a plus"]).await.ok();
    succeeded(&world.fleet.ended("default.t").await);
    world.model_is_content();
    let over = explained(&world, "the end", |explained| explained["status"] == "succeeded").await;
    assert!(reason(&over, "finished").1.contains("shoal agent diff default.t"), "{over}");
    assert!(over["agent"].is_null(), "{over}");
}

#[tokio::test]
async fn a_question_that_nobody_answered_in_time_is_open_no_more() {
    let world = World::of(json!([
        {"calls": [{"name": "ask_people", "arguments": {"question": "Which sign?"}}]},
        {"hang": true},
    ]))
    .await;
    let _worker = world.builder("w").env("SHOAL_QUESTION_TIMEOUT", "1s").start().await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    let goes_on = explained(&world, "its second turn", |explained| explained["agent"]["turns"] == 2).await;
    assert_eq!(goes_on["reasons"][0]["code"], "running", "{goes_on}");
    assert_eq!(world.fleet.shoal(&["agent", "questions", "t"]).await.ok().stdout, "");
    let refused = world.fleet.shoal(&["agent", "answer", "t", "a plus"]).await.exit(1);
    assert!(refused.stderr.contains("has asked nothing that is open"), "{refused:?}");
    world.fleet.shoal(&["cancel", "t"]).await;
    world.fleet.ended("default.t").await;
}

#[tokio::test]
async fn a_job_whose_model_hangs_says_that_it_implements_and_since_when() {
    let world = World::of(json!([{"hang": true}])).await;
    let _worker = world.worker("w").await;
    world.fleet.publish("default.t", &world.job(json!({}))).await;
    let hangs = explained(&world, "its first turn", |explained| explained["agent"]["turns"] == 1).await;
    let (message, next) = reason(&hangs, "running");
    assert!(message.contains("in the phase `implement` for ") && message.contains("(since "), "{message}");
    assert!(next.starts_with("watch it: shoal agent transcript default.t -f"), "{next}");
    let told = world.told("t").await;
    let began = told.iter().rfind(|entry| matches!(entry.event, Event::PhaseBegan { .. })).expect("a phase");
    assert_eq!(hangs["agent"]["since"], json!(began.at));
    world.fleet.shoal(&["cancel", "t"]).await;
    assert_eq!(world.fleet.ended("default.t").await.state, State::Cancelled);
}

#[tokio::test]
async fn a_missing_skill_is_said_once_and_with_the_flag_that_helps() {
    let world = World::of(mends()).await;
    let unskilled = world.builder("a").env("SHOAL_LABEL", "skills=go").start().await;
    world.fleet.publish("default.t", &world.job(json!({"skill": "rust"}))).await;
    let waits =
        explained(&world, "no worker", |explained| explained["reasons"][0]["code"] == "no_capable_worker").await;
    let (message, next) = reason(&waits, "no_capable_worker");
    assert!(message.ends_with("with the skill `rust`: a has no skill `rust`"), "{message}");
    assert!(next.contains("--runtimes agent,process --label skills=rust"), "{next}");
    assert_eq!((&waits["workers"]["able"], &waits["workers"]["alive"]), (&json!(0), &json!(1)), "{waits}");
    let shown = world.fleet.shoal(&["explain", "t"]).await.ok().stdout;
    assert!(shown.contains("0 could run it") && !shown.contains("1 could run it"), "{shown}");
    drop(unskilled);
    let _skilled = world.builder("b").env("SHOAL_LABEL", "skills=rust").start().await;
    succeeded(&world.fleet.ended("default.t").await);
}
