//! What there is ten thousand times, kept small: every host holds what every other says of itself.

use std::borrow::Cow;
use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text in 24 bytes, if it has at most 22 or is an id as Loden or the kernel writes it. Any text
/// survives, to the byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(Form);

/// No text has two forms, so equal texts have equal ones.
#[derive(Clone, PartialEq, Eq)]
enum Form {
    /// Its length, and zeros behind it.
    Short(u8, [u8; SHORT]),
    /// 32 hexadecimal digits, such as a host id.
    Digits([u8; 16]),
    /// The same in groups of 8, 4, 4, 4 and 12, such as a boot id.
    Uuid([u8; 16]),
    Long(Box<str>),
}

const SHORT: usize = 22;
/// Where a UUID has its hyphens.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl Text {
    /// Whether it has no character.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Form::Short(0, _))
    }

    /// The text; made anew only for an id.
    pub fn to_str(&self) -> Cow<'_, str> {
        match &self.0 {
            Form::Short(length, bytes) => String::from_utf8_lossy(&bytes[..usize::from(*length)]),
            Form::Digits(id) => format!("{:032x}", u128::from_be_bytes(*id)).into(),
            Form::Uuid(id) => {
                let mut text = format!("{:032x}", u128::from_be_bytes(*id));
                HYPHENS.iter().for_each(|at| text.insert(*at, '-'));
                text.into()
            }
            Form::Long(text) => (&**text).into(),
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let small = match text.len() {
            length @ 0..=SHORT => {
                let mut bytes = [0; SHORT];
                bytes[..length].copy_from_slice(text.as_bytes());
                Some(Form::Short(length as u8, bytes))
            }
            32 => id(text.bytes()).map(Form::Digits),
            36 if HYPHENS.iter().all(|at| text.as_bytes()[*at] == b'-') => {
                let digits = text.bytes().enumerate().filter(|(at, _)| !HYPHENS.contains(at));
                id(digits.map(|(_, digit)| digit)).map(Form::Uuid)
            }
            _ => None,
        };
        Self(small.unwrap_or_else(|| Form::Long(text.into())))
    }
}

/// The number that 32 hexadecimal digits are, if they are written as it would be.
fn id(digits: impl Iterator<Item = u8>) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    for (at, digit) in digits.enumerate() {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        id[at / 2] = id[at / 2] << 4 | value;
    }
    Some(id)
}

impl Default for Text {
    fn default() -> Self {
        Self(Form::Short(0, [0; SHORT]))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == Self::from(other).0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_str())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_str(), f)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_str())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(Read)
    }
}

/// What is nearly always its type's default, and then takes no room.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Rare<T>(Option<Box<T>>);

impl<T> Rare<T> {
    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        self.0.is_none()
    }

    /// The value; `None` for the default.
    pub fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }
}

impl<T: Default + PartialEq> From<T> for Rare<T> {
    fn from(value: T) -> Self {
        Self((value != T::default()).then(|| Box::new(value)))
    }
}

impl<'de, T: Deserialize<'de> + Default + PartialEq> Deserialize<'de> for Rare<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_and_short_texts_take_no_allocation() {
        assert_eq!(size_of::<Text>(), 24);
        let id = "00d1c2b3a49586770123456789abcdef";
        for text in ["", "0.1.0", "host-9999.example.com", id, "6f1c0d1e-9c5b-4e55-8d03-0123456789ab"] {
            assert!(!matches!(Text::from(text).0, Form::Long(_)), "{text}");
        }
        for other in [id.to_uppercase(), id.replace('0', "g"), format!("{id}0000"), id.replace('0', "+")] {
            assert!(matches!(Text::from(other.as_str()).0, Form::Long(_)), "{other}");
        }
    }

    proptest! {
        #[test]
        fn every_text_survives(
            text in prop_oneof![
                ".{0,40}",
                "[0-9a-f]{31,33}",
                "[0-9a-fA-F]{32}",
                "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
                "[0-9a-f-]{36}",
            ],
            other in ".{0,3}",
        ) {
            let small = Text::from(text.as_str());
            prop_assert_eq!(small.to_str(), text.as_str());
            prop_assert_eq!(small.is_empty(), text.is_empty());
            prop_assert_eq!(small == *other, text == other);
            prop_assert!(small == *text);
            let json = serde_json::to_string(&small).expect("a text");
            prop_assert_eq!(&json, &serde_json::to_string(&text).expect("a text"));
            prop_assert_eq!(serde_json::from_str::<Text>(&json).expect("a text"), small);
        }
    }
}
