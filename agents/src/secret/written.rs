//! How a value may be written where it turns up again.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// Lines of a value of several lines are hidden one by one from this length on: logs print them with something between.
const LINE_BYTES: usize = 8;

/// One way of writing; wiped when dropped.
pub(super) type Form = Zeroizing<Vec<u8>>;

/// Every way of writing `value` that is hidden. The first is the value itself.
pub(super) fn forms(value: &str) -> Vec<Form> {
    let mut forms = Vec::new();
    of_one(value, &mut forms);
    if value.lines().nth(1).is_some() {
        // The frame of a key in PEM is no secret.
        for line in value.lines().map(str::trim).filter(|line| line.len() >= LINE_BYTES && !line.starts_with("-----")) {
            of_one(line, &mut forms);
        }
    }
    forms
}

fn of_one(value: &str, forms: &mut Vec<Form>) {
    let mut add = |form: Vec<u8>| forms.push(Zeroizing::new(form));
    let bytes = value.as_bytes();
    add(bytes.to_vec());
    for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
        add(engine.encode(bytes).into_bytes());
    }
    for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
        for before in 0..3 {
            add(inside_base64(&engine, bytes, before));
        }
    }
    add(hex(bytes, b"0123456789abcdef"));
    add(hex(bytes, b"0123456789ABCDEF"));
    // RFC 3986, JavaScript's `encodeURIComponent`, forms.
    for (plain, space) in [("-_.~", "%20"), ("-_.~!*'()", "%20"), ("*-._", "+")] {
        for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
            add(percent(bytes, plain, space, digits));
        }
    }
    let json = Zeroizing::new(serde_json::to_string(value).expect("a string is always JSON"));
    let json = &json[1..json.len() - 1];
    add(json.as_bytes().to_vec());
    add(json.replace('/', "\\/").into_bytes());
    add(ascii(json));
    // Inside '…', as `sh` and as Python's `shlex` write it; inside "…"; with backslashes alone, as `printf %q`.
    add(value.replace('\'', r"'\''").into_bytes());
    add(value.replace('\'', "'\"'\"'").into_bytes());
    add(backslashed(value, |letter| "\\\"$`".contains(letter)));
    add(backslashed(value, |letter| {
        letter.is_ascii() && !letter.is_ascii_alphanumeric() && !"_-./:=@%+,".contains(letter)
    }));
    add(backslashed(value, |letter| letter.is_ascii_punctuation() && !"_-./".contains(letter) || letter == ' '));
}

/// The characters of base64 that `bytes` alone decides, where they stand after a text of 3 n + `before` bytes.
fn inside_base64(engine: &impl Engine, bytes: &[u8], before: usize) -> Vec<u8> {
    let mut text = Zeroizing::new(vec![0; before]);
    text.extend_from_slice(bytes);
    let encoded = Zeroizing::new(engine.encode(&*text));
    let (from, to) = ((before * 8).div_ceil(6), text.len() * 8 / 6);
    encoded.as_bytes()[from..to].to_vec()
}

fn hex(bytes: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]).collect()
}

fn percent(bytes: &[u8], plain: &str, space: &str, digits: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() * 3);
    for &byte in bytes {
        match byte {
            b' ' => out.extend_from_slice(space.as_bytes()),
            _ if byte.is_ascii_alphanumeric() || plain.as_bytes().contains(&byte) => out.push(byte),
            _ => out.extend([b'%', digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]),
        }
    }
    out
}

/// JSON whose every letter beyond ASCII is a `\u` escape.
fn ascii(json: &str) -> Vec<u8> {
    let mut out = String::with_capacity(json.len() * 6);
    for letter in json.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out.into_bytes()
}

fn backslashed(value: &str, escaped: impl Fn(char) -> bool) -> Vec<u8> {
    let mut out = String::with_capacity(value.len() * 2);
    for letter in value.chars() {
        if escaped(letter) {
            out.push('\\');
        }
        out.push(letter);
    }
    out.into_bytes()
}
