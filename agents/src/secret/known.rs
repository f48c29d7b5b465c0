//! Secrets that nobody named, told by their form alone: for changes that are to be pushed, never for logs.

use std::sync::LazyLock;

use regex::bytes::Regex;

/// Forms that are secrets by their maker's own rule. No guess by entropy or length: hashes and ids stay what they are.
static FORMS: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
    // Group 1 is the secret; what stands before it is no part of a word.
    let of = |name, form: &str| {
        let regex = Regex::new(&format!("(?-u)(?:^|[^A-Za-z0-9_-])({form})"));
        (name, regex.expect("a fixed expression"))
    };
    vec![
        of("GitHub token", r"gh[pousr]_[A-Za-z0-9]{36,}"),
        of("GitHub token", r"github_pat_[A-Za-z0-9_]{22,}"),
        of("GitLab token", r"glpat-[A-Za-z0-9_-]{20,}"),
        of("API key (sk-…)", r"sk-[A-Za-z0-9_-]{20,}"),
        of("AWS access key", r"(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
        of("Slack token", r"xox[abprs]-[A-Za-z0-9-]{10,}"),
        (
            "private key",
            // With a key in it: the frame alone is in every program that reads keys. A diff puts `+` before each line.
            Regex::new(
                r#"(?-u)(-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\\[rn]|[\s+",'-])*(?:Proc-Type:|[A-Za-z0-9+/=]{40,}))"#,
            )
            .expect("a fixed expression"),
        ),
    ]
});

/// The secrets of a known form in `bytes`: the kind of each, and itself.
pub(super) fn known(bytes: &[u8]) -> impl Iterator<Item = (&'static str, &[u8])> {
    // `sk-` begins words, too, as in a style sheet; keys have digits and capital letters.
    let is_secret = |found: &[u8]| {
        !found.starts_with(b"sk-") || (found.iter().any(u8::is_ascii_digit) && found.iter().any(u8::is_ascii_uppercase))
    };
    FORMS.iter().flat_map(move |(name, form)| {
        let found = form.captures_iter(bytes).filter_map(|captures| captures.get(1));
        found.map(|found| (*name, found.as_bytes())).filter(move |(_, found)| is_secret(found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(bytes: &[u8]) -> Vec<&'static str> {
        known(bytes).map(|(kind, _)| kind).collect()
    }

    #[test]
    fn tokens_of_known_makers_are_found() {
        let key = format!("+-----BEGIN RSA PRIVATE KEY-----\n+{}\n", "MIIEpAIBAAKC".repeat(5));
        let escaped = format!("\"-----BEGIN PRIVATE KEY-----\\n{}\\n\"", "MIIEpAIBAAKC".repeat(5));
        for (text, kind) in [
            (format!("+token = \"ghp_{}\"", "a1B2".repeat(9)), "GitHub token"),
            (format!("github_pat_{}", "a1B2_".repeat(9)), "GitHub token"),
            (format!("https://oauth2:glpat-{}@host", "a1B2-".repeat(4)), "GitLab token"),
            ("KEY=sk-proj-abcDEF123456abcDEF123456".into(), "API key (sk-…)"),
            ("sk-ant-api03-abcDEF123456abcDEF123456".into(), "API key (sk-…)"),
            ("aws AKIAIOSFODNN7EXAMPLE\n".into(), "AWS access key"),
            (key, "private key"),
            (escaped, "private key"),
        ] {
            assert_eq!(kinds(text.as_bytes()), [kind], "{text}");
        }
    }

    #[test]
    fn hashes_ids_and_words_are_no_secrets() {
        for text in [
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "550e8400-e29b-41d4-a716-446655440000",
            "class=\"sk-fading-circle-with-many-more-words\" task-0123456789ABCDEF0123456789",
            "if text.contains(\"-----BEGIN PRIVATE KEY-----\") {",
            "ghp_short AKIA glpat- xox",
            "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA\n",
        ] {
            assert_eq!(kinds(text.as_bytes()), Vec::<&str>::new(), "{text}");
        }
    }
}
