//! How a repository says what its tests are: from its files as they are at the base, so that a change cannot lower its own
//! gate.
//!
//! The rule, file by file in the order of [`FILES`]; the first file that names a command decides:
//!
//! * `.shoal/agent.yaml`: the text of `test`.
//! * a Markdown file: the first fenced block marked `sh`, `bash`, `zsh`, `shell` or `console` that stands under a heading
//!   with the word *test*, *tests* or *testing* in it. "Under" ends with the next heading of the same or a higher level.
//!   Where lines of the block begin with `$ `, they alone are the command, without the `$ `. Several lines end with the
//!   first that fails.
//!
//! Where none does, no tests are run, and the record has none.

use schemas::strict::InvalidTask;

use super::{InvalidPlaybook, yaml};

/// The files that are looked at, in this order.
pub const FILES: [&str; 5] = [".shoal/agent.yaml", "AGENTS.md", "CLAUDE.md", "CONTRIBUTING.md", "README.md"];
/// As much of a file is looked at.
const FILE_BYTES: usize = 256 << 10;

/// The command that the file `name` with these bytes names, if it names one.
///
/// # Errors
///
/// `.shoal/agent.yaml` is not what it should be. Markdown never fails.
pub fn test_command(name: &str, bytes: &[u8]) -> Result<Option<String>, InvalidPlaybook> {
    if name != FILES[0] {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(FILE_BYTES)]);
        return Ok(from_markdown(&text));
    }
    let wrong = |field: &str, problem: String| Err(InvalidTask { field: field.to_owned(), problem }.into());
    let value = yaml(bytes)?;
    let serde_json::Value::Object(fields) = value else {
        return wrong("", "expected a mapping, such as `test: make test`".to_owned());
    };
    if let Some(unknown) = fields.keys().find(|field| *field != "test") {
        return Err(InvalidTask::unknown("", unknown, &["test"]).into());
    }
    match fields.get("test") {
        None => Ok(None),
        Some(serde_json::Value::String(line)) if !line.trim().is_empty() && !line.contains('\0') => {
            Ok(Some(line.clone()))
        }
        Some(other) => wrong("test", format!("`{other}` is not allowed; allowed is a line for `sh -c`")),
    }
}

fn from_markdown(text: &str) -> Option<String> {
    // Level of the heading about tests that we are under.
    let mut under: Option<usize> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some((fence, mark)) = fence(line) {
            let block: Vec<&str> = lines.by_ref().take_while(|line| !closes(line, fence)).collect();
            if under.is_some()
                && is_shell(mark)
                && let Some(command) = command(&block)
            {
                return Some(command);
            }
        } else if let Some((level, title)) = heading(line) {
            let about_tests = title
                .split(|letter: char| !letter.is_alphanumeric())
                .any(|word| ["test", "tests", "testing"].contains(&word.to_lowercase().as_str()));
            if about_tests {
                under = Some(level.min(under.unwrap_or(level)));
            } else if under.is_some_and(|above| level <= above) {
                under = None;
            }
        }
    }
    None
}

/// `# Title` with one to six `#`.
fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    let title = line[level..].strip_prefix([' ', '\t'])?;
    (1..=6).contains(&level).then_some((level, title))
}

/// The opening line of a fenced block: the fence, and the word after it.
fn fence(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let letter = line.chars().next().filter(|letter| "`~".contains(*letter))?;
    let mark = line.trim_start_matches(letter);
    let fence = &line[..line.len() - mark.len()];
    (fence.len() >= 3 && !mark.contains('`')).then(|| (fence, mark.split_whitespace().next().unwrap_or_default()))
}

fn closes(line: &str, fence: &str) -> bool {
    let line = line.trim();
    line.starts_with(fence) && line.trim_start_matches(&fence[..1]).is_empty()
}

fn is_shell(mark: &str) -> bool {
    let mark = mark.trim_matches(['{', '}', '.']).to_lowercase();
    ["sh", "bash", "zsh", "shell", "console"].contains(&mark.as_str())
}

fn command(block: &[&str]) -> Option<String> {
    let indent = block.iter().filter(|line| !line.trim().is_empty());
    let indent = indent.map(|line| line.len() - line.trim_start_matches(' ').len()).min().unwrap_or(0);
    let lines = block.iter().map(|line| line.get(indent..).unwrap_or_default().trim_end());
    let prompted: Vec<&str> = lines.clone().filter_map(|line| line.strip_prefix("$ ")).collect();
    let lines: Vec<&str> = if prompted.is_empty() { lines.collect() } else { prompted };
    let says = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if lines.iter().any(|line| line.contains('\0')) {
        return None;
    }
    match lines.iter().filter(says).count() {
        0 => None,
        1 => lines.iter().find(says).map(|line| line.trim().to_owned()),
        _ => Some(format!("set -e\n{}", lines.join("\n").trim_matches('\n'))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_shell_block_under_a_heading_about_tests_is_the_command() {
        for (text, command) in [
            ("# App\n## Running the tests\n\nDo:\n```bash\nmake test\n```\n", Some("make test")),
            (
                "# App\n```sh\nmake\n```\n## Tests\n```rust\nfn a() {}\n```\n~~~sh\ncargo test\n~~~\n",
                Some("cargo test"),
            ),
            (
                "## Testing\n### Unit\n```console\n$ cargo test\nrunning 1 test\n$ cargo bench\n```\n",
                Some("set -e\ncargo test\ncargo bench"),
            ),
            ("## Test\n```sh\n# all of them\ncargo test\n```\n", Some("cargo test")),
            ("1. a\n## TEST IT\n   ```shell\n   cd x\n     make\n   ```\n", Some("set -e\ncd x\n  make")),
            ("## Test\n## Deploy\n```sh\nmake deploy\n```\n", None),
            ("## Tests\n### More\n# Other\n```sh\nmake\n```\n", None),
            ("## Latest attestation, contest\n```sh\nmake\n```\n", None),
            ("```sh\n# test\n```\n```sh\nrm -rf /\n```\n", None),
            ("## Test\n```\nmake test\n```\n", None),
            ("## Test\n```sh\n\n# nothing\n```\n", None),
            ("## Test\n````sh\nmake a\n```\n````\n", Some("set -e\nmake a\n```")),
            ("## Test\n```sh\nmake test", Some("make test")),
            ("", None),
        ] {
            assert_eq!(test_command("AGENTS.md", text.as_bytes()).unwrap().as_deref(), command, "{text}");
        }
    }

    #[test]
    fn the_file_for_us_says_it_in_one_field() {
        let read = |text: &str| test_command(".shoal/agent.yaml", text.as_bytes());
        assert_eq!(read("test: make check").unwrap().as_deref(), Some("make check"));
        assert_eq!(read("{}").unwrap(), None);
        for (text, words) in [
            ("tset: make", "did you mean `test`?"),
            ("test: [make]", "`test`"),
            ("test: ''", "sh -c"),
            ("- a", "expected a mapping"),
            ("test: a\ntest: b", "no YAML"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
