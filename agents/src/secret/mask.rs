//! The mask: finds secrets in texts and streams, in every usual way of writing them, and hides them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use zeroize::Zeroizing;

use super::Secret;
use super::written::{Form, forms};

/// What stands where a secret stood.
const HIDDEN: &[u8] = b"***";
/// Shorter ones cannot be hidden: they are part of everything.
pub const LEAST_BYTES: usize = 4;

/// Hides every known secret in texts and streams: as it is, and as base64 (also inside longer base64), hex,
/// percent-encoded, JSON-escaped and shell-quoted. The default hides nothing.
///
/// What it cannot see: base64 that is broken into lines within a secret, secrets that are encrypted, compressed or
/// written backwards. It is there against accidents.
///
/// The forms are wiped once the automaton is built, and the streams wipe what they held back. The automaton itself keeps
/// the letters of all secrets in its transitions; aho-corasick does not wipe these when the last clone is dropped.
#[derive(Clone, Default)]
pub struct Mask(Option<Arc<Known>>);

/// A secret that is too short to be hidden.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("secret `{name}` is shorter than {LEAST_BYTES} bytes: it cannot be hidden in logs without hiding everything")]
pub struct TooShort {
    /// Its name.
    pub name: String,
}

struct Known {
    automaton: NFA,
    start: StateID,
    /// Letters of a form's beginning that are read in a state: so many may yet become a secret.
    depths: HashMap<StateID, usize>,
    /// The secret's name of each form.
    names: Vec<Arc<str>>,
}

impl Mask {
    /// A mask over these, by name. Space around a value is no part of it, as the end of a file's line.
    pub fn new<'a>(secrets: impl IntoIterator<Item = (&'a str, &'a Secret)>) -> Result<Self, TooShort> {
        let mut named: Vec<(Form, Arc<str>)> = Vec::new();
        for (name, secret) in secrets {
            let value = secret.expose().trim();
            if value.len() < LEAST_BYTES {
                return Err(TooShort { name: name.to_owned() });
            }
            let name: Arc<str> = name.into();
            let forms = forms(value).into_iter().chain(forms(secret.expose()));
            named.extend(forms.map(|form| (form, name.clone())));
        }
        named.sort_by(|(one, _), (other, _)| one.as_slice().cmp(other));
        named.dedup_by(|(one, _), (other, _)| one.as_slice() == other.as_slice());
        if named.is_empty() {
            return Ok(Self::default());
        }
        let automaton = NFA::builder()
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(named.iter().map(|(form, _)| form.as_slice()))
            .expect("secrets are far below two thousand million letters");
        let start = automaton.start_state(Anchored::No).expect("the automaton is built for unanchored searches too");
        let mut depths = HashMap::from([(start, 0)]);
        for (form, _) in &named {
            let mut state = start;
            for (read, letter) in form.iter().enumerate() {
                state = automaton.next_state(Anchored::No, state, *letter);
                depths.insert(state, read + 1);
            }
        }
        Ok(Self(Some(Arc::new(Known {
            automaton,
            start,
            depths,
            names: named.into_iter().map(|(_, name)| name).collect(),
        }))))
    }

    /// The text with `***` for each secret.
    pub fn text(&self, text: &str) -> String {
        if self.0.is_none() {
            return text.to_owned();
        }
        let mut stream = self.stream();
        let mut bytes = stream.push(text.as_bytes());
        bytes.extend(stream.finish());
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// A mask over a stream that comes in pieces.
    pub fn stream(&self) -> MaskStream {
        MaskStream {
            state: self.0.as_ref().map(|known| known.start),
            known: self.0.clone(),
            held: Zeroizing::default(),
            from: 0,
            hidden: Vec::new(),
        }
    }

    /// The names of the secrets that are somewhere in `bytes`, each once.
    pub fn find(&self, bytes: &[u8]) -> BTreeSet<&str> {
        let Some(known) = self.0.as_ref() else { return BTreeSet::new() };
        let (mut state, mut found) = (known.start, BTreeSet::new());
        for letter in bytes {
            state = known.automaton.next_state(Anchored::No, state, *letter);
            if known.automaton.is_match(state) {
                let forms = (0..known.automaton.match_len(state)).map(|n| known.automaton.match_pattern(state, n));
                found.extend(forms.map(|form| &*known.names[form.as_usize()]));
            }
        }
        found
    }
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut names: Vec<&str> = self.0.iter().flat_map(|known| known.names.iter().map(|name| &**name)).collect();
        names.sort_unstable();
        names.dedup();
        f.debug_tuple("Mask").field(&names).finish()
    }
}

/// Masks a stream. It holds back no more than what may yet become a secret.
pub struct MaskStream {
    known: Option<Arc<Known>>,
    state: Option<StateID>,
    /// Read and not yet given out.
    held: Zeroizing<Vec<u8>>,
    /// Place of the first held letter in the whole stream.
    from: u64,
    /// Places of secrets, in order, apart from each other.
    hidden: Vec<Span>,
}

struct Span {
    start: u64,
    end: u64,
    /// `***` was given out for it.
    told: bool,
}

impl MaskStream {
    /// Takes a piece, and gives out what is certain.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let (Some(known), Some(mut state)) = (self.known.clone(), self.state) else { return piece.to_vec() };
        let mut at = self.from + self.held.len() as u64;
        self.hold(piece);
        for letter in piece {
            state = known.automaton.next_state(Anchored::No, state, *letter);
            at += 1;
            if known.automaton.is_match(state) {
                let forms = (0..known.automaton.match_len(state)).map(|i| known.automaton.match_pattern(state, i));
                let longest = forms.map(|form| known.automaton.pattern_len(form)).max().unwrap_or(0);
                self.hide(at - longest as u64, at);
            }
        }
        self.state = Some(state);
        let undecided = known.depths.get(&state).copied().unwrap_or(0);
        self.give(at - undecided as u64)
    }

    /// The stream is over: gives out the rest.
    pub fn finish(&mut self) -> Vec<u8> {
        self.state = self.known.as_ref().map(|known| known.start);
        self.give(self.from + self.held.len() as u64)
    }

    /// A vector that grows leaves a copy behind, so this one never grows in place.
    fn hold(&mut self, piece: &[u8]) {
        let mut held = Zeroizing::new(Vec::with_capacity(self.held.len() + piece.len()));
        held.extend_from_slice(&self.held);
        held.extend_from_slice(piece);
        self.held = held;
    }

    fn hide(&mut self, mut start: u64, end: u64) {
        let mut told = false;
        while let Some(last) = self.hidden.pop_if(|last| last.end > start) {
            start = start.min(last.start);
            told |= last.told;
        }
        self.hidden.push(Span { start, end, told });
    }

    /// Everything before `until`, which no later letter can turn into a secret.
    fn give(&mut self, until: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = self.from;
        let held = |from: u64, to: u64| &self.held[(from - self.from) as usize..(to - self.from) as usize];
        for span in self.hidden.iter_mut().take_while(|span| span.start < until) {
            if span.start > at {
                out.extend_from_slice(held(at, span.start));
            }
            if !std::mem::replace(&mut span.told, true) {
                out.extend_from_slice(HIDDEN);
            }
            at = at.max(span.end.min(until));
        }
        if at < until {
            out.extend_from_slice(held(at, until));
        }
        self.hidden.retain(|span| span.end > until);
        self.held = Zeroizing::new(held(until, self.from + self.held.len() as u64).to_vec());
        self.from = until;
        out
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
