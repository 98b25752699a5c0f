//! One call of the plugin as a plugin of netavark's, which is what Podman has instead of CNI from
//! version 5 on: a subcommand as the first argument, JSON on standard input and output (netavark's
//! `plugin-API.md`). Called by `main.rs`; `netavark_config.rs` reads the input.
//!
//! | subcommand | by whom, when | standard input | standard output |
//! |---|---|---|---|
//! | `create` | `podman network create` | the network | the network |
//! | `setup <netns>` | a container starts, or is connected | network and container | a status block |
//! | `teardown <netns>` | it ends, or is disconnected | the same | |
//! | `info` | people | | versions |
//!
//! An error is `{"error": "…"}` with exit code 1.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::netavark_config::{self as config, Purpose};
use crate::request::{Request, read_stdin};
use crate::result::AddResult;
use crate::run::Streams;
use crate::{add, del, gc};

/// The only version of the interface (`API_VERSION` of netavark's `src/plugin.rs`).
const API_VERSION: &str = "1.0.0";

/// Whether the arguments of the process are those of netavark. A runtime of CNI passes none, and
/// sets CNI_COMMAND.
pub fn is_meant(arguments: &[String], cni_command: &str) -> bool {
    cni_command.is_empty() && arguments.first().is_some_and(|first| !first.starts_with('-'))
}

/// Runs the subcommand and returns the exit code.
pub fn run(arguments: &[String], streams: Streams<'_>) -> u8 {
    let Streams { stdin, stdout, stderr } = streams;
    let Err(error) = perform(arguments, stdin, stdout) else { return 0 };
    let error = json!({ "error": in_podmans_words(&error) });
    if let Err(e) = write(stdout, &error) {
        let _ = writeln!(stderr, "loden-cni: {error}: {e}");
    }
    1
}

fn perform(arguments: &[String], stdin: &mut dyn Read, stdout: &mut dyn Write) -> Result<(), Error> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["info"] => {
            let info = json!({ "version": env!("CARGO_PKG_VERSION"), "api_version": API_VERSION });
            write(stdout, &info).map_err(Error::Stdout)
        }
        ["create"] => {
            let network = config::created(&read_stdin(stdin)?)?;
            write(stdout, &Value::Object(network)).map_err(Error::Stdout)
        }
        ["setup", netns] => {
            let request = config::request(Purpose::Setup, netns, &read_stdin(stdin)?)?;
            let status = status_block(&connect(&request)?);
            write(stdout, &status).map_err(|e| {
                // Podman does not start a container whose network it was not told of.
                let _ = del::del(&request);
                Error::Stdout(e)
            })
        }
        ["teardown", netns] => del::del(&config::request(Purpose::Teardown, netns, &read_stdin(stdin)?)?),
        ["setup" | "teardown"] => Err(Error::Environment("the namespace's path is missing".into())),
        _ => Err(Error::Environment(format!(
            "unknown subcommand {:?}; netavark's plugins have create, setup <netns>, teardown <netns> and info",
            arguments.join(" ")
        ))),
    }
}

/// Podman has no GC, so what it lost track of is looked for when it is missed.
fn connect(request: &Request) -> Result<AddResult, Error> {
    match add::add(request) {
        Err(Error::Exhausted(_)) => {
            let own = (request.attachment.container_id.clone(), request.attachment.ifname.to_string());
            // What cannot be freed is told by the second ADD, if it fails.
            let _ = gc::gc(&request.config.data_dir, &request.attachment.network, &BTreeSet::from([own]));
            add::add(request)
        }
        other => other,
    }
}

/// What Podman writes down: it shows it in `podman inspect`, and puts the addresses into /etc/hosts.
fn status_block(result: &AddResult) -> Value {
    let [_, _, inside] = &result.interfaces;
    let subnet = |a: &crate::result::Address| json!({ "ipnet": format!("{}/{}", a.address, a.subnet.length()), "gateway": a.subnet.gateway() });
    let subnets: Vec<Value> = result.addresses.iter().map(subnet).collect();
    let interface = json!({ "mac_address": inside.mac, "subnets": subnets });
    let interfaces = Map::from_iter([(inside.name.clone(), interface)]);
    json!({ "dns_server_ips": [], "dns_search_domains": [], "interfaces": interfaces })
}

/// The errors that speak of what CNI has and Podman has not.
fn in_podmans_words(error: &Error) -> String {
    match error {
        Error::OwnNamespace => {
            "the container shares the host's network namespace, so there is nothing to set up".into()
        }
        Error::Namespace { path, source } => format!("cannot enter the network namespace {path}: {source}"),
        Error::NoSubnet(path) => format!(
            "{} does not exist, so this host has no subnet yet; is the loden daemon running? See journalctl -u \
             loden, or create the network with --opt subnetFile=PATH",
            path.display()
        ),
        Error::InterfaceExists { ifname, netns } => {
            format!(
                "the container already has an interface {ifname} in {netns}; choose another interface_name"
            )
        }
        other => other.to_string(),
    }
}

fn write(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    out.write_all(format!("{value}\n").as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_netavarks_unless_cni_has_a_command() {
        let meant = |arguments: &[&str], command| {
            is_meant(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(), command)
        };
        assert!(meant(&["setup", "/run/netns/x"], "") && meant(&["update"], ""));
        assert!(!meant(&["setup", "/run/netns/x"], "ADD"));
        assert!(!meant(&[], "") && !meant(&["--version"], ""));
    }
}
