//! What endpoints do to those who ask.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use shoal_agents::ImplementError;
use shoal_agents::model::{Client, Settings};
use shoal_agents::secret::Secret;

use crate::bench::Bench;

/// A fault, then a good answer: it is tried again, told, and paid once.
async fn passes(fault: serde_json::Value, why: &str) -> Bench {
    let mut bench =
        Bench::new(json!([fault, { "say": "done", "usage": { "prompt_tokens": 10, "completion_tokens": 2 } }]));
    bench.settings.timeout = Duration::from_secs(2);
    bench.settings.silence = Duration::from_millis(500);
    assert_eq!(bench.works().await.expect("it passes").said, "done");
    let retries = bench.retries();
    assert!(retries.len() == 1 && retries[0].contains(why), "{retries:?}");
    assert_eq!(bench.turns(), [1]);
    assert_eq!(bench.server.requests().len(), 2);
    bench
}

#[tokio::test]
async fn too_many_requests_are_waited_out_as_the_endpoint_asks() {
    let bench =
        passes(json!({ "status": 429, "headers": { "Retry-After": "1" } }), "429 Too Many Requests: scripted 429")
            .await;
    let at = |number: usize| bench.server.requests()[number]["at"].as_f64().unwrap();
    assert!(at(1) - at(0) >= 1.0, "it asked to wait a second");
    passes(json!({ "status": 429, "headers": { "Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT" } }), "429").await;
}

#[tokio::test]
async fn a_wait_beyond_the_time_is_not_begun() {
    let mut bench = Bench::new(json!([{ "repeat": { "status": 429, "headers": { "Retry-After": "3600" } } }]));
    bench.until(Duration::from_secs(60));
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Unavailable(why) if why.contains("429")), "{error:?}");
    assert_eq!(bench.server.requests().len(), 1);
    assert!(bench.notes().iter().any(|note| note.contains("the model gave no answer")), "{:?}", bench.notes());
}

#[tokio::test]
async fn errors_of_the_server_pass() {
    for status in [500, 502, 503, 529, 408] {
        passes(json!({ "status": status, "body": "<html>upstream</html>" }), &status.to_string()).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_is_asked_for_again_and_what_it_wrote_is_counted() {
    let bench = passes(json!({ "say": "one two three four five", "cut_after": 4 }), "broke off").await;
    let used: Vec<_> = bench
        .people
        .told()
        .into_iter()
        .filter(|event| matches!(event, schemas::transcript::Event::Used { .. }))
        .collect();
    assert_eq!(used.len(), 2, "{used:?}");
    passes(json!({ "say": "one two", "cut_after": 0 }), "broke off").await;
}

#[tokio::test]
async fn silence_in_the_middle_of_an_answer_and_before_it_is_not_waited_out() {
    passes(json!({ "say": "one two three", "cut_after": 2, "hang": true }), "stopped for 500ms in its middle").await;
    passes(json!({ "hang": true }), "no answer within 2s").await;
}

#[tokio::test]
async fn an_answer_that_never_ends_is_bounded_as_a_whole() {
    let drip = json!({ "say": "a ".repeat(200), "chunk_delay_ms": 100 });
    passes(drip, "no answer within 2s").await;
}

#[tokio::test]
async fn garbage_is_no_answer() {
    passes(json!({ "garbage": "<html>hello</html>" }), "the stream ended").await;
    passes(json!({ "garbage": "data: {\"choices\": [\n\n" }), "cannot be read").await;
    passes(json!({ "garbage": "data: {\"error\": {\"message\": \"overloaded\"}}\n\n" }), "overloaded").await;
    passes(json!({ "garbage": "" }), "the stream ended").await;
}

#[tokio::test]
async fn an_answer_as_a_whole_in_place_of_a_stream_is_taken() {
    let call = json!({ "plain": true, "say": "look", "calls": [{ "name": "list_files" }] });
    let bench = Bench::new(json!([call, { "plain": true, "say": "done" }]));
    assert_eq!(bench.works().await.unwrap().said, "done");
    assert_eq!(bench.results().len(), 1);
}

#[tokio::test]
async fn what_fails_three_times_is_unavailable() {
    let bench = Bench::new(json!([{ "repeat": { "status": 503 } }]));
    let error = bench.works().await.unwrap_err();
    assert!(
        matches!(&error, ImplementError::Unavailable(why) if why.contains("3 tries") && why.contains("503")),
        "{error:?}"
    );
    assert_eq!((bench.server.requests().len(), bench.retries().len()), (3, 2));
    assert_eq!(error.to_task_error().code, schemas::Code::ModelUnavailable);
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let mut bench = Bench::new(json!([]));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    bench.settings.endpoint = format!("http://{}/v1", free.local_addr().unwrap());
    drop(free);
    let error = bench.work().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Unavailable(why) if why.contains("refused")), "{error:?}");
    assert_eq!(bench.retries().len(), 2);
}

#[tokio::test]
async fn what_the_endpoint_calls_wrong_is_not_tried_again_and_told_in_its_words() {
    let quota = json!({ "error": { "message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota" } });
    for (status, body, words) in [
        (400, json!({ "error": { "message": "bad parameter" } }), "bad parameter"),
        (402, json!({ "error": "pay first" }), "pay first"),
        (403, json!({ "message": "not in your country" }), "not in your country"),
        (429, quota, "exceeded your current quota"),
        (307, json!("elsewhere"), "307"),
    ] {
        let bench = Bench::new(json!([{ "status": status, "body": body }]));
        let error = bench.works().await.unwrap_err();
        assert!(matches!(&error, ImplementError::Rejected(why) if why.contains(words)), "{status}: {error:?}");
        assert_eq!(bench.server.requests().len(), 1, "{status}");
        assert_eq!(bench.notes().len(), 1, "told");
    }
}

