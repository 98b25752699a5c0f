//! What flanneld left behind in packet filters: iptables chains with their jumps, nftables tables
//! (flannel `pkg/trafficmngr/iptables` and `nftables`).

use std::process::Stdio;

use anyhow::bail;

/// A command that removes a leftover.
pub(super) type Command = Vec<String>;

/// The commands that remove flannel's rules, as far as there are any.
pub(super) fn rules() -> Vec<Command> {
    let mut commands = Vec::new();
    for (family, legacy) in [("ip", "/proc/net/ip_tables_names"), ("ip6", "/proc/net/ip6_tables_names")] {
        // Looking with iptables-legacy would make its tables, and they cost every packet from then on.
        let legacy = std::fs::read_to_string(legacy).unwrap_or_default();
        for (table, hook, chain, comment) in [
            ("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
            ("filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"),
        ] {
            let mut tools = vec!["nft"];
            if legacy.lines().any(|l| l == table) {
                tools.push("legacy");
            }
            for tool in tools {
                let iptables = words(&format!("{family}tables-{tool} -w -t {table}"));
                let with = |rest: &[&str]| {
                    let rest = rest.iter().map(|&w| w.to_owned());
                    iptables.iter().cloned().chain(rest).collect::<Command>()
                };
                if run(&with(&["-S", chain])) {
                    commands.push(with(&["-D", hook, "-m", "comment", "--comment", comment, "-j", chain]));
                    commands.push(with(&["-F", chain]));
                    commands.push(with(&["-X", chain]));
                }
            }
        }
    }
    for table in ["ip flannel-ipv4", "ip6 flannel-ipv6"] {
        if run(&words(&format!("nft list table {table}"))) {
            commands.push(words(&format!("nft delete table {table}")));
        }
    }
    commands
}

fn words(line: &str) -> Command {
    line.split(' ').map(str::to_owned).collect()
}

/// Carries the commands out. The error names those after which something is still there.
pub(super) fn remove(commands: &[Command]) -> anyhow::Result<()> {
    for command in commands {
        // Most fail only because somebody else was faster; what counts is what is left.
        run(command);
    }
    let left: Vec<String> = match commands.is_empty() {
        true => Vec::new(),
        false => rules().iter().map(|c| c.join(" ")).collect(),
    };
    if left.is_empty() {
        Ok(())
    } else {
        bail!("not all of flannel's rules went; try by hand: {}", left.join("; "))
    }
}

/// Runs a fixed command; whether it succeeded. A program that is missing has left nothing behind.
fn run(command: &Command) -> bool {
    let [program, arguments @ ..] = command.as_slice() else { return false };
    // Where Debian keeps what only root used to run; the search path may lack it.
    [program.clone(), format!("/usr/sbin/{program}")].iter().any(|path| {
        let mut process = std::process::Command::new(path);
        process.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        process.status().is_ok_and(|s| s.success())
    })
}
