//! Tools as a model meets them.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal_agents::tools::{Answer, Effect, Toolbox};

use crate::bench::Bench;

struct Tools {
    bench: Bench,
    toolbox: Toolbox,
}

impl Tools {
    fn new() -> Self {
        let bench = Bench::new(json!([]));
        let toolbox = Toolbox::open(&bench.room()).unwrap();
        Self { bench, toolbox }
    }

    async fn call(&self, name: &str, arguments: Value) -> Answer {
        let answer = self.toolbox.call(&self.bench.room(), name, &arguments.to_string()).await.unwrap();
        assert!(answer.text.len() < 31_000, "{name} answers {} bytes", answer.text.len());
        answer
    }

    async fn good(&self, name: &str, arguments: Value) -> String {
        let answer = self.call(name, arguments).await;
        assert!(!answer.failed, "{}", answer.text);
        answer.text
    }

    async fn bad(&self, name: &str, arguments: Value) -> String {
        let answer = self.call(name, arguments).await;
        assert!(answer.failed && answer.effect == Effect::Looked, "{answer:?}");
        answer.text
    }
}

#[tokio::test]
async fn no_tool_leaves_the_workspace_or_touches_git() {
    let tools = Tools::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "needle").unwrap();
    let tree = tools.bench.tree.path();
    std::fs::create_dir(tree.join(".git")).unwrap();
    std::fs::write(tree.join(".git/config"), "needle").unwrap();
    symlink(outside.path(), tree.join("out")).unwrap();
    symlink(outside.path().join("secret"), tree.join("file")).unwrap();
    symlink(".git", tree.join("g")).unwrap();
    tools.bench.file("mine", "mine");
    let secret = outside.path().join("secret").display().to_string();
    let up = format!("../{}/secret", outside.path().file_name().unwrap().display());
    for path in [
        "out/secret",
        "file",
        "g/config",
        ".git/config",
        "./.git/hooks/pre-commit",
        "/etc/passwd",
        &secret,
        &up,
        "a/../../b",
        "",
        "\0",
    ] {
        for (tool, arguments) in [
            ("read_file", json!({ "path": path })),
            ("write_file", json!({ "path": path, "content": "x" })),
            ("edit_file", json!({ "path": path, "old": "needle", "new": "x" })),
            ("move_file", json!({ "from": path, "to": "stolen/x" })),
            ("move_file", json!({ "from": "mine", "to": format!("{path}/x") })),
        ] {
            // A link may be moved as what it is, and a file into the root.
            if (tool, path) == ("move_file", "file") || arguments["to"] == "/x" {
                continue;
            }
            let answer = tools.call(tool, arguments.clone()).await;
            assert!(answer.failed && !answer.text.contains("needle"), "{tool} {arguments}: {answer:?}");
        }
        if path != "file" {
            assert!(tools.call("delete_file", json!({ "path": path })).await.failed, "{path}");
        }
        assert!(!tools.call("search", json!({ "pattern": "needle", "path": path })).await.text.contains(":1:"));
    }
    assert_eq!(tools.good("search", json!({ "pattern": "needle" })).await, "no line matches\n");
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "needle");
    assert_eq!(std::fs::read_to_string(tree.join(".git/config")).unwrap(), "needle");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    let list = tools.good("list_files", json!({})).await;
    assert!(list.contains("(a link; not followed)") && list.contains("mine") && !list.contains(".git/"), "{list}");
}

