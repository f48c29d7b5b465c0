use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::shell::Kept;

fn counts(passed: u64, failed: u64, skipped: u64) -> TestCounts {
    TestCounts { passed, failed, skipped }
}

const CARGO: &str = "\n\u{1b}[1mrunning\u{1b}[0m 4 tests
test ig ... ignored
test m::sp - should panic ... FAILED
test ok ... \u{1b}[32mok\u{1b}[0m
test bad ... FAILED

failures:

---- bad stdout ----
assertion `left == right` failed

test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.09s

   Doc-tests l

running 1 test
test src/lib.rs - add (line 3) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.20s
";

const NEXTEST: &str = "────────────
 Nextest run ID cf1bd83c with nextest profile: default
    Starting 52 tests across 9 binaries (3 tests skipped)
        PASS [   0.015s] ( 1/52) shoal-agents secret::a
  TRY 1 FAIL [   0.125s] (50/52) shoal-schemas::errors_page every_code
        FAIL [   0.125s] (50/52) shoal-schemas::errors_page every_code_has_a_word
  stdout ───

    running 1 test
    test every_code_has_a_word ... FAILED

    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.16s

test result: FAILED. 7 passed; 1 failed; 0 ignored; printed by a test

────────────
     Summary [   0.375s] 52 tests run: 48 passed (1 slow, 2 flaky), 3 failed, 1 timed out, 3 skipped
        FAIL [   0.125s] (50/52) shoal-schemas::errors_page every_code_has_a_word
     TIMEOUT [  60.125s] (51/52) shoal-schemas slow
error: test run failed
";

const PYTEST: &str = "test_a.py:5: AssertionError
---------------------- generated xml file: /tmp/pt/r.xml -----------------------
=========================== short test summary info ============================
FAILED test_a.py::test_bad - assert 1 == 2
FAILED test_a.py::test_p[a b] - AssertionError: assert 'a b' == 'c'
ERROR test_a.py::test_e - ValueError: no
========== 2 failed, 2 passed, 1 skipped, 1 xfailed, 1 error in 0.04s ==========
";

const GO: &str = "--- FAIL: TestSum (0.00s)
    --- FAIL: TestSum/two_numbers (0.00s)
        sum_test.go:9: got 3
FAIL
FAIL\texample.com/a/sum\t0.002s
ok  \texample.com/a/other\t0.003s
ok  \texample.com/a/cached\t(cached)
ok  \texample.com/a/none\t0.001s [no tests to run]
?   \texample.com/a/cmd\t[no test files]
# example.com/a/broken
FAIL\texample.com/a/broken [build failed]
FAIL
";

const GO_VERBOSE: &str = "=== RUN   TestA
--- PASS: TestA (0.00s)
=== RUN   TestB
    b_test.go:3: not here
--- SKIP: TestB (0.00s)
=== RUN   TestC
=== RUN   TestC/x
--- PASS: TestC (0.00s)
    --- PASS: TestC/x (0.00s)
PASS
ok  \texample.com/a\t0.002s
";

const GO_JSON: &str = r#"{"Time":"2026-11-22T00:00:00Z","Action":"start","Package":"example.com/a"}
{"Time":"2026-11-22T00:00:00Z","Action":"run","Package":"example.com/a","Test":"TestA"}
{"Time":"2026-11-22T00:00:00Z","Action":"output","Package":"example.com/a","Test":"TestA","Output":"--- FAIL: TestA (0.00s)\n"}
{"Time":"2026-11-22T00:00:00Z","Action":"fail","Package":"example.com/a","Test":"TestA","Elapsed":0}
{"Time":"2026-11-22T00:00:00Z","Action":"pass","Package":"example.com/a","Test":"TestB","Elapsed":0}
{"Time":"2026-11-22T00:00:00Z","Action":"skip","Package":"example.com/a","Test":"TestC","Elapsed":0}
{"Time":"2026-11-22T00:00:00Z","Action":"fail","Package":"example.com/a","Elapsed":0.1}
{"ImportPath":"example.com/b","Action":"build-fail"}
{"Time":"2026-11-22T00:00:00Z","Action":"fail","Package":"example.com/b","Elapsed":0,"FailedBuild":"example.com/b"}
"#;

const TAP: &str = r"TAP version 13
# Subtest: good
ok 1 - good
  ---
  duration_ms: 1.9
  ...
not ok 2 - bad \# one
  ---
  stack: |-
    not ok 9 - printed
  ...
ok 3 - s # SKIP
not ok 4 - t # TODO
# Subtest: p
    # Subtest: c1
    ok 1 - c1
    not ok 2 - c2
    1..2
not ok 5 - p
ok 6
1..6
# tests 9
";

const JUNIT: &str = r#"<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="2" skipped="2" tests="7">
<testcase classname="test_a" name="test_ok" time="0.000" />
<testcase classname="test_a" name="test_bad &lt;1&gt;"><failure message="a &#10; b">&gt; def <![CDATA[<testcase name="no">]]></failure></testcase>
<testcase classname="test_a" name="test_s"><skipped type="pytest.skip"/></testcase>
<testcase name="test_e"><error>x</error><system-out>y</system-out></testcase>
</testsuite></testsuites>
"#;

#[test]
fn every_known_format_is_counted() {
    for (text, expected, names) in [
        (CARGO, counts(2, 2, 1), vec!["m::sp", "bad"]),
        (NEXTEST, counts(48, 4, 3), vec!["shoal-schemas::errors_page every_code_has_a_word", "shoal-schemas slow"]),
        (PYTEST, counts(2, 3, 2), vec!["test_a.py::test_bad", "test_a.py::test_p[a b]", "test_a.py::test_e"]),
        ("..F\n1 failed, 2 passed, 3 warnings in 61.01s (0:01:01)\n", counts(2, 1, 0), vec![]),
        (GO, counts(2, 3, 0), vec!["TestSum", "TestSum/two_numbers", "example.com/a/broken"]),
        (GO_VERBOSE, counts(3, 0, 1), vec![]),
        (GO_JSON, counts(1, 2, 1), vec!["example.com/a.TestA", "example.com/b"]),
        (TAP, counts(2, 2, 2), vec!["bad # one", "p"]),
        ("1..2\r\nok 1 - a\r\nnot ok 2 - b\r\n", counts(1, 1, 0), vec!["b"]),
        ("1..3\nok 1\nBail out! no disk\n", counts(1, 1, 0), vec!["Bail out! no disk"]),
        (JUNIT, counts(1, 2, 1), vec!["test_a::test_bad <1>", "test_e"]),
    ] {
        let summary = of_text(text).unwrap_or_else(|| panic!("nothing in {text}"));
        assert_eq!(summary.counts, expected, "{text}");
        assert_eq!(summary.failed, names, "{text}");
    }
}

#[test]
fn several_sections_are_summed_up() {
    let all = [CARGO, NEXTEST, PYTEST, GO, JUNIT].join("\n");
    assert_eq!(of_text(&all).unwrap().counts, counts(2 + 48 + 2 + 2 + 1, 2 + 4 + 3 + 3 + 2, 1 + 3 + 2 + 1));
}

#[test]
fn reports_within_other_output_are_found_each() {
    let noise = "if a < b && c > d { <no xml \n&\n";
    let text = format!("{noise}{JUNIT}{noise}{JUNIT}{noise}");
    assert_eq!(of_text(&text).unwrap().counts, counts(2, 4, 2));
    // Hostile: much that begins, nothing that ends.
    assert!(of_text(&"<testsuite \n".repeat(200_000)).is_none_or(|summary| summary.counts == counts(0, 0, 0)));
    let many = "<testsuite><testcase name='a'/></testsuite>\n".repeat(50_000);
    assert_eq!(of_text(&many).unwrap().counts, counts(50_000, 0, 0));
}

#[test]
fn what_is_no_test_output_has_no_counts() {
    for text in [
        "",
        "ok\nnot ok\n",
        "hello 3 passed\n",
        "test result: fine\n",
        "<html><testsuite/></html>",
        "<testsuitesque>",
        "{\"Action\": 3}\n{}\n{\"a\"",
        "no tests ran in 0.01s\n",
        "FAIL\n",
        "ok 1 - without a plan\n",
    ] {
        assert_eq!(of_text(text), None, "{text}");
    }
}

#[test]
fn names_are_few_short_and_printable() {
    let mut text: String = (0..100).map(|i| format!("test t{i}\u{7} ... FAILED\n")).collect();
    text.push_str(&format!(
        "test {} ... FAILED\ntest result: FAILED. 0 passed; 101 failed; 0 ignored;\n",
        "x".repeat(5000)
    ));
    let summary = of_text(&text).unwrap();
    assert_eq!((summary.failed.len(), summary.failed[0].as_str()), (NAMES, "t0"));
    let long = format!(
        "test {} ... FAILED\ntest result: FAILED. 99999999999999999999999 passed; 1 failed; 0 ignored;\n",
        "x".repeat(5000)
    );
    let summary = of_text(&long).unwrap();
    assert_eq!((summary.failed[0].chars().count(), summary.counts), (NAME, counts(0, 1, 0)));
}

#[test]
fn reports_of_this_run_count_and_older_ones_and_links_do_not() {
    let tree = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), JUNIT).unwrap();
    let at = |path: &str| tree.path().join(path);
    std::fs::create_dir_all(at("out/deep")).unwrap();
    std::fs::write(at("out/deep/a.xml"), JUNIT).unwrap();
    std::fs::write(at("out/b.xml"), &JUNIT[..JUNIT.len() / 2]).unwrap();
    std::fs::write(at("out/c.txt"), JUNIT).unwrap();
    std::os::unix::fs::symlink(outside.path(), at("out/link.xml")).unwrap();
    std::fs::write(at("out/old.xml"), JUNIT).unwrap();
    let old = std::fs::File::options().write(true).open(at("out/old.xml")).unwrap();
    old.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    let ran = Ran { stdout: Kept { head: CARGO.into(), ..Kept::default() }, ..Ran::default() };
    let read = |globs: &[&str]| {
        let globs: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        summary(tree.path(), &globs, SystemTime::now(), &ran, &Mask::default()).unwrap().counts
    };
    assert_eq!(read(&["out/**/*.xml"]), counts(2, 2, 1), "a whole one, and what is whole of half a one");
    assert_eq!(read(&["out/deep/*.xml"]), counts(1, 2, 1));
    assert_eq!(read(&["none/*.xml"]), counts(2, 2, 1), "without reports the output counts");
    assert_eq!(read(&[]), counts(2, 2, 1));
}

proptest! {
    #[test]
    fn no_output_is_too_odd(text in "\\PC{0,300}", cut in 0..2000_usize) {
        let _ = of_text(&text);
        let whole = [CARGO, NEXTEST, TAP, GO_JSON, JUNIT, PYTEST].join("");
        let cut = whole.ceil_char_boundary(cut.min(whole.len()));
        let _ = of_text(&whole[cut..]);
        let _ = of_text(&format!("{}{text}", &whole[..cut]));
    }
}
