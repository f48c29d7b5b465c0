//! Durations and time stamps as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// A length of time, on the wire as `"500ms"`, `"90s"`, `"1h30m"`. Units: d h m s ms; no unit, no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = r"^([0-9]+(d|h|ms|m|s))+$"))]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write it as `500ms`, `90s` or `1h30m`")]
pub struct InvalidDuration(String);

/// Longest accepted: ten years, so that sums of durations and clocks cannot overflow.
const LONGEST_MS: u64 = 10 * 366 * 24 * 3_600_000;

impl FromStr for HumanDuration {
    type Err = InvalidDuration;

    fn from_str(value: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(value.chars().take(64).collect());
        let mut rest = value;
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(invalid());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit: u64 = match &rest[..letters] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(invalid()),
            };
            rest = &rest[letters..];
            total = number.checked_mul(unit).and_then(|ms| total.checked_add(ms)).ok_or_else(invalid)?;
        }
        if total > LONGEST_MS {
            return Err(invalid());
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = self.0.as_millis();
        if ms == 0 {
            return f.write_str("0s");
        }
        for (unit, name) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")] {
            if ms >= unit {
                write!(f, "{}{name}", ms / unit)?;
                ms %= unit;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = InvalidDuration;
    fn try_from(value: String) -> Result<Self, InvalidDuration> {
        value.parse()
    }
}

impl From<HumanDuration> for String {
    fn from(value: HumanDuration) -> String {
        value.to_string()
    }
}

impl From<HumanDuration> for Duration {
    fn from(value: HumanDuration) -> Duration {
        value.0
    }
}

/// A moment in UTC, on the wire as `"2026-11-20T10:00:00.000Z"` (milliseconds). Any RFC 3339 text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("format" = "date-time"))]
pub struct Timestamp(jiff::Timestamp);

/// Why a text is no time stamp.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time stamp: write it as `2026-11-20T10:00:00Z`")]
pub struct InvalidTimestamp(String);

impl Timestamp {
    /// The present, cut to milliseconds.
    pub fn now() -> Self {
        Self::from_millis(jiff::Timestamp::now().as_millisecond())
    }

    /// From milliseconds since the epoch; out of range becomes the nearest end of the range.
    pub fn from_millis(ms: i64) -> Self {
        let lowest = jiff::Timestamp::MIN.as_millisecond();
        let highest = jiff::Timestamp::MAX.as_millisecond();
        Self(jiff::Timestamp::from_millisecond(ms.clamp(lowest, highest)).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
    }

    /// Milliseconds since the epoch.
    pub fn as_millis(self) -> i64 {
        self.0.as_millisecond()
    }

    /// Time since `earlier`; zero if that lies ahead.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.as_millis() - earlier.as_millis()).unwrap_or(0))
    }

    /// The moment `after` later.
    pub fn plus(self, after: Duration) -> Self {
        let ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.as_millis().saturating_add(ms))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;
    fn from_str(value: &str) -> Result<Self, InvalidTimestamp> {
        let parsed: jiff::Timestamp = value.parse().map_err(|_| InvalidTimestamp(value.chars().take(64).collect()))?;
        Ok(Self::from_millis(parsed.as_millisecond()))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = InvalidTimestamp;
    fn try_from(value: String) -> Result<Self, InvalidTimestamp> {
        value.parse()
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_what_they_print() {
        for (text, ms) in [("500ms", 500), ("90s", 90_000), ("1h30m", 5_400_000), ("0s", 0), ("2d", 172_800_000)] {
            let parsed: HumanDuration = text.parse().unwrap();
            assert_eq!(parsed.0.as_millis(), ms, "{text}");
            assert_eq!(parsed.to_string().parse::<HumanDuration>().unwrap(), parsed);
        }
        assert_eq!(HumanDuration::seconds(1800).to_string(), "30m");
        assert_eq!(HumanDuration::seconds(90).to_string(), "1m30s");
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in ["", "10", "-1s", "1x", "s", "1.5s", "99999999999999999999s", "9999999d", "1h 30m"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn time_stamps_have_milliseconds_and_utc() {
        let t: Timestamp = "2026-11-20T11:00:00.1239+01:00".parse().unwrap();
        assert_eq!(t.to_string(), "2026-11-20T10:00:00.123Z");
        assert_eq!(t.plus(Duration::from_secs(1)).since(t), Duration::from_secs(1));
        assert_eq!(t.since(t.plus(Duration::from_secs(1))), Duration::ZERO);
    }
}
