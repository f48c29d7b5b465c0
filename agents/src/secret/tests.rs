use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

fn mask(values: &[&str]) -> Mask {
    let secrets: Vec<(String, Secret)> =
        values.iter().enumerate().map(|(i, value)| (format!("S{i}"), Secret::new((*value).to_owned()))).collect();
    Mask::new(secrets.iter().map(|(name, secret)| (name.as_str(), secret))).unwrap()
}

fn piecewise(mask: &Mask, text: &[u8], sizes: &[usize]) -> Vec<u8> {
    let (mut stream, mut out, mut rest) = (mask.stream(), Vec::new(), text);
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
        out.extend(stream.push(piece));
        rest = later;
    }
    out.extend(stream.finish());
    out
}

#[test]
fn a_secret_is_hidden_in_every_usual_writing() {
    let secret = "pä$$ 'w\"/o\\rd+%";
    let mask = mask(&[secret]);
    for (text, masked) in [
        ("x pä$$ 'w\"/o\\rd+% y".to_owned(), "x *** y"),
        (STANDARD.encode(secret), "***"),
        (URL_SAFE_NO_PAD.encode(secret), "***"),
        (secret.bytes().map(|byte| format!("{byte:02x}")).collect(), "***"),
        (secret.bytes().map(|byte| format!("{byte:02X}")).collect(), "***"),
        ("a=p%C3%A4%24%24%20%27w%22%2Fo%5Crd%2B%25&b".into(), "a=***&b"),
        ("a=p%c3%a4%24%24%20%27w%22%2fo%5crd%2b%25&b".into(), "a=***&b"),
        ("a=p%C3%A4%24%24+%27w%22%2Fo%5Crd%2B%25&b".into(), "a=***&b"),
        ("p%C3%A4%24%24%20'w%22%2Fo%5Crd%2B%25".into(), "***"),
        (serde_json::to_string(secret).unwrap(), "\"***\""),
        (r#""p\u00e4$$ 'w\"/o\\rd+%""#.into(), "\"***\""),
        (r#""pä$$ 'w\"\/o\\rd+%""#.into(), "\"***\""),
        (r#"'pä$$ '\''w"/o\rd+%'"#.into(), "'***'"),
        (r#"'pä$$ '"'"'w"/o\rd+%'"#.into(), "'***'"),
        (r#""pä\$\$ 'w\"/o\\rd+%""#.into(), "\"***\""),
        (r#"pä\$\$\ \'w\"/o\\rd+%"#.into(), "***"),
    ] {
        assert_eq!(mask.text(&text), masked, "{text}");
        assert!(mask.find(text.as_bytes()).contains("S0"));
    }
}

#[test]
fn a_secret_inside_longer_base64_is_hidden_at_each_alignment() {
    let mask = mask(&["ghs_0123456789abcdef"]);
    for before in ["", "x", "xy", "xyz", "user:"] {
        for after in ["", "1", "12", "\n"] {
            let text = STANDARD.encode(format!("{before}ghs_0123456789abcdef{after}"));
            let masked = mask.text(&text);
            assert!(masked.contains("***") && masked.len() < before.len() + 14, "{text} {masked}");
        }
    }
}

#[test]
fn overlapping_secrets_leave_nothing_of_each() {
    let mask = mask(&["abcdef", "defghi", "abcd", "abcdefghijklm"]);
    for (text, masked) in [
        ("abcdefghi", "***"),
        ("abcdefghijk", "***jk"),
        ("xabcdefx", "x***x"),
        ("abcdabcd", "******"),
        ("abcde", "***e"),
    ] {
        assert_eq!(mask.text(text), masked);
        for size in 1..5 {
            assert_eq!(piecewise(&mask, text.as_bytes(), &[size]), masked.as_bytes());
        }
    }
}

#[test]
fn only_what_may_become_a_secret_is_held_back() {
    let mask = mask(&["secret-value"]);
    let mut stream = mask.stream();
    assert_eq!(stream.push(b"hello sec"), b"hello ");
    assert_eq!(stream.push(b"ond secret-"), b"second ");
    assert_eq!(stream.push(b"value and"), b"*** and");
    assert_eq!(stream.push(b" secret-valu"), b" ");
    assert_eq!(stream.finish(), b"secret-valu");
    assert_eq!(stream.push(b"e"), b"e", "a new stream begins after the end");
}

#[test]
fn lines_of_a_key_are_hidden_one_by_one() {
    let body = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU";
    let key =
        format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\nAAAAAtzc2gtZW\n-----END OPENSSH PRIVATE KEY-----\n");
    let masked = mask(&[&key]).text(&format!("| {body}\r\n| AAAAAtzc2gtZW\n-----BEGIN OPENSSH PRIVATE KEY-----"));
    assert_eq!(masked, "| ***\r\n| ***\n-----BEGIN OPENSSH PRIVATE KEY-----");
}

#[test]
fn a_secret_that_would_hide_everything_is_refused_by_name() {
    for value in ["", "abc", " ab \n"] {
        let refused = Mask::new([("PIN", &Secret::new(value.into()))]).unwrap_err();
        assert_eq!(refused, TooShort { name: "PIN".into() });
    }
    assert_eq!(mask(&["abcd\n"]).text("xabcdx"), "x***x");
}

#[test]
fn nothing_prints_a_secret() {
    let secret = Secret::new("hunter2hunter2".into());
    let mask = Mask::new([("PASSWORD", &secret)]).unwrap();
    assert_eq!(format!("{secret:?}"), "***");
    assert_eq!(format!("{mask:?}"), r#"Mask(["PASSWORD"])"#);
    assert!(mask.find(b"a hunter2hunter2").contains("PASSWORD"));
    assert!(mask.find(b"a hunter2hunter").is_empty());
    assert_eq!(Mask::default().text("anything"), "anything");
    assert!(Mask::default().find(b"anything").is_empty());
}

proptest! {
    #[test]
    fn no_secret_survives_any_chunking(
        secrets in prop::collection::vec("[ab/+ '\"\\\\é]{4,9}", 1..4),
        pieces in prop::collection::vec(("[ab/+ '\"\\\\é]{0,9}", 0..4_usize, 0..6_usize), 1..8),
        sizes in prop::collection::vec(1..9_usize, 1..5),
    ) {
        prop_assume!(secrets.iter().all(|secret| secret.trim().len() >= 4));
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let mask = mask(&secrets);
        let mut text = String::new();
        for (plain, which, writing) in &pieces {
            text.push_str(plain);
            let secret = secrets[which % secrets.len()];
            match writing {
                0 => text.push_str(secret),
                1 => text.push_str(&STANDARD.encode(secret)),
                2 => text.push_str(&serde_json::to_string(secret).unwrap()),
                3 => text.push_str(&STANDARD.encode(format!("{plain}{secret}{plain}"))),
                _ => text.extend(secret.bytes().map(|byte| format!("%{byte:02X}"))),
            }
        }
        let whole = mask.text(&text);
        prop_assert_eq!(&piecewise(&mask, text.as_bytes(), &sizes), whole.as_bytes());
        for secret in &secrets {
            prop_assert!(!whole.contains(secret.trim()), "{:?} in {:?}", secret, whole);
            prop_assert!(!whole.contains(&STANDARD.encode(secret)));
        }
        prop_assert!(mask.find(whole.as_bytes()).is_empty());
    }

    #[test]
    fn text_without_secrets_is_unchanged(text in "\\PC{0,200}", sizes in prop::collection::vec(1..9_usize, 1..5)) {
        // A hash, an id and a word: nothing but the secret itself is hidden, and nothing that looks like one.
        let mask = mask(&["9f86d081884c7d659a2feaa0c55ad015", "correct horse battery staple"]);
        prop_assert_eq!(mask.text(&text), text.clone());
        prop_assert_eq!(piecewise(&mask, text.as_bytes(), &sizes), text.as_bytes());
    }
}
