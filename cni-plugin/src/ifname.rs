//! Names of network interfaces that the kernel and Go's CNI library both accept.

use std::fmt;

/// A valid interface name: 1 to 15 bytes, no slash, colon or white space, neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IfName(String);

/// The longest name, `IFNAMSIZ` less the terminating zero.
const MAX_LEN: usize = 15;

impl IfName {
    /// Checks a name; the error is Go's `utils.ValidateInterfaceName`'s, word for word.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() {
            return Err("interface name is empty");
        }
        if name.len() > MAX_LEN {
            return Err("interface name is too long");
        }
        if name == "." || name == ".." {
            return Err("interface name is . or ..");
        }
        if name.chars().any(|c| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
            return Err("interface name contains / or : or whitespace characters");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{a0}b", "sixteen-letters-"] {
            assert!(IfName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["eth0", "a", "fifteen-letters", "net.1", "é"] {
            assert_eq!(IfName::new(good).map(|n| n.as_str().to_owned()), Ok(good.to_owned()));
        }
    }
}