#[tokio::test]
async fn a_fifo_or_a_device_blocks_nothing() {
    let tools = Tools::new();
    let tree = tools.bench.tree.path();
    nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&tree.join(".gitignore"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let within = async {
        for (tool, arguments) in [
            ("read_file", json!({ "path": "fifo" })),
            ("write_file", json!({ "path": "fifo", "content": "x" })),
            ("edit_file", json!({ "path": "fifo", "old": "a", "new": "b" })),
            ("search", json!({ "path": "fifo", "pattern": "a" })),
        ] {
            assert!(tools.bad(tool, arguments).await.starts_with("fifo is not "));
        }
        tools.good("search", json!({ "pattern": "a" })).await;
        assert!(tools.good("list_files", json!({})).await.contains("fifo (not a regular file)"));
    };
    tokio::time::timeout(Duration::from_secs(20), within).await.expect("nothing blocks");
}

#[tokio::test]
async fn an_edit_is_of_exactly_one_place() {
    let tools = Tools::new();
    tools.bench.file("a", "one two one\n");
    let edit = |old: &str, new: &str| json!({ "path": "a", "old": old, "new": new });
    assert!(tools.bad("edit_file", edit("one", "1")).await.contains("occurs 2 times"));
    assert!(tools.bad("edit_file", edit("three", "3")).await.contains("does not occur"));
    assert!(tools.bad("edit_file", edit("", "3")).await.contains("empty"));
    assert!(tools.bad("edit_file", edit("two", "two")).await.contains("the same"));
    assert_eq!(tools.bench.read("a"), "one two one\n");
    let answer = tools.call("edit_file", edit("two one", "2 1")).await;
    assert_eq!((answer.failed, answer.effect), (false, Effect::Changed("a".to_owned())));
    assert_eq!(tools.bench.read("a"), "one 2 1\n");
    assert!(tools.bad("edit_file", json!({ "path": "b", "old": "a", "new": "b" })).await.contains("b does not exist"));
    std::fs::write(tools.bench.tree.path().join("latin"), b"caf\xe9").unwrap();
    assert!(tools.bad("edit_file", json!({ "path": "latin", "old": "caf", "new": "x" })).await.contains("UTF-8"));
}

#[tokio::test]
async fn files_are_written_moved_and_deleted_under_either_name_of_the_root() {
    let tools = Tools::new();
    let absolute = tools.bench.tree.path().join("deep/er/a").display().to_string();
    tools.good("write_file", json!({ "path": absolute, "content": "a" })).await;
    assert_eq!(tools.bench.read("deep/er/a"), "a");
    tools.good("move_file", json!({ "from": "deep/er/a", "to": "b" })).await;
    tools.bench.file("c", "c");
    assert!(tools.bad("move_file", json!({ "from": "b", "to": "c" })).await.contains("exists already"));
    tools.good("delete_file", json!({ "path": "c" })).await;
    assert!(tools.bad("delete_file", json!({ "path": "deep" })).await.contains("a folder"));
    assert_eq!(
        tools.good("read_file", json!({ "path": "b", "first_line": null })).await,
        "[b: lines 1 to 1 of 1]\na\n"
    );
}

#[tokio::test]
async fn files_of_any_size_and_kind_are_read_within_bounds_and_every_cut_is_told() {
    let tools = Tools::new();
    let lines: String = (1..=100_000).map(|number| format!("line {number}\n")).collect();
    tools.bench.file("long", &lines);
    let text = tools.good("read_file", json!({ "path": "long" })).await;
    assert!(text.starts_with("[long: lines 1 to 3060 ") && text.contains("of 100000]\nline 1\n"), "{}", &text[..80]);
    let text = tools.good("read_file", json!({ "path": "long", "first_line": 99_999, "lines": 10 })).await;
    assert_eq!(text, "[long: lines 99999 to 100000 of 100000]\nline 99999\nline 100000\n");
    let text = tools.good("read_file", json!({ "path": "long", "first_line": 50_000, "lines": 2 })).await;
    assert_eq!(text, "[long: lines 50000 to 50001 of 100000]\nline 50000\nline 50001\n");
    assert_eq!(
        tools.good("read_file", json!({ "path": "long", "first_line": 200_000 })).await,
        "long has no line 200000; it has 100000"
    );
    tools.bench.file("wide", &"x".repeat(5_000_000));
    let text = tools.good("read_file", json!({ "path": "wide" })).await;
    assert!(text.len() < 2_000 && text.contains("bytes of this line left out"), "{text}");
    std::fs::write(tools.bench.tree.path().join("binary"), b"\x7fELF\0\0").unwrap();
    assert!(tools.good("read_file", json!({ "path": "binary" })).await.contains("binary file of 6 bytes"));
    tools.bench.file("empty", "");
    assert_eq!(tools.good("read_file", json!({ "path": "empty" })).await, "empty is empty");
    let huge = std::fs::File::create(tools.bench.tree.path().join("huge")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let began = Instant::now();
    assert!(tools.good("read_file", json!({ "path": "huge" })).await.contains("binary file"));
    assert!(tools.bad("edit_file", json!({ "path": "huge", "old": "a", "new": "b" })).await.contains("small enough"));
    assert!(
        tools.good("search", json!({ "pattern": "ELF" })).await.contains("1 files larger than 8 MiB were not searched")
    );
    assert!(began.elapsed() < Duration::from_secs(15), "a terabyte is not read");
}

#[tokio::test]
async fn a_search_finds_lines_honours_gitignore_and_tells_what_it_left_out() {
    let tools = Tools::new();
    let tree = tools.bench.tree.path();
    for folder in ["src/deep", "target", "node_modules/x"] {
        std::fs::create_dir_all(tree.join(folder)).unwrap();
    }
    tools.bench.file(".gitignore", "/target\nnode_modules/\n*.log\n!keep.log\n");
    tools.bench.file("src/.gitignore", "generated.rs\n");
    for name in [
        "src/a.rs",
        "src/deep/b.txt",
        "src/deep/generated.rs",
        "target/a.rs",
        "node_modules/x/a.rs",
        "a.log",
        "keep.log",
    ] {
        tools.bench.file(name, "first\nthe Needle is here\n");
    }
    let found = tools.good("search", json!({ "pattern": "(?i)needle" })).await;
    let line = ":2: the Needle is here\n";
    assert_eq!(found, format!("keep.log{line}src/a.rs{line}src/deep/b.txt{line}"));
    assert_eq!(tools.good("search", json!({ "pattern": "Needle", "glob": "*.rs" })).await, format!("src/a.rs{line}"));
    let below = json!({ "pattern": "Needle", "path": "src/deep" });
    assert_eq!(tools.good("search", below).await, format!("src/deep/b.txt{line}"), "rules of the folders above count");
    assert_eq!(
        tools.good("search", json!({ "pattern": "N", "path": "a.log" })).await,
        format!("a.log{line}"),
        "named, it is searched"
    );
    let list = tools.good("list_files", json!({})).await;
    assert_eq!(list, ".gitignore\nkeep.log\nsrc/\nsrc/.gitignore\nsrc/a.rs\nsrc/deep/\nsrc/deep/b.txt\n");
    assert_eq!(tools.good("list_files", json!({ "depth": 1 })).await, ".gitignore\nkeep.log\nsrc/\n");
    assert!(tools.bad("search", json!({ "pattern": "(" })).await.contains("no regular expression"));
    assert!(tools.bad("search", json!({ "pattern": "x{9999}{9999}" })).await.contains("no regular expression"));
    assert!(tools.bad("search", json!({ "pattern": "x", "glob": "[" })).await.contains("`glob` cannot be read"));
    tools.bench.file("many", &"match\n".repeat(5_000));
    assert!(tools.good("search", json!({ "pattern": "match" })).await.contains("there are too many matches"));
    for number in 0..1_500 {
        tools.bench.file(&format!("src/{number}"), "");
    }
    assert!(tools.good("list_files", json!({})).await.contains("not everything is listed"));
}

#[tokio::test]
async fn a_command_tells_its_end_and_both_streams_within_bounds() {
    let tools = Tools::new();
    std::fs::create_dir(tools.bench.tree.path().join("sub")).unwrap();
    let run = |command: &str| json!({ "command": command });
    let answer = tools.call("run_command", run("echo out; echo err >&2; exit 3")).await;
    assert!(answer.failed && answer.text.starts_with("exit code 3 ("), "{}", answer.text);
    assert!(answer.text.ends_with("stdout:\nout\nstderr:\nerr\n"), "{}", answer.text);
    assert!(
        tools
            .good("run_command", json!({ "command": "basename $PWD", "folder": "sub" }))
            .await
            .ends_with("stdout:\nsub\n")
    );
    let text = tools.good("run_command", run("seq 100000; echo the end")).await;
    assert!(
        text.contains("bytes left out") && text.contains("\n1\n2\n") && text.ends_with("100000\nthe end\n"),
        "{text}"
    );
    let answer = tools.call("run_command", json!({ "command": "sleep 60", "timeout_seconds": 1 })).await;
    assert!(answer.failed && answer.text.starts_with("timed out after"), "{}", answer.text);
    assert!(tools.bad("run_command", json!({ "command": "ls", "folder": "../" })).await.contains("only paths below"));
    let bytes = tools.good("run_command", run("head -c 100000 /dev/urandom")).await;
    assert!(bytes.contains("bytes left out"));
}

#[tokio::test]
async fn what_a_tool_takes_is_told_where_a_call_is_wrong() {
    let tools = Tools::new();
    let answer = tools.call("read_file", json!({ "path": 5 })).await;
    assert_eq!(answer.effect, Effect::Malformed);
    assert!(answer.text.contains("read_file takes a JSON object with"), "{}", answer.text);
    assert!(
        answer.text.contains("first_line (integer, optional)") && answer.text.contains("path (string)"),
        "{}",
        answer.text
    );
    let answer = tools.call(&"x".repeat(100_000), json!({})).await;
    assert_eq!(answer.effect, Effect::Malformed);
    let answer = tools.toolbox.call(&tools.bench.room(), "list_files", "").await.unwrap();
    assert!(!answer.failed, "no arguments are none: {}", answer.text);
}

#[tokio::test]
async fn no_tool_shows_a_secret_and_no_pattern_can_ask_for_it() {
    let secret = shoal_agents::secret::Secret::new("hunter2-hunter2-hunter2".to_owned());
    let mut tools = Tools::new();
    tools.bench.mask = shoal_agents::secret::Mask::new([("token", &secret)]).unwrap();
    // One of them at the very place where a line is cut.
    let text = format!("token = {}\n{}{}\n", secret.expose(), "x".repeat(990), secret.expose());
    tools.bench.file("config", &text);
    let mut shown = tools.good("read_file", json!({ "path": "config" })).await;
    shown += &tools.good("run_command", json!({ "command": "cat config" })).await;
    shown += &tools.good("search", json!({ "pattern": "token|xx" })).await;
    assert!(shown.contains("token = ") && !shown.contains("hunter"), "{shown}");
    assert_eq!(tools.good("search", json!({ "pattern": "hunter2" })).await, "no line matches\n");
    assert_eq!(tools.bench.read("config"), text);
}
