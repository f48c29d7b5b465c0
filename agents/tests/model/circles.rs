//! Models that go round in circles.

use serde_json::json;
use shoal_agents::ImplementError;

use crate::bench::Bench;

fn read(name: &str) -> serde_json::Value {
    json!({ "calls": [{ "name": "read_file", "arguments": { "path": name } }] })
}

#[tokio::test]
async fn the_same_call_again_and_again_is_warned_of_once_and_then_stuck() {
    let bench = Bench::new(json!([{ "repeat": read("a") }]));
    bench.file("a", "a");
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Stuck(why) if why.contains("circles")), "{error:?}");
    assert_eq!(bench.turns().len(), 8);
    let warnings =
        bench.server.last_messages().into_iter().filter(|(_, text)| text.contains("round in circles")).count();
    assert_eq!(warnings, 1);
}

#[tokio::test]
async fn two_calls_in_turn_are_a_circle_too() {
    let bench = Bench::new(json!([read("a"), read("b")].iter().cycle().take(40).collect::<Vec<_>>()));
    bench.file("a", "a");
    bench.file("b", "b");
    assert!(matches!(bench.works().await.unwrap_err(), ImplementError::Stuck(_)));
    assert_eq!(bench.turns().len(), 16);
}

#[tokio::test]
async fn a_command_run_again_with_the_same_output_is_a_circle_though_its_time_differs() {
    let run =
        json!({ "calls": [{ "name": "run_command", "arguments": { "command": "sleep 0.0$(( $$ % 9 )); false" } }] });
    let bench = Bench::new(json!([{ "repeat": run }]));
    assert!(matches!(bench.works().await.unwrap_err(), ImplementError::Stuck(_)));
}

#[tokio::test]
async fn who_heeds_the_warning_goes_on() {
    let bench = Bench::new(json!([
        read("a"), read("a"), read("a"), read("a"),
        { "expect": "round in circles", "calls": [{ "name": "write_file", "arguments": { "path": "b", "content": "b" } }] },
        { "say": "done" },
    ]));
    bench.file("a", "a");
    assert_eq!(bench.works().await.unwrap().said, "done");
}
