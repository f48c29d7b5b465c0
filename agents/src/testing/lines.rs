//! Formats that are read line by line.

use std::sync::LazyLock;

use regex::Regex;

use super::Found;

fn regex(expression: &str) -> Regex {
    Regex::new(expression).expect("a fixed expression")
}

static ESCAPES: LazyLock<Regex> = LazyLock::new(|| regex(r"\x1b\[[0-9;?]*[A-Za-z]"));
static CARGO: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;"));
static CARGO_FAILED: LazyLock<Regex> = LazyLock::new(|| regex(r"^test (.+?)(?: - should panic)? \.\.\. FAILED$"));
static NEXTEST_BEGAN: LazyLock<Regex> = LazyLock::new(|| regex(r"^ *Starting \d+ tests? across "));
static NEXTEST: LazyLock<Regex> = LazyLock::new(|| regex(r"^ *Summary \[.*\] +[\d/]+ tests? run: (.*)$"));
static NEXTEST_FAILED: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^ *(?:FAIL|TIMEOUT|ABORT|SIG\w+|LEAK-FAIL|XFAIL) \[.*?\] (?:\( *\d+/\d+\) )?(.+)$"));
static PYTEST: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^=* ?((?:\d+ (?:failed|passed|skipped|deselected|xfailed|xpassed|warnings?|errors?|rerun|subtests passed|subtests failed)(?:, )?)+) in [\d.]+s(?: \([\d:]+\))?(?: =*)?$",
    )
});
static PYTEST_FAILED: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^(?:FAILED|ERROR) (\S+\.py\S*(?:\[.*?\])?)(?: - .*)?$"));
static COUNTED: LazyLock<Regex> = LazyLock::new(|| regex(r"(\d+) ([a-z]+(?: failed| passed| out)?)"));
static GO_TEST: LazyLock<Regex> = LazyLock::new(|| regex(r"^ *--- (PASS|FAIL|SKIP): (\S+) \("));
static GO_PACKAGE: LazyLock<Regex> = LazyLock::new(|| regex(r"^(ok  |FAIL)\t(\S+)(?:\t| )(.*)$"));
static TAP_BEGAN: LazyLock<Regex> = LazyLock::new(|| regex(r"(?m)^(?:TAP version 1[34]|1\.\.\d+(?: *#.*)?)\r?$"));
static TAP: LazyLock<Regex> = LazyLock::new(|| regex(r"^(not )?ok(?: +\d+)?(?: +-)?(?:$| +(.*)$)"));

pub(super) fn read(text: &str, found: &mut Found) {
    let text = ESCAPES.replace_all(text, "");
    let tap = TAP_BEGAN.is_match(&text);
    let mut reading = Reading::default();
    for line in text.lines() {
        if line.len() > 64 << 10 {
            continue;
        }
        let known = reading.cargo(line, found) || reading.go(line, found) || pytest(line, found);
        if tap && !known {
            test_anything(line, found);
        }
    }
}

/// What earlier lines mean for later ones.
#[derive(Default)]
struct Reading {
    /// Between nextest's beginning and its summary: what tests print there was counted by it.
    in_nextest: bool,
    /// Tests of the Go package whose line comes at its end.
    go_tests: u64,
    go_failed: u64,
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

impl Reading {
    fn cargo(&mut self, line: &str, found: &mut Found) -> bool {
        if NEXTEST_BEGAN.is_match(line) {
            self.in_nextest = true;
        } else if let Some(summary) = NEXTEST.captures(line) {
            self.in_nextest = false;
            // `9 passed (1 slow, 2 flaky), 1 failed, 1 timed out, 3 skipped`
            let outside: String =
                summary[1].split('(').map(|part| part.split_once(')').map_or(part, |(_, rest)| rest)).collect();
            for count in COUNTED.captures_iter(&outside) {
                let many = number(&count[1]);
                match &count[2] {
                    "passed" => found.add(many, 0, 0),
                    "skipped" => found.add(0, 0, many),
                    _ => found.add(0, many, 0),
                }
            }
        } else if let Some(failed) = NEXTEST_FAILED.captures(line) {
            found.name(&failed[1]);
        } else if self.in_nextest {
            return false;
        } else if let Some(result) = CARGO.captures(line) {
            found.add(number(&result[1]), number(&result[2]), number(&result[3]));
        } else if let Some(failed) = CARGO_FAILED.captures(line) {
            found.name(&failed[1]);
        } else {
            return false;
        }
        true
    }

