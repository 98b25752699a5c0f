//! Where a flag's value can come from besides the command line: `LODEN_…` in the environment,
//! flannel's `FLANNELD_…` for a start, and the configuration file. All become clap's environment
//! names and defaults, so that every flag has them without saying so.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, ArgAction, Command};

/// The default configuration file; it may be absent.
const DEFAULT_FILE: &str = "/etc/loden/loden.toml";

/// Values from files and from flannel's environment.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// By flag name without dashes: each value of a list by itself.
    file: BTreeMap<String, Vec<String>>,
    file_path: String,
    flanneld: BTreeMap<String, String>,
    /// What the log should say.
    pub(super) notes: Vec<String>,
    /// What is wrong with keys of the file that no flag has: most likely misspelt.
    pub(super) unknown_keys: Option<String>,
}

impl Sources {
    /// Reads the file that `--config-file` or `LODEN_CONFIG_FILE` names, or the default one.
    pub(super) fn read() -> Result<Self, String> {
        let mut sources = Self::default();
        let named = named_file();
        sources.file_path = named.clone().unwrap_or_else(|| DEFAULT_FILE.to_owned());
        match std::fs::read_to_string(&sources.file_path) {
            Ok(text) => sources.file = parse(&text).map_err(|e| format!("{}: {e}", sources.file_path))?,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(format!("cannot read the configuration file {}: {error}", sources.file_path));
            }
        }
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            if let Some(flag) = name.strip_prefix("FLANNELD_") {
                sources.flanneld.insert(flag.to_ascii_lowercase().replace('_', "-"), value.to_owned());
            }
        }
        let names: Vec<String> = sources
            .flanneld
            .keys()
            .map(|f| format!("FLANNELD_{}", f.to_ascii_uppercase().replace('-', "_")))
            .collect();
        if !names.is_empty() {
            sources.notes.push(format!(
                "found flannel's {} in the environment; LODEN_… is the name here",
                names.join(", ")
            ));
        }
        Ok(sources)
    }

    /// Gives every flag of every subcommand its environment name and its default.
    pub(super) fn fill_in(&self, command: Command) -> Command {
        let names: Vec<String> = command.get_subcommands().map(|s| s.get_name().to_owned()).collect();
        let command = command.mut_args(|arg| self.argument(arg));
        names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| self.fill_in(sub)))
    }

    fn argument(&self, arg: Arg) -> Arg {
        let Some(name) = arg.get_long().map(str::to_owned) else { return arg };
        // A switch of one command, not a setting of the host.
        if !matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
            return arg;
        }
        // Named like a setting of the host, but something else (`docker-opts --network`).
        if arg.get_id().as_str().replace('_', "-") != name {
            return arg;
        }
        let environment = format!("LODEN_{}", name.to_ascii_uppercase().replace('-', "_"));
        let arg = arg.env(environment).hide_env(true);
        if let Some(value) = self.flanneld.get(&name) {
            arg.default_value(value.clone())
        } else if let Some(values) = self.file.get(&name) {
            arg.default_values(values.clone())
        } else {
            arg
        }
    }

    /// Compares the keys of the file with the flags of this command.
    pub(super) fn look_for_unknown_keys(&mut self, command: Option<&Command>) {
        let flags: BTreeSet<&str> =
            command.into_iter().flat_map(Command::get_arguments).filter_map(Arg::get_long).collect();
        let known = |key: &str| flags.contains(key);
        let unknown: Vec<&str> = self.file.keys().map(String::as_str).filter(|k| !known(k)).collect();
        self.unknown_keys = (!unknown.is_empty()).then(|| {
            format!(
                "{}: unknown key {}; the keys are the long flags of loden daemon (loden daemon --help)",
                self.file_path,
                unknown.join(", ")
            )
        });
    }
}

fn named_file() -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--config-file" {
            return arguments.next();
        }
        if let Some(path) = argument.strip_prefix("--config-file=") {
            return Some(path.to_owned());
        }
    }
    std::env::var("LODEN_CONFIG_FILE").ok()
}

fn parse(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    table.into_iter().map(|(key, value)| Ok((key.clone(), values(&key, value)?))).collect()
}

fn values(key: &str, value: toml::Value) -> Result<Vec<String>, String> {
    use toml::Value as V;
    Ok(match value {
        V::String(text) => vec![text],
        V::Integer(number) => vec![number.to_string()],
        V::Boolean(on) => vec![on.to_string()],
        V::Array(all) => {
            let nested: Result<Vec<Vec<String>>, String> = all.into_iter().map(|v| values(key, v)).collect();
            nested?.concat()
        }
        // label = { rack = "r7" }
        V::Table(all) => all
            .into_iter()
            .map(|(name, v)| values(key, v).map(|v| format!("{name}={}", v.concat())))
            .collect::<Result<_, _>>()?,
        other => {
            return Err(format!(
                "{key} is {}, but must be a text, a number, true, false or a list of them",
                other.type_str()
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_misspelt_key_is_named_and_the_daemons_flags_are_known() {
        let command = crate::cli::Cli::command();
        let told = |text: &str| {
            let mut sources = Sources { file: parse(text).expect("valid"), ..Sources::default() };
            sources.look_for_unknown_keys(command.find_subcommand("daemon"));
            sources.unknown_keys
        };
        assert_eq!(told("ip-masq = false\nsubnet-lease-ttl = 60"), None);
        let problem = told("ip-masp = false\nsubnet-lease-ttl = 60").expect("a problem");
        assert!(problem.contains("unknown key ip-masp;"), "{problem}");
    }

    #[test]
    fn lists_numbers_switches_and_tables_become_values() {
        let file = parse("etcd-endpoints = [\"http://a\", \"http://b\"]\nip-masq = false\nsubnet-lease-ttl = 60\n[label]\nrack = \"r7\"\n").expect("valid");
        assert_eq!(file["etcd-endpoints"], ["http://a", "http://b"]);
        assert_eq!(
            (file["ip-masq"].concat(), file["subnet-lease-ttl"].concat()),
            ("false".into(), "60".into())
        );
        assert_eq!(file["label"], ["rack=r7"]);
        assert!(parse("= nonsense").is_err() && parse("x = 1979-05-27").is_err());
    }
}
