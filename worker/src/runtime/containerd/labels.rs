//! What a container's record says beside whose it is: how it is undone and ended by whoever finds it.

use std::collections::HashMap;

use schemas::StartId;

/// The network that it was connected to, as tasks call it.
pub(super) const NETWORK: &str = "shoal.network";
/// Its control group, below the roots.
pub(super) const GROUP: &str = "shoal.group";
/// The signal by which it is asked to stop, as a number.
pub(super) const STOP_SIGNAL: &str = "shoal.stop_signal";

/// Longest id that containerd takes.
const LONGEST: usize = 76;

/// How a found container is undone and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ways {
    pub(super) network: String,
    pub(super) group: String,
    pub(super) stop_signal: u32,
}

impl Ways {
    pub(super) fn of(labels: &HashMap<String, String>) -> Self {
        let of = |name: &str| labels.get(name).cloned();
        Self {
            network: of(NETWORK).unwrap_or_else(|| "none".to_owned()),
            group: of(GROUP).unwrap_or_default(),
            stop_signal: of(STOP_SIGNAL).and_then(|signal| signal.parse().ok()).unwrap_or(libc::SIGTERM as u32),
        }
    }

    pub(super) fn write(&self, labels: &mut HashMap<String, String>) {
        labels.insert(NETWORK.to_owned(), self.network.clone());
        labels.insert(GROUP.to_owned(), self.group.clone());
        labels.insert(STOP_SIGNAL.to_owned(), self.stop_signal.to_string());
    }
}

/// `shoal-<what>-<start>` by containerd's rules: letters and digits, single `.`, `_`, `-` between them, at most 76. Unique
/// by the start; where that itself does not fit the rules, by a hash of it.
pub(super) fn container_id(what: &str, start: &StartId) -> String {
    let plain = clean(start.as_str());
    let start = match plain == start.as_str() && plain.len() <= 40 {
        true => plain,
        false => super::groups::key(start.as_str()),
    };
    let mut id = clean(&format!("shoal-{what}"));
    // All of it is ASCII by now.
    id.truncate(LONGEST - 1 - start.len());
    format!("{}-{start}", id.trim_end_matches(['.', '_', '-']))
}

/// Only what is allowed: single separators as they are, and one `-` for each run of anything else.
fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut between = String::new();
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() {
            between.push(c);
            continue;
        }
        if !clean.is_empty() && !between.is_empty() {
            clean.push_str(if matches!(between.as_str(), "." | "_" | "-") { &between } else { "-" });
        }
        between.clear();
        clean.push(c);
    }
    clean
}

/// The signal of an image's word for it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub(super) fn signal(word: &str) -> Option<u32> {
    let word = word.trim().to_ascii_uppercase();
    if let Ok(number) = word.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = word.strip_prefix("SIG").unwrap_or(&word);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        // As the kernel and every image mean it, not as the C library counts.
        let more = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<u32>().ok()? };
        return Some(34 + more).filter(|number| *number <= 64);
    }
    let known: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    u32::try_from(known as i32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(what: &str, start: &str) -> String {
        container_id(what, &StartId::new(start).unwrap())
    }

    #[test]
    fn an_id_keeps_the_rules_of_containerd_and_is_unique_by_the_start() {
        assert_eq!(id("mail-A_b-1", "s1"), "shoal-mail-A_b-1-s1");
        assert_eq!(id("q.__--x", "s1"), "shoal-q-x-s1");
        let longest = id(&format!("{}-{}", "q".repeat(64), "i".repeat(128)), &"s".repeat(32));
        assert_eq!(longest.len(), LONGEST);
        assert!(longest.ends_with(&format!("-{}", "s".repeat(32))), "{longest}");
        assert_ne!(id("a", "s__1"), id("a", "s-1"), "what is cleaned alike stays apart");
    }

    #[test]
    fn signals_are_known_by_name_and_by_number() {
        for (word, number) in
            [("SIGTERM", 15), ("TERM", 15), ("15", 15), ("sigquit", 3), ("SIGRTMIN+3", 37), ("RTMIN", 34), ("64", 64)]
        {
            assert_eq!(signal(word), Some(number), "{word}");
        }
        for word in ["", "SIGNOPE", "0", "65", "SIGRTMIN+x", "SIGRTMIN+31"] {
            assert_eq!(signal(word), None, "{word}");
        }
    }

    #[test]
    fn what_a_record_says_is_read_back() {
        let ways = Ways { network: "bridge".into(), group: "/shoal/w/l/tasks/c".into(), stop_signal: 3 };
        let mut labels = HashMap::new();
        ways.write(&mut labels);
        assert_eq!(Ways::of(&labels), ways);
        assert_eq!(Ways::of(&HashMap::new()).stop_signal, 15);
    }
}
