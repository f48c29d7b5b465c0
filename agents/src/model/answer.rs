//! Puts an answer together from what an endpoint streams.
//!
//! Read leniently, with types of our own: endpoints leave out `index`, `id`, `finish_reason` or `usage`, send `null` for
//! lists, objects for argument texts and words of their own for finish reasons, and the crate's types refuse all that.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an endpoint may send in one answer's text and in one call's arguments; more is a broken endpoint.
const MOST_BYTES: usize = 4 << 20;
/// Calls in one answer.
const MOST_CALLS: usize = 128;
/// A number of tokens that nobody sends.
const MOST_TOKENS: u64 = 1 << 40;

/// A call of a tool, as chat completions write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Ties the tool's answer to it.
    pub id: String,
    r#type: &'static str,
    /// What is called.
    pub function: Function,
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    /// The tool.
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

impl Call {
    /// A call of a function.
    pub fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, r#type: "function", function: Function { name, arguments } }
    }
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Read, cached ones included.
    pub input_tokens: u64,
    /// Of these, what the endpoint had cached.
    pub cached_tokens: u64,
    /// Written, reasoning included.
    pub output_tokens: u64,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Stop,
    /// No more tokens were allowed.
    Length,
    /// A filter of the endpoint.
    Filtered,
}

/// One whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was said.
    pub text: String,
    /// What was called, in order.
    pub calls: Vec<Call>,
    /// What the model said in declining.
    pub refusal: String,
    /// Why it ended.
    pub end: End,
    /// As the endpoint counted.
    pub usage: Option<Usage>,
}

/// What an endpoint streams.
#[derive(Debug, Deserialize)]
pub struct Chunk {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<UsageSent>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default, alias = "message")]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: Option<usize>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<FunctionDelta>,
}

#[derive(Debug, Deserialize)]
struct FunctionDelta {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct UsageSent {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// An answer under way.
#[derive(Debug, Default)]
pub struct Pieces {
    text: String,
    refusal: String,
    /// Index as sent, id, name, arguments.
    calls: Vec<(Option<usize>, String, String, String)>,
    finish: Option<String>,
    usage: Option<Usage>,
}

/// Why pieces make no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The endpoint told an error in its stream.
    #[error("the endpoint broke off: {0}")]
    Told(String),
    /// It never ends.
    #[error("the answer is too long to be one")]
    TooLong,
    /// The stream ended without an end of the answer.
    #[error("the stream ended in the middle of the answer")]
    Unfinished,
}

impl Pieces {
    /// Adds what came.
    pub fn add(&mut self, chunk: Chunk) -> Result<(), Broken> {
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let text = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            return Err(Broken::Told(text));
        }
        if let Some(sent) = chunk.usage {
            let input_tokens = sent.prompt_tokens.unwrap_or(0).min(MOST_TOKENS);
            let cached = sent.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
            let output_tokens = sent.completion_tokens.unwrap_or(0).min(MOST_TOKENS);
            // Some send zeros with every piece and the truth with the last.
            if input_tokens + output_tokens > 0 {
                self.usage = Some(Usage { input_tokens, cached_tokens: cached.min(input_tokens), output_tokens });
            }
        }
        for choice in chunk.choices.unwrap_or_default() {
            if choice.index.unwrap_or(0) != 0 {
                continue;
            }
            if let Some(delta) = choice.delta {
                self.text.push_str(delta.content.as_deref().unwrap_or_default());
                self.refusal.push_str(delta.refusal.as_deref().unwrap_or_default());
                for call in delta.tool_calls.unwrap_or_default() {
                    self.call(call);
                }
            }
            self.finish = choice.finish_reason.or(self.finish.take());
        }
        let too_long = self.written() > MOST_BYTES || self.calls.len() > MOST_CALLS;
        if too_long { Err(Broken::TooLong) } else { Ok(()) }
    }

    fn call(&mut self, delta: CallDelta) {
        let id = delta.id.unwrap_or_default();
        let function = delta.function.unwrap_or(FunctionDelta { name: None, arguments: None });
        let name = function.name.unwrap_or_default();
        let known = match delta.index {
            // Some give every call the index 0, but an id of its own.
            Some(index) => self.calls.iter().rposition(|(sent, known, ..)| {
                *sent == Some(index) && (id.is_empty() || known.is_empty() || *known == id)
            }),
            None if id.is_empty() && name.is_empty() => self.calls.len().checked_sub(1),
            None => self.calls.iter().rposition(|(_, known, ..)| !id.is_empty() && *known == id),
        };
        let at = known.unwrap_or_else(|| {
            self.calls.push((delta.index, String::new(), String::new(), String::new()));
            self.calls.len() - 1
        });
        let call = &mut self.calls[at];
        if call.1.is_empty() {
            call.1 = id;
        }
        // Sent once, or again and again as a whole, or in pieces.
        if call.2 != name {
            call.2.push_str(&name);
        }
        match function.arguments {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => call.3.push_str(&text),
            Some(other) => call.3.push_str(&other.to_string()),
        }
    }

