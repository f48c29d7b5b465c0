//! JUnit XML, as most test runners write it. No entity is expanded but the five of XML itself, and nothing is loaded.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::Found;

/// So often reading begins again behind something that is no XML.
const RESTARTS: usize = 100;

/// Adds the test cases of all documents that stand in an output, each from its own line on.
pub(super) fn read_output(text: &str, found: &mut Found) {
    let mut at = 0;
    for _ in 0..RESTARTS {
        let lines = text[at..].split_inclusive('\n');
        let before: usize = lines.take_while(|line| !opens(line)).map(str::len).sum();
        let from = at + before;
        if from >= text.len() {
            return;
        }
        let read = read(&text.as_bytes()[from..], found);
        // On with the next line behind it.
        let to = (from + read.max(1)).min(text.len());
        let Some(end) = text.as_bytes()[to..].iter().position(|byte| *byte == b'\n') else { return };
        at = to + end + 1;
    }
}

fn opens(line: &str) -> bool {
    let line = line.trim_start();
    let line =
        line.split_once("?>").filter(|(head, _)| head.starts_with("<?xml")).map_or(line, |(_, rest)| rest.trim_start());
    ["<testsuites", "<testsuite"]
        .iter()
        .any(|tag| line.strip_prefix(tag).is_some_and(|rest| rest.starts_with([' ', '>', '\t', '\r', '\n'])))
}

/// Adds the test cases of a document, as far as it is XML. How far that was.
pub(super) fn read(bytes: &[u8], found: &mut Found) -> usize {
    let mut reader = Reader::from_reader(bytes);
    reader.config_mut().check_end_names = false;
    let mut case: Option<Case> = None;
    let mut is_junit = false;
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        // A document that is cut or broken counts as far as it can be read.
        let Ok(event) = reader.read_event_into(&mut buffer) else { break };
        let (tag, empty) = match &event {
            Event::Start(tag) => (tag, false),
            Event::Empty(tag) => (tag, true),
            Event::End(tag) if tag.local_name().as_ref() == b"testcase" => {
                case.take().into_iter().for_each(|case| case.count(found));
                continue;
            }
            Event::Eof => break,
            _ => continue,
        };
        match tag.local_name().as_ref() {
            b"testsuites" | b"testsuite" if !is_junit => {
                is_junit = true;
                found.add(0, 0, 0);
            }
            _ if !is_junit => return 0,
            b"testcase" => {
                case.replace(Case::new(tag)).into_iter().for_each(|case| case.count(found));
                if empty {
                    case.take().into_iter().for_each(|case| case.count(found));
                }
            }
            b"failure" | b"error" => {
                if let Some(case) = &mut case {
                    case.failed = true;
                }
            }
            b"skipped" => {
                if let Some(case) = &mut case {
                    case.skipped = true;
                }
            }
            _ => {}
        }
    }
    // A case that is cut off is one only if it says already how it ended.
    case.filter(|case| case.failed || case.skipped).into_iter().for_each(|case| case.count(found));
    usize::try_from(reader.buffer_position()).unwrap_or(bytes.len())
}

struct Case {
    name: String,
    failed: bool,
    skipped: bool,
}

impl Case {
    fn new(tag: &BytesStart<'_>) -> Self {
        let attribute = |name: &str| {
            let found = tag.try_get_attribute(name).ok().flatten()?;
            let text = String::from_utf8_lossy(&found.value).into_owned();
            Some(quick_xml::escape::unescape(&text).map(|text| text.into_owned()).unwrap_or(text))
        };
        let name = attribute("name").unwrap_or_default();
        let name = match attribute("classname").filter(|class| !class.is_empty()) {
            Some(class) => format!("{class}::{name}"),
            None => name,
        };
        Self { name, failed: false, skipped: false }
    }

    fn count(self, found: &mut Found) {
        match (self.failed, self.skipped) {
            (true, _) => {
                found.add(0, 1, 0);
                found.name(&self.name);
            }
            (false, true) => found.add(0, 0, 1),
            (false, false) => found.add(1, 0, 0),
        }
    }
}
