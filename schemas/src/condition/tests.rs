use proptest::prelude::*;

use super::*;

const EARLIER: [&str; 2] = ["lint", "unit-tests"];

fn facts() -> Facts {
    Facts {
        task: BTreeMap::from([("task.id".into(), "t-1".into()), ("task.title".into(), "say \"hi\"".into())]),
        attempt: 2,
        round: 1,
        steps: BTreeMap::from([
            ("lint".into(), (StepOutcome::Failed, Some(3))),
            ("unit-tests".into(), (StepOutcome::Skipped, None)),
        ]),
        tests: TestCounts { passed: 5, failed: 1, skipped: 0 },
        change: ChangeReport { files: 2, insertions: 10, deletions: 0 },
    }
}

#[test]
fn conditions_hold_or_not() {
    for (text, holds) in [
        ("true", true),
        ("false or true", true),
        ("not true", false),
        ("not not true", true),
        ("true or true and false", true),
        ("(true or true) and false", false),
        ("not false and false", false),
        ("task.id == 't-1'", true),
        ("task.id != \"t-1\"", false),
        (r#"task.title == "say \"hi\"""#, true),
        (r#"task.title == 'say "hi"'"#, true),
        ("task.spec == ''", true),
        ("attempt >= 2 and attempt <= 2 and attempt > 1 and attempt < 3", true),
        ("1 < -1", false),
        ("steps.lint.outcome == 'failed'", true),
        ("steps.lint.exit_code == 3", true),
        ("steps.unit-tests.outcome == 'skipped' and steps.unit-tests.exit_code == -1", true),
        ("tests.failed>0", true),
        ("change.files == 2 and not change.deletions > 0", true),
        ("(attempt == 1) == false", true),
        ("round == 1 and\n tests.skipped == 0", true),
    ] {
        let condition = Condition::parse(text, &EARLIER).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(condition.holds(&facts()), holds, "{text}");
        let printed = condition.to_string();
        assert_eq!(Condition::parse(&printed, &EARLIER).as_ref(), Ok(&condition), "{text} as {printed}");
    }
}

#[test]
fn what_is_no_condition_is_refused_with_its_place_and_what_was_expected() {
    for (text, at, words) in [
        ("", 1, "found the end, expected a name"),
        ("attempt = 1", 9, "expected `==`"),
        ("attempt == 1 && true", 14, "expected `and`"),
        ("attempt == 1 || true", 14, "expected `or`"),
        ("!true", 1, "expected `not`"),
        ("attempt", 1, "a number stands where a truth is expected"),
        ("not attempt", 5, "a number stands where a truth"),
        ("true and 'a'", 10, "a text stands where a truth"),
        ("attempt == '1'", 9, "between a number and a text"),
        ("task.id < 'a'", 9, "compares numbers"),
        ("true < false", 6, "compares numbers"),
        ("1 < 2 < 3", 7, "after a comparison"),
        ("(true", 6, "found the end, expected `)`"),
        ("true)", 5, "found `)`, expected `and`, `or`, or the end"),
        ("true true", 6, "found `true`"),
        ("task.titel == ''", 1, "did you mean `task.title`?"),
        ("steps.unit-test.outcome == 'passed'", 1, "did you mean `unit-tests`?"),
        ("steps.lint.result == 'passed'", 1, "an `outcome` and an `exit_code`"),
        ("steps.lint == 'passed'", 1, "an `outcome`"),
        ("steps.lint.outcome == 'pased'", 23, "no step ends as \"pased\""),
        ("'open", 1, "no end"),
        ("'\\n' == ''", 1, "before a quote"),
        ("1.5 == 1", 1, "no whole number"),
        ("99999999999999999999 == 1", 1, "no whole number"),
        ("ä == 1", 1, "found `ä`"),
        ("attempt == $x", 12, "found `$`"),
        ("and", 1, "found `and`"),
        ("env.HOME == ''", 1, "unknown name `env.HOME`"),
    ] {
        let error = Condition::parse(text, &EARLIER).expect_err(text);
        assert_eq!(error.at, at, "{text}: {error}");
        assert!(error.problem.contains(words), "{text}: {error}");
    }
    let error = Condition::parse("steps.lint.outcome == 'passed'", &[]).unwrap_err();
    assert!(error.problem.contains("none comes earlier"), "{error}");
}

#[test]
fn depth_and_length_are_bounded() {
    for deep in ["(".repeat(900), "not ".repeat(200)] {
        assert!(Condition::parse(&deep, &[]).unwrap_err().problem.contains("deeper"));
    }
    let nested = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Condition::parse(&nested(CONDITION_DEPTH as usize), &[]).is_ok());
    assert!(Condition::parse(&nested(CONDITION_DEPTH as usize + 1), &[]).is_err());
    assert!(Condition::parse(&" ".repeat(CONDITION_BYTES + 1), &[]).unwrap_err().problem.contains("longer"));
}

#[test]
fn the_names_in_the_list_are_the_names_that_are_read() {
    for (name, kind, _) in &NAMES[..NAMES.len() - 1] {
        let text = if *kind == Type::Number { format!("{name} == 0") } else { format!("{name} == ''") };
        assert!(Condition::parse(&text, &[]).unwrap().holds(&Facts::default()), "{name}");
    }
}

fn truth() -> impl Strategy<Value = Expression> {
    let number = prop_oneof![
        any::<i64>().prop_map(Expression::Number),
        Just(Expression::Name(Name::Plain("attempt", Type::Number))),
        Just(Expression::Name(Name::ExitCode("lint".into()))),
    ];
    let text =
        prop_oneof![".{0,8}".prop_map(Expression::Text), Just(Expression::Name(Name::Plain("task.id", Type::Text))),];
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::Unequal),
        Just(Comparison::Less),
        Just(Comparison::AtMost),
        Just(Comparison::More),
        Just(Comparison::AtLeast),
    ];
    let compare = |left, comparison, right| Expression::Compare(Box::new(left), comparison, Box::new(right));
    let leaf = prop_oneof![
        any::<bool>().prop_map(Expression::Truth),
        (number.clone(), comparison, number).prop_map(move |(left, by, right)| compare(left, by, right)),
        (text.clone(), text).prop_map(move |(left, right)| compare(left, Comparison::Equal, right)),
    ];
    leaf.prop_recursive(4, 16, 3, move |inner| {
        // The parser makes one chain of a chain within a chain only where parentheses say so.
        prop_oneof![
            inner.clone().prop_map(|inner| Expression::Not(Box::new(inner))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::Or),
            (inner.clone(), inner).prop_map(move |(left, right)| compare(left, Comparison::Unequal, right)),
        ]
    })
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "\\PC{0,60}") {
        let _ = Condition::parse(&text, &EARLIER);
    }

    #[test]
    fn parsing_of_its_own_words_never_panics(
        words in prop::collection::vec(
            prop_oneof![Just("and"), Just("or"), Just("not"), Just("("), Just(")"), Just("=="), Just("<"), Just("1"),
                        Just("'a'"), Just("true"), Just("attempt"), Just("task.id"), Just("steps.lint.outcome")],
            0..30,
        )
    ) {
        let text = words.join(" ");
        if let Ok(condition) = Condition::parse(&text, &EARLIER) {
            let printed = condition.to_string();
            let again = Condition::parse(&printed, &EARLIER).map_err(|error| TestCaseError::fail(format!("{printed}: {error}")))?;
            prop_assert_eq!(again.holds(&facts()), condition.holds(&facts()));
        }
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same(expression in truth()) {
        let condition = Condition(expression);
        let printed = condition.to_string();
        prop_assume!(printed.len() <= CONDITION_BYTES);
        prop_assert_eq!(Condition::parse(&printed, &EARLIER), Ok(condition), "{}", printed);
    }
}
