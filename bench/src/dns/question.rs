//! Questions, written beforehand, and what an answer to them says (RFC 1035 §4). Used by the group. Not by the
//! library that Loden's server uses: an error in that would judge itself right, and a client that takes each
//! message apart would be slower than a server.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail, ensure};

/// A question as it goes over the wire, under id 0.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    bytes: Vec<u8>,
    expected: Said,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// One address.
    Address(Ipv4Addr),
    /// One name, without the last dot.
    Name(String),
    /// There is no such name.
    NoName,
}

const HEADER: usize = 12;
/// In the third byte: an answer, and recursion desired as resolvers on hosts do.
const ANSWER: u8 = 0x80;
const RECURSION_DESIRED: u8 = 0x01;
const NO_ERROR: u8 = 0;
const NO_NAME: u8 = 3;
const A: u16 = 1;
const PTR: u16 = 12;
const INTERNET: u16 = 1;
/// More pointers than this in one name run in circles.
const MOST_POINTERS: usize = 16;

impl Question {
    /// For the address of a name. `expected` tells what is right.
    pub(crate) fn address(name: &str, expected: Said) -> Self {
        Self::new(name, A, expected)
    }

    /// For the name of an address.
    pub(crate) fn reverse(address: Ipv4Addr, expected: Said) -> Self {
        let [a, b, c, d] = address.octets();
        Self::new(&format!("{d}.{c}.{b}.{a}.in-addr.arpa"), PTR, expected)
    }

    fn new(name: &str, kind: u16, expected: Said) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[2] = RECURSION_DESIRED;
        bytes[5] = 1;
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap_or_else(|_| unreachable!("labels here are short")));
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        bytes.extend([kind.to_be_bytes(), INTERNET.to_be_bytes()].concat());
        Self { bytes, expected }
    }

    /// What goes over the wire, under this id.
    pub(crate) fn write(&self, id: u16, to: &mut Vec<u8>) {
        to.clear();
        to.extend_from_slice(&id.to_be_bytes());
        to.extend_from_slice(&self.bytes[2..]);
    }

    /// What is right.
    pub(crate) fn expected(&self) -> &Said {
        &self.expected
    }

    /// An error unless this answers the question, and rightly.
    pub(crate) fn judge(&self, answer: &[u8]) -> Result<()> {
        let said = self.read(answer)?;
        ensure!(said == self.expected, "a wrong answer: {said:?} instead of {:?}", self.expected);
        Ok(())
    }

    /// What an answer to this question says.
    pub(crate) fn read(&self, answer: &[u8]) -> Result<Said> {
        ensure!(answer.len() >= self.bytes.len(), "an answer of {} bytes", answer.len());
        ensure!(answer[2] & ANSWER != 0, "a question instead of an answer");
        let (asked, repeated) = (&self.bytes[HEADER..], &answer[HEADER..self.bytes.len()]);
        ensure!(
            number(answer, 4)? == 1 && asked.eq_ignore_ascii_case(repeated),
            "the answer to another question"
        );
        let count = number(answer, 6)?;
        match answer[3] & 0x0f {
            NO_NAME if count == 0 => return Ok(Said::NoName),
            NO_ERROR if count == 1 => {}
            code => bail!("an answer with code {code} and {count} records"),
        }
        // Owner, kind, class, lifetime, length, data.
        let (_, at) = name(answer, self.bytes.len())?;
        let (kind, length, data) = (number(answer, at)?, number(answer, at + 8)?, at + 10);
        match (kind, length) {
            (A, 4) => {
                let octets = answer.get(data..data + 4).context("a cut address")?;
                Ok(Said::Address(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])))
            }
            (PTR, _) => Ok(Said::Name(name(answer, data)?.0)),
            _ => bail!("a record of kind {kind} with {length} bytes"),
        }
    }
}

/// The id of a message.
pub(crate) fn id(message: &[u8]) -> Result<u16> {
    number(message, 0)
}

fn number(message: &[u8], at: usize) -> Result<u16> {
    let bytes = message.get(at..at + 2).context("a message that is cut off")?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The name that begins there, and where it ends; labels may be elsewhere in the message (§4.1.4).
fn name(message: &[u8], start: usize) -> Result<(String, usize)> {
    let (mut text, mut at, mut end, mut pointers) = (String::new(), start, None, 0);
    loop {
        let length = *message.get(at).context("a name that is cut off")?;
        match length {
            0 => return Ok((text, end.unwrap_or(at + 1))),
            0xc0.. => {
                pointers += 1;
                ensure!(pointers <= MOST_POINTERS, "a name that runs in circles");
                end = end.or(Some(at + 2));
                at = usize::from(number(message, at)? & 0x3fff);
            }
            _ => {
                let label = message.get(at + 1..at + 1 + usize::from(length));
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&String::from_utf8_lossy(label.context("a label that is cut off")?));
                at += 1 + usize::from(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 5, 7, 9);

    /// The answer to a question, with this code and these records' bytes.
    fn answer(question: &Question, code: u8, records: &[&[u8]]) -> Vec<u8> {
        let mut message = Vec::new();
        question.write(7, &mut message);
        message[2] |= ANSWER;
        message[3] = code;
        message[7] = u8::try_from(records.len()).expect("few");
        message.extend(records.concat());
        message
    }

    #[test]
    fn the_right_answer_is_right_and_every_other_is_not() {
        let question = Question::address("dn1.loden.internal", Said::Address(ADDRESS));
        let record = |last| [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 5, 7, last];
        let right = answer(&question, NO_ERROR, &[&record(9)]);
        assert_eq!(
            (question.read(&right).expect("read"), id(&right).expect("id")),
            (Said::Address(ADDRESS), 7)
        );
        question.judge(&right).expect("right");
        for wrong in [
            answer(&question, NO_ERROR, &[&record(8)]),
            answer(&question, NO_ERROR, &[&record(9), &record(8)]),
            answer(&question, NO_ERROR, &[]),
            answer(&question, NO_NAME, &[]),
            answer(&question, 2, &[]),
            answer(&Question::address("dn2.loden.internal", Said::NoName), NO_ERROR, &[&record(9)]),
            right[..right.len() - 1].to_vec(),
        ] {
            question.judge(&wrong).expect_err("wrong");
        }
    }

    #[test]
    fn names_are_read_through_pointers() {
        let question = Question::reverse(ADDRESS, Said::Name("dn1.loden.internal".into()));
        assert_eq!(&question.bytes[HEADER..HEADER + 4], b"\x019\x017");
        let whole = b"\xc0\x0c\0\x0c\0\x01\0\0\0\x05\0\x14\x03dn1\x05loden\x08internal\0";
        question.judge(&answer(&question, NO_ERROR, &[whole])).expect("right");
        // The name's end is in the authority section behind it.
        let mut message =
            answer(&question, NO_ERROR, &[b"\xc0\x0c\0\x0c\0\x01\0\0\0\x05\0\x06\x03dn1\xc0\x39"]);
        message.resize(0x39, 0);
        message.extend(b"\x05loden\x08internal\0");
        question.judge(&message).expect("right");
        let circle = answer(&question, NO_ERROR, &[b"\xc0\x0c\0\x0c\0\x01\0\0\0\x05\0\x02\xc0\x37"]);
        question.judge(&circle).expect_err("it runs in circles");
    }

    #[test]
    fn no_name_is_told_as_such() {
        let question = Question::address("nobody.loden.internal", Said::NoName);
        question.judge(&answer(&question, NO_NAME, &[])).expect("right");
        question.judge(&answer(&question, NO_ERROR, &[])).expect_err("that says that there is one");
    }
}
