//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address; as text six lower-case hexadecimal pairs with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether one interface can hold it: not multicast (bit 0 of the first byte), not all zero.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The same bits made locally administered (bit 1 set) and unicast (bit 0 clear), IEEE 802-2014 §8.4.
    pub fn local(bytes: [u8; 6]) -> Self {
        let mut bytes = bytes;
        bytes[0] = bytes[0] & !1 | 2;
        Self(bytes)
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address such as 0a:58:0a:05:07:02")]
pub struct MacError(pub String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError(text.chars().take(64).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(bad)?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Mac;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an Ethernet address")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Mac, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["0a:58:0a:05:07:02", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(text.parse::<Mac>().map(|m| m.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("AA-bb-CC-dd-EE-ff".parse::<Mac>().map(|m| m.to_string()), Ok("aa:bb:cc:dd:ee:ff".into()));
    }

    #[test]
    fn what_is_not_six_pairs_is_refused() {
        for text in [
            "",
            "0a:58:0a:05:07",
            "0a:58:0a:05:07:02:01",
            "0a:58:0a:05:07:0g",
            "0a58.0a05.0702",
            "+1:58:0a:05:07:02",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_local_address_is_unicast() {
        let mac = Mac::local([0xff; 6]);
        assert_eq!(mac.to_string(), "fe:ff:ff:ff:ff:ff");
        assert!(mac.is_unicast());
        assert!(!Mac([0; 6]).is_unicast() && !Mac([1, 0, 0, 0, 0, 0]).is_unicast());
    }
}