    fn go(&mut self, line: &str, found: &mut Found) -> bool {
        if line.starts_with('{') {
            return self.go_json(line, found);
        }
        if let Some(test) = GO_TEST.captures(line) {
            self.go_tests += 1;
            match &test[1] {
                "PASS" => found.add(1, 0, 0),
                "SKIP" => found.add(0, 0, 1),
                _ => {
                    self.go_failed += 1;
                    found.add(0, 1, 0);
                    found.name(&test[2]);
                }
            }
        } else if let Some(package) = GO_PACKAGE.captures(line) {
            // Without `-v` only failed tests have lines of their own: a package that passed counts as one.
            match &package[1] {
                "FAIL" if self.go_failed == 0 => {
                    found.add(0, 1, 0);
                    found.name(&package[2]);
                }
                "ok  " if self.go_tests == 0 && !package[3].contains("[no tests to run]") => found.add(1, 0, 0),
                _ => {}
            }
            (self.go_tests, self.go_failed) = (0, 0);
        } else {
            return false;
        }
        true
    }

    /// One event of `go test -json`.
    fn go_json(&mut self, line: &str, found: &mut Found) -> bool {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Event<'a> {
            action: &'a str,
            #[serde(borrow)]
            package: std::borrow::Cow<'a, str>,
            #[serde(borrow, default)]
            test: Option<std::borrow::Cow<'a, str>>,
        }
        let Ok(event) = serde_json::from_str::<Event<'_>>(line) else { return false };
        match (event.action, event.test) {
            ("pass", Some(_)) => found.add(1, 0, 0),
            ("skip", Some(_)) => found.add(0, 0, 1),
            ("fail", Some(test)) => {
                self.go_failed += 1;
                found.add(0, 1, 0);
                found.name(&format!("{}.{test}", event.package));
            }
            ("fail", None) if self.go_failed == 0 => {
                found.add(0, 1, 0);
                found.name(&event.package);
            }
            ("pass" | "skip" | "fail", None) => self.go_failed = 0,
            _ => {}
        }
        true
    }
}

fn test_anything(line: &str, found: &mut Found) {
    // Subtests are indented, and their parent counts for them; so are diagnostics.
    if let Some(why) = line.strip_prefix("Bail out!") {
        found.add(0, 1, 0);
        found.name(&format!("Bail out!{why}"));
        return;
    }
    let Some(test) = TAP.captures(line) else { return };
    let said = test.get(2).map_or("", |said| said.as_str());
    let mark = said.match_indices('#').find(|(at, _)| !said[..*at].ends_with('\\')).map_or(said.len(), |(at, _)| at);
    let (name, directive) = (said[..mark].replace("\\#", "#"), said[mark..].trim_start_matches('#'));
    let directive = directive.trim_start().to_lowercase();
    match (test.get(1).is_some(), directive.starts_with("skip"), directive.starts_with("todo")) {
        (_, true, _) | (true, _, true) => found.add(0, 0, 1),
        (false, ..) => found.add(1, 0, 0),
        (true, ..) => {
            found.add(0, 1, 0);
            found.name(&name);
        }
    }
}

fn pytest(line: &str, found: &mut Found) -> bool {
    if let Some(summary) = PYTEST.captures(line) {
        for count in COUNTED.captures_iter(&summary[1]) {
            let many = number(&count[1]);
            match &count[2] {
                "passed" | "xpassed" => found.add(many, 0, 0),
                "failed" | "error" | "errors" => found.add(0, many, 0),
                "skipped" | "xfailed" => found.add(0, 0, many),
                // Warnings, tests that were not chosen, reruns.
                _ => {}
            }
        }
    } else if let Some(failed) = PYTEST_FAILED.captures(line) {
        found.name(&failed[1]);
    } else {
        return false;
    }
    true
}
