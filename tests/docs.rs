//! The documents hold what the program says: settings, test names, links, samples. `SHOAL_BLESS=1 cargo test --test docs`
//! writes again what is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files below `folder` with this ending; what is built or fetched is left out.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn pages() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(root(), ".md", &mut found);
    found.sort();
    found.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// Replaces what stands between two marks; fails if that is a change and nobody asked for it.
fn made(path: &Path, name: &str, text: &str) {
    let begin = format!("<!-- {name}: made by `SHOAL_BLESS=1 cargo test --test docs` from `shoal config show` -->\n");
    let end = format!("<!-- end of {name} -->\n");
    let page = read(path);
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no line {begin}"));
    let (kept, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no line {end}"));
    if kept == text {
        return;
    }
    assert!(
        std::env::var_os("SHOAL_BLESS").is_some(),
        "{} is not what the program says; refresh it with `SHOAL_BLESS=1 cargo test --test docs`",
        path.display()
    );
    std::fs::write(path, format!("{before}{begin}{text}{end}{after}")).unwrap();
}

fn settings() -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(["config", "show", "-o", "json"]).env("XDG_CONFIG_HOME", "/nonexistent");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHOAL_") {
            command.env_remove(name);
        }
    }
    let output = command.output().expect("shoal runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a list of settings")
}

#[test]
fn the_tables_of_settings_are_what_the_program_shows() {
    const ROLES: [&str; 3] = ["up", "worker", "dispatcher"];
    let text = |setting: &Value, field: &str| setting[field].as_str().unwrap_or_default().replace('|', "\\|");
    let value = |setting: &Value| match setting["value"].as_str() {
        // Ours, for this very reading.
        Some("json") if setting["origin"] == "flag" => "`table`".into(),
        Some(value) => format!("`{value}`"),
        None => String::new(),
    };
    let commands = |setting: &Value| -> Vec<String> {
        let list = setting["commands"].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut tables: BTreeMap<&str, String> = BTreeMap::new();
    let head = "| flag | variable | key | default | meaning | of |\n| --- | --- | --- | --- | --- | --- |\n";
    for setting in settings() {
        let of = commands(&setting);
        let table = match of.iter().any(|command| ROLES.contains(&command.as_str())) {
            _ if of.is_empty() => "settings of every command",
            true => "settings of roles",
            false => "flags of single commands",
        };
        let row = format!(
            "| `{}` | `{}` | {} | {} | {} | {} |\n",
            text(&setting, "flag"),
            text(&setting, "variable"),
            match setting["key"].as_str() {
                Some(key) => format!("`{key}`"),
                None => String::new(),
            },
            value(&setting),
            text(&setting, "help"),
            of.join(", "),
        );
        tables.entry(table).or_insert_with(|| head.to_owned()).push_str(&row);
    }
    assert_eq!(tables.len(), 3);
    for (name, table) in tables {
        made(&root().join("docs/configuration.md"), name, &table);
    }
}

/// Every `module::name` in backticks of a page whose name is a law in snake case.
fn named_tests(page: &str) -> BTreeSet<(String, String)> {
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let between = page.split('`').skip(1).step_by(2);
    let pairs = between.filter_map(|code| code.rsplit_once("::"));
    // Of a longer path the file is what counts.
    let pairs = pairs.map(|(path, name)| (path.rsplit("::").next().unwrap_or(path), name));
    let laws = pairs.filter(|(module, name)| word(module) && word(name) && name.matches('_').count() >= 2);
    laws.map(|(module, name)| (module.to_owned(), name.to_owned())).collect()
}

#[test]
fn every_test_that_a_page_names_exists() {
    let mut sources = Vec::new();
    files(root(), ".rs", &mut sources);
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    for path in sources {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        modules.entry(stem).or_default().push_str(&read(&path));
    }
    let mut missing = Vec::new();
    for (path, page) in pages() {
        for (module, name) in named_tests(&page) {
            let there = modules.get(&module).is_some_and(|source| source.contains(&format!("fn {name}(")));
            if !there {
                missing.push(format!("{}: {module}::{name}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(missing.is_empty(), "named but nowhere to be found:\n{}", missing.join("\n"));
    let coverage = read(&root().join("docs/coverage.md"));
    assert!(named_tests(&coverage).len() > 50, "docs/coverage.md names its tests as `module::name`");
}

#[test]
fn every_finding_is_provoked_by_a_test() {
    let mut sources = Vec::new();
    files(&root().join("tests/fleet/doctor"), ".rs", &mut sources);
    let tests: String = sources.iter().map(|path| read(path)).collect();
    let codes = schemas::doctor::FindingCode::ALL.iter();
    let missing: Vec<_> = codes.filter(|code| !tests.contains(&format!("\"{code}\""))).collect();
    assert!(missing.is_empty(), "no test looks for {missing:?}");
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for (path, page) in pages() {
        for target in page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let at = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let there = at.exists()
                && (heading.is_empty()
                    || read(&at)
                        .lines()
                        .filter_map(|line| line.strip_prefix('#'))
                        .any(|line| anchor(line.trim_start_matches('#')) == heading));
            if !there {
                broken.push(format!("{}: {target}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_task_and_record_that_a_page_shows_is_one() {
    let mut seen = 0;
    for (path, page) in pages() {
        let blocks = page.split("```json\n").skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block);
        for block in blocks {
            let value: Value =
                serde_json::from_str(block).unwrap_or_else(|error| panic!("{}: {error}\n{block}", path.display()));
            if value.get("workload").is_some() {
                schemas::strict::task(&value).unwrap_or_else(|error| panic!("{}: {error}\n{block}", path.display()));
                seen += 1;
            } else if value.get("state").is_some() {
                serde_json::from_str::<schemas::TaskRecord>(block)
                    .unwrap_or_else(|error| panic!("{}: {error}\n{block}", path.display()));
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "docs/submitting.md shows tasks and a record");
}
