//! Attributes of netlink messages (`struct nlattr`), one level at a time. For the modules of this
//! crate, for the CNI plugin, to whom decoding all of a link takes longer than the kernel's answer, and for the
//! daemon's dumps of ten thousand objects.

use std::net::IpAddr;

/// `NLA_HDRLEN`
const HEADER_LEN: usize = 4;
/// `NLA_TYPE_MASK`
const TYPE_MASK: u16 = 0x3fff;

/// The attributes of one level by type, without the flags that may be in it, and value. Ends before one that is
/// longer than what is left.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<HEADER_LEN>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(HEADER_LEN..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK, value))
    })
}

/// A number of 32 bits.
pub fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A text, without the zero byte that ends it.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// An address, whose family follows from its length.
pub fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

/// Appends an attribute.
pub(crate) fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.reserve((HEADER_LEN + value.len()).next_multiple_of(4));
    out.extend_from_slice(&((HEADER_LEN + value.len()) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_read_in_order_without_its_flags() {
        let mut bytes = Vec::new();
        attribute(&mut bytes, 7, b"abc");
        attribute(&mut bytes, 0x8000 | 3, &[]);
        attribute(&mut bytes, 7, b"defg");
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(7, &b"abc"[..]), (3, b""), (7, b"defg")]);
    }

    #[test]
    fn one_that_is_torn_or_shorter_than_its_header_ends_the_walk() {
        let mut bytes = Vec::new();
        attribute(&mut bytes, 1, b"abcd");
        let whole = bytes.len();
        attribute(&mut bytes, 2, b"abcd");
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 1);
        bytes[whole..whole + 2].copy_from_slice(&3u16.to_ne_bytes());
        assert_eq!(attributes(&bytes).count(), 1);
    }
}