    /// Bytes that the model wrote so far.
    pub fn written(&self) -> usize {
        let calls = self.calls.iter().map(|(_, _, name, arguments)| name.len() + arguments.len()).sum::<usize>();
        self.text.len() + self.refusal.len() + calls
    }

    /// The answer itself is there; at most its usage is to come.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// The stream ended.
    pub fn ended(self) -> Result<Answer, Broken> {
        let end = match self.finish.as_deref() {
            None => return Err(Broken::Unfinished),
            Some("length" | "max_tokens") => End::Length,
            Some("content_filter") => End::Filtered,
            Some("error") => return Err(Broken::Told("finish reason `error`".to_owned())),
            Some(_) => End::Stop,
        };
        let calls = self.calls.into_iter().map(|(_, id, name, arguments)| Call::new(id, name, arguments)).collect();
        Ok(Answer { text: self.text, calls, refusal: self.refusal, end, usage: self.usage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(chunks: &[&str]) -> Result<Answer, Broken> {
        let mut pieces = Pieces::default();
        for chunk in chunks {
            pieces.add(serde_json::from_str(chunk).unwrap())?;
        }
        pieces.ended()
    }

    fn calls(chunks: &[&str]) -> Vec<(String, String, String)> {
        let end = r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#;
        let all = answer(&[chunks, &[end]].concat()).unwrap();
        all.calls.into_iter().map(|call| (call.id, call.function.name, call.function.arguments)).collect()
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.to_owned(), name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_put_together_however_endpoints_cut_them() {
        let two = [call("a", "x", r#"{"p":1}"#), call("b", "y", "{}")];
        // As OpenAI does, interleaved.
        let openai = calls(&[
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"x","arguments":""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"b","type":"function","function":{"name":"y","arguments":""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"p\":"}},{"index":1,"function":{"arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}"#,
        ]);
        assert_eq!(openai, two);
        // Whole calls, without an index; or all with the index 0; arguments as an object.
        for index in ["", r#""index":0,"#] {
            let chunk = |id: &str, name: &str, arguments: &str| {
                format!(
                    r#"{{"choices":[{{"delta":{{"tool_calls":[{{{index}"id":"{id}","function":{{"name":"{name}","arguments":{arguments}}}}}]}}}}]}}"#
                )
            };
            assert_eq!(calls(&[&chunk("a", "x", r#"{"p":1}"#), &chunk("b", "y", r#""{}""#)]), two, "{index:?}");
        }
        // Without an index or an id, in pieces.
        let pieces = calls(&[
            r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"x","arguments":"{\"p\""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":":1}"}}]}}]}"#,
        ]);
        assert_eq!(pieces, [call("", "x", r#"{"p":1}"#)]);
    }

    #[test]
    fn what_is_unknown_is_ignored_and_what_is_missing_is_nothing() {
        let all = answer(&[
            r#"{"id":1,"choices":[{"delta":{"role":"assistant","reasoning_content":"hm","content":"Hel","tool_calls":null},"logprobs":{}}],"usage":null}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"another choice"}}]}"#,
            r#"{"choices":[{"delta":{"content":"lo"},"finish_reason":"eos_token"}],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":12},"completion_tokens_details":{"reasoning_tokens":1}}}"#,
            r#"{"choices":null,"usage":null}"#,
        ])
        .unwrap();
        let usage = Usage { input_tokens: 9, cached_tokens: 9, output_tokens: 2 };
        assert_eq!((all.text.as_str(), all.end, all.usage), ("Hello", End::Stop, Some(usage)));
    }

    #[test]
    fn an_error_in_the_stream_and_a_stream_without_an_end_are_told_apart() {
        let told = answer(&[r#"{"error":{"message":"overloaded","code":529}}"#]);
        assert_eq!(told, Err(Broken::Told("overloaded".to_owned())));
        assert_eq!(answer(&[r#"{"choices":[{"delta":{"content":"Hel"}}]}"#]), Err(Broken::Unfinished));
        assert_eq!(answer(&[]), Err(Broken::Unfinished));
        let huge = format!(r#"{{"choices":[{{"delta":{{"content":"{}"}}}}]}}"#, "x".repeat(MOST_BYTES));
        assert_eq!(answer(&[&huge, &huge]), Err(Broken::TooLong));
    }
}
