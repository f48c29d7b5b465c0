//! Bounds on what a model is shown. Every cut is told in its place.

/// Bytes of one result.
pub const RESULT_BYTES: usize = 30_000;
/// Bytes of one line of a file or of a match.
pub const LINE_BYTES: usize = 1_000;

/// The longest beginning of at most `most` bytes that ends between two letters.
pub fn beginning(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The end of a text, in whole characters.
pub fn ending(text: &str, most: usize) -> &str {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// A line, cut if it is longer than [`LINE_BYTES`].
pub fn line(text: &str) -> String {
    match beginning(text, LINE_BYTES) {
        whole if whole.len() == text.len() => whole.to_owned(),
        cut => format!("{cut} [… {} bytes of this line left out …]", text.len() - cut.len()),
    }
}

/// At most `most` bytes and a sentence: a third from the beginning, the rest from the end, where errors stand.
pub fn middle_cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let head = beginning(text, most / 3);
    let mut from = text.len() - (most - most / 3);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let tail = &text[from..];
    format!("{head}\n[… {} bytes left out …]\n{tail}", text.len() - head.len() - tail.len())
}

/// Whether bytes look like no text: a zero byte in their first 8,000, as git decides it.
pub fn is_binary(bytes: &[u8]) -> bool {
    bytes.iter().take(8_000).any(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_told_in_its_place_and_never_splits_a_letter() {
        assert_eq!(middle_cut("short", 30), "short");
        let cut = middle_cut(&"ä".repeat(1000), 99);
        assert!(cut.starts_with("ää") && cut.ends_with("ää") && cut.contains("bytes left out"), "{cut}");
        assert!(cut.len() < 150);
        assert!(line(&"ö".repeat(5_000)).ends_with("[… 9000 bytes of this line left out …]"));
        assert_eq!(line("short"), "short");
    }
}
