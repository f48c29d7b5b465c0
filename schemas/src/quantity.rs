//! Sizes and CPU as Kubernetes quantities; a missing bound is the word `unlimited`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {what}")]
pub struct InvalidQuantity {
    value: String,
    what: &'static str,
}

/// A number of bytes, on the wire as `"256Mi"`, `"1Gi"`, `"64k"` or `"4096"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = r"^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
pub struct Bytes(pub u64);

impl Bytes {
    /// So many mebibytes.
    pub const fn mebi(n: u64) -> Self {
        Self(n << 20)
    }
}

const UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl FromStr for Bytes {
    type Err = InvalidQuantity;
    fn from_str(value: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || InvalidQuantity {
            value: value.chars().take(64).collect(),
            what: "a size: write it as `4096`, `256Mi` or `1Gi`",
        };
        let (digits, unit) =
            UNITS.iter().find_map(|(name, unit)| Some((value.strip_suffix(name)?, *unit))).unwrap_or((value, 1));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS[..4].iter().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A number of at least 0 with up to six decimals, exactly; on the wire as `"1.50"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = r"^[0-9]+(\.[0-9]{1,6})?$"))]
pub struct Decimal(u64);

impl Decimal {
    /// From millionths.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// In millionths.
    pub const fn micros(self) -> u64 {
        self.0
    }
}

impl FromStr for Decimal {
    type Err = InvalidQuantity;
    fn from_str(value: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || InvalidQuantity {
            value: value.chars().take(64).collect(),
            what: "a number: write it as `2` or `1.50`, with at most six decimals",
        };
        let (whole, part) = value.split_once('.').unwrap_or((value, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 6 {
            return Err(invalid());
        }
        let scale = 10_u64.pow(6 - part.len() as u32);
        let part = part.parse::<u64>().map_err(|_| invalid())? * scale;
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1_000_000));
        whole.and_then(|whole| whole.checked_add(part)).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 1_000_000, self.0 % 1_000_000);
        match part {
            0 => write!(f, "{whole}"),
            part => write!(f, "{whole}.{}", format!("{part:06}").trim_end_matches('0')),
        }
    }
}

impl TryFrom<String> for Decimal {
    type Error = InvalidQuantity;
    fn try_from(value: String) -> Result<Self, InvalidQuantity> {
        value.parse()
    }
}

impl From<Decimal> for String {
    fn from(value: Decimal) -> Self {
        value.to_string()
    }
}

/// CPU time per time, in thousandths of a core; on the wire as `"500m"` or `"2"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = r"^([0-9]+m|[0-9]+(\.[0-9]{1,3})?)$"))]
pub struct Cpu {
    /// Thousandths of a core, at least 1.
    pub millis: u64,
}

impl FromStr for Cpu {
    type Err = InvalidQuantity;
    fn from_str(value: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || InvalidQuantity {
            value: value.chars().take(64).collect(),
            what: "a CPU quantity: write it as `500m`, `2` or `1.5`",
        };
        let number = |text: &str| {
            (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<u64>().ok()).flatten()
        };
        let millis = match (value.strip_suffix('m'), value.split_once('.')) {
            (Some(millis), _) => number(millis),
            (None, Some((whole, part))) if (1..=3).contains(&part.len()) => {
                let scale = 10_u64.pow(3 - part.len() as u32);
                number(whole)
                    .zip(number(part))
                    .and_then(|(whole, part)| whole.checked_mul(1_000)?.checked_add(part * scale))
            }
            (None, Some(_)) => None,
            (None, None) => number(value).and_then(|cores| cores.checked_mul(1_000)),
        };
        match millis {
            Some(millis) if millis > 0 => Ok(Self { millis }),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.millis % 1_000 {
            0 => write!(f, "{}", self.millis / 1_000),
            _ => write!(f, "{}m", self.millis),
        }
    }
}

/// A bound, or the word `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit<T> {
    /// At most this.
    At(T),
    /// No bound, said in so many words.
    Unlimited,
}

impl<T> Limit<T> {
    /// The bound, if there is one.
    pub fn bound(self) -> Option<T> {
        match self {
            Self::At(bound) => Some(bound),
            Self::Unlimited => None,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Limit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(bound) => bound.fmt(f),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;
    fn from_str(value: &str) -> Result<Self, T::Err> {
        match value {
            "unlimited" => Ok(Self::Unlimited),
            bound => bound.parse().map(Self::At),
        }
    }
}

impl<T: fmt::Display> Serialize for Limit<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Limit<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Numbers are taken too: people write `pids: 512`.
        struct Text<T>(std::marker::PhantomData<T>);
        impl<T: FromStr<Err: fmt::Display>> serde::de::Visitor<'_> for Text<T> {
            type Value = Limit<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity or the word `unlimited`")
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Limit<T>, E> {
                value.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Limit<T>, E> {
                self.visit_str(&value.to_string())
            }
        }
        deserializer.deserialize_any(Text(std::marker::PhantomData))
    }
}

impl<T> JsonSchema for Limit<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Limit".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "description": "A quantity, or the word `unlimited`.",
        })
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = InvalidQuantity;
            fn try_from(value: String) -> Result<Self, InvalidQuantity> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

text_conversions!(Bytes);
text_conversions!(Cpu);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_kubernetes_quantities() {
        for (text, bytes) in [("4096", 4096), ("256Mi", 256 << 20), ("1Gi", 1 << 30), ("64k", 64_000), ("0", 0)] {
            assert_eq!(text.parse::<Bytes>().unwrap().0, bytes, "{text}");
        }
        assert_eq!(Bytes(256 << 20).to_string(), "256Mi");
        assert_eq!(Bytes(1000).to_string(), "1000");
        for bad in ["", "Mi", "-1", "1.5Gi", "1MB", "99999999999999999999", "20000000Ti"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_is_thousandths_of_a_core() {
        for (text, millis) in [("500m", 500), ("2", 2000), ("1.5", 1500), ("0.001", 1)] {
            assert_eq!(text.parse::<Cpu>().unwrap().millis, millis, "{text}");
        }
        for bad in ["", "0", "m", "1.2345", "-1", "+1", "two", "0m"] {
            assert!(bad.parse::<Cpu>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_bound_is_a_word_never_an_absence() {
        let limit: Limit<Bytes> = serde_json::from_str(r#""unlimited""#).unwrap();
        assert_eq!(limit, Limit::Unlimited);
        let limit: Limit<u64> = serde_json::from_str("512").unwrap();
        assert_eq!(limit, Limit::At(512));
        assert!(serde_json::from_str::<Limit<Bytes>>(r#""lots""#).is_err());
        assert!(serde_json::from_str::<Limit<Bytes>>("null").is_err());
    }
}
