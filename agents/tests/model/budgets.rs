//! Caps that are never passed.

use std::time::Duration;

use schemas::Code;
use serde_json::json;
use shoal_agents::model::Prices;
use shoal_agents::{ImplementError, Implementer, Used};

use crate::bench::Bench;

fn step(input: u64, output: u64) -> serde_json::Value {
    let call = json!({ "name": "run_command", "arguments": { "command": "date +%N >> log; cat log" } });
    json!({ "calls": [call], "usage": { "prompt_tokens": input, "completion_tokens": output } })
}

/// Works until the budget ends it; what was used.
async fn ends(bench: &Bench, why: &str) -> Used {
    let mut implementer = bench.implementer(None);
    let error = implementer.work(&bench.room(), "Do the task.").await.unwrap_err();
    assert_eq!(bench.server.violations(), [""; 0]);
    assert!(matches!(&error, ImplementError::Budget(error) if error.code == Code::BudgetExceeded), "{error:?}");
    assert!(error.to_string().contains(why), "{error}");
    implementer.used()
}

#[tokio::test]
async fn turns_are_never_passed_by_one() {
    let mut bench = Bench::new(json!([{ "repeat": step(10, 10) }]));
    bench.allowance.turns = 3;
    assert_eq!(ends(&bench, "all 3 turns are used").await.turns, 3);
    assert_eq!(bench.server.requests().len(), 3);
    assert_eq!(bench.results().len(), 3, "what the last turn asked for is done");
}

#[tokio::test]
async fn the_last_turn_may_finish() {
    let mut bench = Bench::new(json!([step(10, 10), { "say": "done" }]));
    bench.allowance.turns = 2;
    assert_eq!(bench.works().await.unwrap().said, "done");
}

#[tokio::test]
async fn tokens_are_held_before_a_request_and_in_its_answer() {
    let mut bench = Bench::new(json!([{ "repeat": step(4_000, 500) }]));
    bench.allowance.tokens = Some(20_000);
    let used = ends(&bench, "of 20000 tokens are left").await;
    assert_eq!(used.input_tokens + used.output_tokens, 18_000, "a fifth request would have passed it");
    let most = |at: usize| bench.server.requests()[at]["body"]["max_completion_tokens"].as_u64().unwrap();
    for (at, left) in [(0, 20_000), (1, 15_500), (2, 11_000), (3, 6_500)] {
        assert!(most(at) < left, "request {at} may write {}", most(at));
    }
    assert!(most(3) <= 2_500, "4,000 and some will be read of what is left: {}", most(3));
}

#[tokio::test]
async fn money_is_held_and_counted_with_cached_tokens_cheaper() {
    let mut bench = Bench::new(json!([
        { "calls": [{ "name": "list_files" }], "usage": { "prompt_tokens": 100_000, "completion_tokens": 1_000, "prompt_tokens_details": { "cached_tokens": 50_000 } } },
        { "say": "never asked for" },
    ]));
    let decimal = |text: &str| text.parse::<schemas::Decimal>().unwrap();
    bench.settings.prices = Some(Prices { input: decimal("2"), cached_input: decimal("1"), output: decimal("10") });
    bench.allowance.cost_micros = Some(200_000);
    // 0.10 + 0.05 + 0.01; the next would read for 0.20 more.
    assert_eq!(ends(&bench, "0.04 of 0.2 of money is left").await.cost_micros, 160_000);
    assert_eq!(bench.server.requests().len(), 1);
    let told = bench.people.told();
    assert!(
        told.iter().any(|event| matches!(event, schemas::transcript::Event::Used { cost_micros: Some(160_000), .. }))
    );
}

#[tokio::test]
async fn a_budget_of_money_without_a_price_is_refused_before_anything_is_spent() {
    let mut bench = Bench::new(json!([]));
    bench.allowance.cost_micros = Some(1_000_000);
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Rejected(why) if why.contains("no price")), "{error:?}");
    assert!(bench.server.requests().is_empty());
}

#[tokio::test]
async fn time_ends_a_request_that_hangs_and_a_command_that_runs() {
    let mut bench = Bench::new(json!([{ "hang": true }]));
    bench.until(Duration::from_millis(700));
    ends(&bench, "time for implementing, 700ms, is over").await;
    let mut bench =
        Bench::new(json!([{ "calls": [{ "name": "run_command", "arguments": { "command": "sleep 60" } }] }]));
    bench.until(Duration::from_millis(1500));
    ends(&bench, "time for implementing").await;
    assert!(bench.results()[0].0.starts_with("timed out after"), "{:?}", bench.results());
}

#[tokio::test]
async fn time_ends_the_wait_for_people() {
    let ask = json!({ "name": "ask_people", "arguments": { "question": "?" } });
    let mut bench = Bench::new(json!([{ "calls": [ask] }]));
    bench.people.never_answer();
    bench.until(Duration::from_millis(1500));
    ends(&bench, "time for implementing").await;
    assert!(bench.results()[0].0.contains("no time is left"), "{:?}", bench.results());
}

#[tokio::test]
async fn what_earlier_attempts_used_counts() {
    let mut bench = Bench::new(json!([{ "repeat": step(10, 10) }]));
    bench.allowance.turns = 5;
    let used = Used { turns: 4, input_tokens: 7, output_tokens: 7, cost_micros: 7 };
    let progress = shoal_agents::Progress { used, summary: "wrote a".to_owned() };
    let mut implementer = bench.implementer(Some(progress));
    let error = implementer.work(&bench.room(), "Do the task.").await.unwrap_err();
    assert!(matches!(error, ImplementError::Budget(_)));
    assert_eq!(bench.server.requests().len(), 1);
    let expected = Used { turns: 5, input_tokens: 17, output_tokens: 17, cost_micros: 7 };
    assert_eq!(implementer.used(), expected);
    assert_eq!(bench.turns(), [5]);
}

#[tokio::test]
async fn the_job_s_own_bound_on_an_answer_holds() {
    let mut bench = Bench::new(json!([{ "say": "done" }]));
    bench.settings.max_output_tokens = Some(77);
    bench.settings.temperature = Some("0.25".parse().unwrap());
    bench.works().await.unwrap();
    let body = &bench.server.requests()[0]["body"];
    assert_eq!((body["max_completion_tokens"].as_u64(), body["temperature"].as_f64()), (Some(77), Some(0.25)));
}