#[tokio::test]
async fn a_wrong_key_and_an_unknown_model_are_rejected() {
    let mut bench = Bench::new(json!([]));
    bench.settings.key = Some(Arc::new(Secret::new("sk-another".to_owned())));
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Rejected(why) if why.contains("Incorrect API key")), "{error:?}");
    let mut bench = Bench::new(json!([]));
    bench.settings.model = "gpt-none".to_owned();
    let error = bench.works().await.unwrap_err();
    assert!(matches!(&error, ImplementError::Rejected(why) if why.contains("`gpt-none` does not exist")), "{error:?}");
}

#[tokio::test]
async fn an_endpoint_s_words_are_bounded() {
    let bench = Bench::new(json!([{ "status": 400, "body": { "error": { "message": "x".repeat(100_000) } } }]));
    assert!(bench.works().await.unwrap_err().to_string().len() < 1_000);
}

#[tokio::test]
async fn without_usage_tokens_are_estimated_and_that_is_told() {
    let bench = Bench::new(json!([{ "say": "done with it", "usage": false }]));
    let mut implementer = bench.implementer(None);
    use shoal_agents::Implementer;
    implementer.work(&bench.room(), "Do the task.").await.unwrap();
    assert_eq!(implementer.used().output_tokens, 3);
    assert!(implementer.used().input_tokens > 500);
    assert!(bench.notes().iter().any(|note| note.contains("estimate")), "{:?}", bench.notes());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings =
        |endpoint: &str, key: &str| Settings::new(endpoint, Some(Arc::new(Secret::new(key.to_owned()))), "m");
    let refused = |endpoint: &str, key: &str| Client::new(settings(endpoint, key)).unwrap_err().to_string();
    for endpoint in ["", "api.openai.com/v1", "ftp://x/v1", "https://user:pass@x/v1", "https://x/v1?y=1"] {
        let error = refused(endpoint, "sk-0123456789");
        assert!(error.contains("no base URL") && !error.contains("pass@"), "{error}");
    }
    for key in ["", "\n", "two words here", "zwei\nzeilen", "schlüssel-123"] {
        let error = refused("http://x/v1", key);
        assert!(error.contains("key cannot be sent") && (key.trim().is_empty() || !error.contains(key)), "{error}");
    }
    assert!(refused("http://x/v1", "k").contains("shorter"));
    let client = Client::new(settings("http://x/v1", "sk-0123456789\n")).unwrap();
    assert!(!format!("{client:?}").contains("sk-0123456789"));
}

#[tokio::test]
async fn a_key_that_an_endpoint_says_back_is_masked() {
    let words = json!({ "error": { "message": format!("wrong key: {}", crate::support::scripted::KEY) } });
    let bench = Bench::new(json!([{ "status": 400, "body": words }]));
    let error = bench.works().await.unwrap_err().to_string();
    assert!(error.contains("wrong key: ") && !error.contains(crate::support::scripted::KEY), "{error}");
    assert!(!format!("{:?}", bench.people.told()).contains(crate::support::scripted::KEY));
}

/// What every test here leans on.
#[test]
fn the_scripted_model_is_strict() {
    let server = crate::support::scripted::Scripted::turns(json!([{ "repeat": { "say": "x" } }]));
    let user = json!({ "role": "user", "content": "hi" });
    let call = json!({ "id": "a", "type": "function", "function": { "name": "x", "arguments": "{}" } });
    let calls = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
    let answer = |id: &str| json!({ "role": "tool", "tool_call_id": id, "content": "" });
    let mut object = call.clone();
    object["function"]["arguments"] = json!({});
    let tool = |parameters: serde_json::Value| json!([{ "type": "function", "function": { "name": "x", "parameters": parameters } }]);
    let good = json!({ "messages": [user, calls, answer("a")], "tools": tool(json!({ "type": "object" })) });
    assert_eq!(server.post(&good), 200);
    assert_eq!(server.violations(), [""; 0]);
    let mut broken = call.clone();
    broken["function"]["arguments"] = json!("{");
    let bad = [
        json!({ "messages": [user, { "role": "assistant", "content": null, "tool_calls": [broken] }, answer("a")] }),
        json!({ "messages": [] }),
        json!({ "messages": [user, calls] }),
        json!({ "messages": [user, calls, user] }),
        json!({ "messages": [user, calls, answer("b")] }),
        json!({ "messages": [user, calls, answer("a"), answer("a")] }),
        json!({ "messages": [user, calls, answer("a"), calls, answer("a")] }),
        json!({ "messages": [user, { "role": "assistant", "content": null, "tool_calls": [object] }, answer("a")] }),
        json!({ "messages": [user, { "role": "assistant", "content": "" }, user] }),
        json!({ "messages": [user, { "role": "assistant", "content": "last" }] }),
        json!({ "messages": [{ "role": "robot", "content": "hi" }] }),
        json!({ "messages": [user, { "role": "system", "content": "late" }] }),
        json!({ "messages": [user], "max_toks": 5 }),
        json!({ "messages": [user], "temperature": 3 }),
        json!({ "messages": [user], "max_completion_tokens": 0 }),
        json!({ "messages": [user], "stream_options": {} }),
        json!({ "messages": [user], "tools": tool(json!({ "type": "object", "properties": { "a": { "type": "text" } } })) }),
        json!({ "messages": [user], "tools": tool(json!({ "type": "object", "required": ["a"] })) }),
        json!({ "messages": [user], "tools": tool(json!({ "type": "object", "$ref": "#/a" })) }),
    ];
    for (number, bad) in bad.iter().enumerate() {
        assert_eq!(server.post(bad), 400, "{bad}");
        assert_eq!(server.violations().len(), number + 1);
    }
}
