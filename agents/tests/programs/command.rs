//! Any agent program, by a command template.

use std::time::Duration;

use shoal_agents::implementer::command::{CommandAgent, Template};
use shoal_agents::{ImplementError, Implementer, Used};

use crate::{Place, runs, until};

fn agent(words: &[&str], timeout: Option<Duration>) -> CommandAgent {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    CommandAgent::new(Template::parse(&words).unwrap(), timeout, Used::default())
}

#[tokio::test]
async fn a_program_gets_its_prompt_works_in_the_workspace_and_is_done_with_exit_code_0() {
    let place = Place::new();
    let script = r#"cp "$1" "$2/from-file"; printf %s "$3" > from-argument; echo working; echo done {{}}"#;
    let mut agent = agent(&["sh", "-c", script, "sh", "{prompt_file}", "{workspace}", "{prompt}"], None);
    let told = "Fix 'it' {workspace} with $HOME and hunter2-hunter2";
    let finish = place.work(&mut agent, told).await.unwrap();
    assert_eq!(finish.said, "working\ndone {}");
    let masked = "Fix 'it' {workspace} with $HOME and ***";
    assert_eq!(std::fs::read_to_string(place.path().join("from-file")).unwrap(), masked);
    assert_eq!(std::fs::read_to_string(place.path().join("from-argument")).unwrap(), masked);
    assert_eq!(place.texts(), ["working\ndone {}"]);
    assert_eq!((agent.used().turns, place.people.kept().len()), (1, 1));

    place.work(&mut agent, "again").await.unwrap();
    assert_eq!(std::fs::read_to_string(place.path().join("from-file")).unwrap(), "again", "a round has its own prompt");
}

#[tokio::test]
async fn a_program_that_fails_is_told_with_the_end_of_its_words_masked() {
    let place = Place::new();
    let script = "seq 1 10000; echo the key hunter2-hunter2 is wrong >&2; exit 7";
    let error = place.work(&mut agent(&["sh", "-c", script], None), "x").await.unwrap_err();
    let ImplementError::Failed(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with("the agent program ended with exit code 7: "), "{text}");
    assert!(text.ends_with("10000\nthe key *** is wrong") && text.len() < 5_000, "{text}");
}

#[tokio::test]
async fn a_silent_hang_ends_with_the_timeout_and_takes_all_its_children() {
    let place = Place::new();
    let mut agent = agent(&["sh", "-c", "sleep 600 & echo $! > child; wait"], Some(Duration::from_secs(2)));
    let error = place.work(&mut agent, "x").await.unwrap_err();
    assert!(matches!(&error, ImplementError::Failed(text) if text.contains("timed out")), "{error:?}");
    let child = std::fs::read_to_string(place.path().join("child")).unwrap().trim().parse().unwrap();
    until(|| !runs(child)).await;
}

#[tokio::test]
async fn the_budget_of_time_ends_it_too_and_no_round_begins_without_a_turn() {
    let place = Place::new().until(Duration::from_millis(300));
    let error = place.work(&mut agent(&["sleep", "600"], None), "x").await.unwrap_err();
    assert!(matches!(error, ImplementError::Budget(_)), "{error:?}");

    let mut place = Place::new();
    place.allowance.turns = 1;
    let mut agent = agent(&["touch", "{workspace}/ran"], None);
    place.work(&mut agent, "x").await.unwrap();
    std::fs::remove_file(place.path().join("ran")).unwrap();
    assert!(matches!(place.work(&mut agent, "x").await, Err(ImplementError::Budget(_))));
    assert!(!place.path().join("ran").exists(), "nothing was run");
}

#[tokio::test]
async fn a_program_that_is_not_there_and_a_prompt_that_is_no_argument_are_told() {
    let place = Place::new();
    let error = place.work(&mut agent(&["/no/such/agent"], None), "x").await.unwrap_err();
    assert!(matches!(&error, ImplementError::Shell(_)) && error.to_string().contains("/no/such/agent"), "{error:?}");
    let long = "x".repeat(200 << 10);
    let error = place.work(&mut agent(&["echo", "{prompt}"], None), &long).await.unwrap_err();
    assert!(error.to_string().contains("{prompt_file}"), "{error}");
    place.work(&mut agent(&["test", "-s", "{prompt_file}"], None), &long).await.unwrap();
}

#[tokio::test]
async fn a_link_in_the_place_of_the_prompts_file_is_not_followed() {
    use shoal_agents::Shell;
    let place = Place::new();
    let victim = place.path().join("victim");
    std::fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, place.shell.aside().join("prompt-1.md")).unwrap();
    place.work(&mut agent(&["true"], None), "yours").await.unwrap();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
}
