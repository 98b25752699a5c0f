//! Versions of the CNI specification: which the plugin speaks, and what each allows. The
//! words of the errors are those of Go's `pkg/skel` and `pkg/version`. Used by `request.rs`
//! and `result.rs`.

use crate::environment::Command;
use crate::error::Error;

/// A version of the CNI specification that this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0, which is also what a configuration without a version means
    V0_1_0,
    /// 0.2.0, the last whose results have `ip4` and `ip6`
    V0_2_0,
    /// 0.3.0, the first with chains
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, the first with CHECK and with `prevResult` on DEL
    V0_4_0,
    /// 1.0.0, the first without `version` in `ips`
    V1_0_0,
    /// 1.1.0, the first with GC and STATUS and with `mtu` in `interfaces`
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Version; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const NEWEST: Version = Self::V1_1_0;

    /// As in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version with exactly this text.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// The version of a configuration (`cniVersion`, empty where it has none), if it allows the command.
    pub fn of_config(text: &str, command: Command) -> Result<Self, Error> {
        let text = if text.is_empty() { Self::V0_1_0.as_str() } else { text };
        if let Some((name, since)) = command.since() {
            let config = parts(text)?;
            if config < parts(since.as_str())? {
                return Err(Error::CommandTooNew(name));
            }
            if config > parts(Self::NEWEST.as_str())? {
                return Err(Error::ConfigTooNew(name));
            }
        }
        Self::find(text).ok_or_else(|| Error::Version { config: text.to_owned() })
    }
}

/// A version as numbers, as Go's `version.ParseVersion` reads it.
fn parts(text: &str) -> Result<Vec<u32>, Error> {
    let pieces: Vec<&str> = text.split('.').collect();
    if pieces.len() > 3 {
        return Err(Error::Decode(format!("invalid version {text:?}: too many parts")));
    }
    let mut numbers = Vec::with_capacity(3);
    for (piece, name) in pieces.iter().zip(["major", "minor", "micro"]) {
        numbers.push(piece.parse().map_err(|_| {
            Error::Decode(format!(
                "invalid version {text:?}: failed to convert {name} version part {piece:?}"
            ))
        })?);
    }
    numbers.resize(3, 0);
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_the_version_that_brought_it() {
        for (command, name, since) in [
            (Command::Check, "CHECK", "0.4.0"),
            (Command::Gc, "GC", "1.1.0"),
            (Command::Status, "STATUS", "1.1.0"),
        ] {
            for version in Version::ALL {
                let result = Version::of_config(version.as_str(), command);
                if version.as_str() >= since {
                    assert_eq!(result.ok(), Some(version));
                } else {
                    let text = result.expect_err(name).to_string();
                    assert_eq!(text, format!("config version does not allow {name}"));
                }
            }
            let text = Version::of_config("2.0.0", command).expect_err("too new").to_string();
            assert_eq!(text, format!("plugin version does not allow {name}"));
        }
        for version in Version::ALL {
            assert_eq!(Version::of_config(version.as_str(), Command::Add).ok(), Some(version));
            assert_eq!(Version::of_config(version.as_str(), Command::Del).ok(), Some(version));
        }
    }

    #[test]
    fn other_versions_are_refused_in_gos_words() {
        for (version, command, message) in [
            ("0.1", Command::Check, "config version does not allow CHECK"),
            ("1.0", Command::Check, "incompatible CNI versions"),
            ("1.x.0", Command::Check, "invalid version \"1.x.0\""),
            ("1.0.0.0", Command::Gc, "too many parts"),
            ("2.0.0", Command::Add, "incompatible CNI versions"),
            ("1.x.0", Command::Del, "incompatible CNI versions"),
        ] {
            let error = Version::of_config(version, command).expect_err(version);
            assert!(error.to_string().contains(message), "{version}: {error}");
        }
        assert_eq!(Version::of_config("", Command::Add).ok(), Some(Version::V0_1_0));
    }
}
