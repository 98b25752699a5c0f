//! Names as the DNS has them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest label and longest name in characters, without the last dot (RFC 1035 §2.3.4: 63 octets, and 255
/// with the lengths of all labels).
const LONGEST_LABEL: usize = 63;
const LONGEST_NAME: usize = 253;

/// One label or more of lower-case letters, digits, hyphens and underscores, joined by dots. The last dot of a
/// full name is left out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Box<str>);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no DNS name: {reason}")]
pub struct DnsNameError {
    name: String,
    reason: &'static str,
}

impl DnsName {
    /// The text, in lower case and without a last dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its labels, the leftmost first.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// The zone of an overlay that names no other. `internal` is nobody's in the Internet (ICANN's board,
    /// 2024.07.29.06).
    pub fn default_zone() -> Self {
        Self("loden.internal".into())
    }

    /// `self`, below `parent`.
    pub fn below(&self, parent: &DnsName) -> Result<DnsName, DnsNameError> {
        format!("{self}.{parent}").parse()
    }

    /// What stands before the zone in a full name; `None` for one that is not below the zone.
    pub fn relative_to(&self, zone: &DnsName) -> Option<DnsName> {
        let rest = self.0.strip_suffix(zone.as_str())?.strip_suffix('.')?;
        Some(DnsName(rest.into()))
    }

    /// The name one label up; `None` for a single label.
    pub fn parent(&self) -> Option<DnsName> {
        self.0.split_once('.').map(|(_, parent)| DnsName(parent.into()))
    }
}

impl FromStr for DnsName {
    type Err = DnsNameError;

    fn from_str(text: &str) -> Result<Self, DnsNameError> {
        let error = |reason| Err(DnsNameError { name: text.chars().take(300).collect(), reason });
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return error("it is empty");
        }
        if name.len() > LONGEST_NAME {
            return error("it has more than 253 characters");
        }
        for label in name.split('.') {
            if label.is_empty() {
                return error("between two dots there must be something");
            }
            if label.len() > LONGEST_LABEL {
                return error("a part between dots has more than 63 characters");
            }
            // Underscores are no host names' (RFC 952), but containers have them.
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return error("only letters, digits, hyphens, underscores and dots can be in it");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return error("a part between dots begins or ends with a hyphen");
            }
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for DnsName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DnsName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        text.parse().expect(text)
    }

    #[test]
    fn case_and_the_last_dot_make_no_difference() {
        assert_eq!(name("DN1.Loden.Internal."), name("dn1.loden.internal"));
        assert_eq!(name("my_app").as_str(), "my_app");
    }

    #[test]
    fn what_is_no_name_is_told_why() {
        let long = "a".repeat(64);
        let longer = vec!["a".repeat(63); 4].join(".");
        for (text, reason) in [
            ("", "empty"),
            (".", "empty"),
            ("a..b", "between two dots"),
            ("-a", "hyphen"),
            ("a-.b", "hyphen"),
            ("a b", "only letters"),
            ("a/b", "only letters"),
            ("ä", "only letters"),
            (long.as_str(), "63"),
            (longer.as_str(), "253"),
        ] {
            let error = text.parse::<DnsName>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_and_its_zone() {
        let zone = name("loden.internal");
        let full = name("dn1.hdfs").below(&zone).expect("short");
        assert_eq!(full, name("dn1.hdfs.loden.internal"));
        assert_eq!(full.relative_to(&zone), Some(name("dn1.hdfs")));
        assert_eq!(zone.relative_to(&zone), None);
        assert_eq!(name("dn1.xloden.internal").relative_to(&zone), None);
        assert_eq!(full.parent(), Some(name("hdfs.loden.internal")));
        assert_eq!(name("internal").parent(), None);
        assert!(name("a").below(&name(&vec!["a".repeat(60); 4].join("."))).is_ok());
        assert!(name(&"a".repeat(63)).below(&name(&vec!["a".repeat(60); 4].join("."))).is_err());
    }
}
