//! What was said so far, as the endpoint gets it, kept within bounds.

use serde::Serialize;

use super::answer::Call;

/// One message, as chat completions write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    /// Standing orders.
    System {
        /// The text.
        content: String,
    },
    /// The task, test results, people's words.
    User {
        /// The text.
        content: String,
    },
    /// The model.
    Assistant {
        /// What it said.
        content: Option<String>,
        /// What it called.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<Call>,
    },
    /// What a tool answered.
    Tool {
        /// Which call.
        tool_call_id: String,
        /// The answer.
        content: String,
    },
}

impl Message {
    /// Bytes that count.
    fn bytes(&self) -> usize {
        16 + match self {
            Self::System { content } | Self::User { content } | Self::Tool { content, .. } => content.len(),
            Self::Assistant { content, tool_calls } => {
                let call = |call: &Call| call.function.name.len() + call.function.arguments.len() + 40;
                content.as_ref().map_or(0, String::len) + tool_calls.iter().map(call).sum::<usize>()
            }
        }
    }
}

/// Messages that stay as they are, whatever the bound: the newest.
const FRESH: usize = 8;
/// What is left of an old text.
const LEFT_BYTES: usize = 400;

/// All messages, in order.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    messages: Vec<Message>,
}

impl Conversation {
    /// Begins one.
    pub fn new(system: &str) -> Self {
        Self { messages: vec![Message::System { content: system.to_owned() }] }
    }

    /// Adds one.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Adds people's or the job's words.
    pub fn tell(&mut self, text: impl Into<String>) {
        self.push(Message::User { content: text.into() });
    }

    /// All.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Bytes that count.
    pub fn bytes(&self) -> usize {
        self.messages.iter().map(Message::bytes).sum()
    }

    /// Shortens old tool results, then old arguments of calls, oldest first, until at most `most` bytes are left or
    /// nothing old is; each cut is told in its place. What the model was told as a task, and the newest messages, stay.
    pub fn shorten(&mut self, most: usize) -> bool {
        let old = self.messages.len().saturating_sub(FRESH);
        let mut bytes = self.bytes();
        let before = bytes;
        for message in &mut self.messages[..old] {
            if bytes <= most {
                break;
            }
            if let Message::Tool { content, .. } = message {
                bytes -= cut(content);
            }
        }
        for message in &mut self.messages[..old] {
            if bytes <= most {
                break;
            }
            if let Message::Assistant { tool_calls, .. } = message {
                bytes -= tool_calls.iter_mut().map(cut_arguments).sum::<usize>();
            }
        }
        bytes < before
    }
}

/// Shortens a text; how many bytes that saved.
fn cut(text: &mut String) -> usize {
    let before = text.len();
    if before > 2 * LEFT_BYTES {
        let head = crate::tools::output::beginning(text, LEFT_BYTES);
        let left_out = before - head.len();
        *text = format!("{head}\n[… {left_out} bytes of this older result left out; ask again if you need them …]");
    }
    before.saturating_sub(text.len())
}

/// Shortens long texts in a call's arguments, which stay the same JSON object otherwise.
fn cut_arguments(call: &mut Call) -> usize {
    let before = call.function.arguments.len();
    if before <= 2 * LEFT_BYTES {
        return 0;
    }
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_str(&call.function.arguments) else { return 0 };
    for value in fields.values_mut() {
        if let serde_json::Value::String(text) = value {
            cut(text);
        }
    }
    call.function.arguments = serde_json::Value::Object(fields).to_string();
    before.saturating_sub(call.function.arguments.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_conversation_loses_old_results_first_and_says_so() {
        let mut conversation = Conversation::new("system");
        conversation.tell("the task ".repeat(500));
        for number in 0..20 {
            let arguments = serde_json::json!({ "path": "a", "content": "y".repeat(3_000) }).to_string();
            let call = Call::new(format!("call_{number}"), "write_file".to_owned(), arguments);
            conversation.push(Message::Assistant { content: None, tool_calls: vec![call] });
            conversation.push(Message::Tool { tool_call_id: format!("call_{number}"), content: "x".repeat(5_000) });
        }
        let (before, newest) = (conversation.messages().to_vec(), conversation.messages()[42 - FRESH..].to_vec());
        assert!(!conversation.shorten(usize::MAX));
        assert_eq!(conversation.messages(), before);
        assert!(conversation.shorten(100_000));
        assert!(conversation.bytes() <= 100_000 + 5_000);
        assert!(conversation.shorten(1));
        assert_eq!(conversation.messages()[..2], before[..2], "the task stays whole");
        assert_eq!(conversation.messages()[42 - FRESH..], newest);
        for message in &conversation.messages()[2..42 - FRESH] {
            match message {
                Message::Tool { content, .. } => assert!(content.contains("4600 bytes of this older result left out")),
                Message::Assistant { tool_calls, .. } => {
                    let arguments: serde_json::Value = serde_json::from_str(&tool_calls[0].function.arguments).unwrap();
                    assert_eq!(arguments["path"], "a");
                    assert!(arguments["content"].as_str().unwrap().len() < 600);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
