//! `loden daemon`

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgAction, Args, ValueEnum};
use loden_core::names::skydns_prefix;
use loden_core::options::{self, Listen};
use loden_core::underlay::UnderlayOptions;
use loden_proto::{DEFAULT_FWMARK, DEFAULT_NETWORK, Subnet};
use regex_lite::Regex;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::settings::Sources;
use crate::app;
use crate::reconcile::Settings;
use crate::store::{EtcdOptions, Secret};

/// How to reach etcd; the same for every command that does.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "etcd")]
pub(super) struct EtcdArgs {
    /// etcd's addresses, http:// or https://, comma-separated
    #[arg(long, value_name = "URL", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    etcd_endpoints: Vec<String>,
    /// Where configs and leases stand; flannel's default
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network")]
    etcd_prefix: String,
    /// CA that signed the servers' certificates
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Client certificate; needs --etcd-keyfile
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Key of the client certificate
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// User; its password comes from --etcd-password-file or LODEN_ETCD_PASSWORD
    #[arg(long, value_name = "NAME")]
    etcd_username: Option<String>,
    /// File that holds the password; there is no flag for the password itself, which ps would show
    #[arg(long, value_name = "FILE")]
    etcd_password_file: Option<PathBuf>,
}

impl EtcdArgs {
    pub(super) fn options(&self) -> EtcdOptions {
        let password =
            ["LODEN_ETCD_PASSWORD", "FLANNELD_ETCD_PASSWORD"].iter().find_map(|n| std::env::var(n).ok());
        EtcdOptions {
            endpoints: self
                .etcd_endpoints
                .iter()
                .map(|e| e.trim().to_owned())
                .filter(|e| !e.is_empty())
                .collect(),
            prefix: self.etcd_prefix.clone(),
            ca_file: self.etcd_cafile.clone(),
            cert_file: self.etcd_certfile.clone(),
            key_file: self.etcd_keyfile.clone(),
            username: self.etcd_username.clone(),
            password_file: self.etcd_password_file.clone(),
            password: password.map(Secret),
        }
    }
}

/// Which network on this host, and where its files are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network on this host")]
pub(super) struct PlaceArgs {
    /// Name of the network; names devices, bridge, table and folders on this host
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NETWORK, value_parser = network_name)]
    pub(super) network: String,
    /// Folder of run-time state [default: /run/<network>]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Folder of lasting state [default: /var/lib/<network>]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// File that tells plugins the subnet [default: <run-dir>/subnet.env]
    #[arg(long, value_name = "FILE")]
    subnet_file: Option<PathBuf>,
}

impl PlaceArgs {
    pub(super) fn run_dir(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| format!("/run/{}", self.network).into())
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| format!("/var/lib/{}", self.network).into())
    }

    pub(super) fn subnet_file(&self) -> PathBuf {
        self.subnet_file.clone().unwrap_or_else(|| self.run_dir().join("subnet.env"))
    }
}

/// Run the daemon of this host.
#[derive(Debug, Args)]
#[command(
    after_help = "The daemon leases a subnet, brings devices, routes and filters in place and keeps them so. When it stops, everything stays as it is; loden cleanup removes it."
)]
pub(super) struct DaemonArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Configuration file in TOML; its keys are these flags
    #[arg(long, value_name = "FILE", default_value = "/etc/loden/loden.toml")]
    config_file: PathBuf,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    underlay: UnderlayArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    #[command(flatten)]
    filters: FilterArgs,
    #[command(flatten)]
    dns: DnsArgs,
    /// Group whose members may ask on the local socket <run-dir>/loden.sock (mode 0660)
    #[arg(long, value_name = "GROUP", default_value = "loden")]
    socket_group: String,
    /// Time between full comparisons with the kernel, beside those that its notices cause [default: 30s, longer with thousands of peers]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    resync: Option<Duration>,
    /// What to log: error, warn, info, debug, trace, or per module as in RUST_LOG
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// How to log
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Underlay")]
struct UnderlayArgs {
    /// Interface that carries the overlay: a name, an address or a prefix. Repeatable, the first
    /// that fits wins [default: the interface of the default route]
    #[arg(long, value_name = "NAME|IP|CIDR", value_delimiter = ',')]
    iface: Vec<String>,
    /// Expression that an address or a name of the interface matches. Repeatable
    #[arg(long, value_name = "REGEX", value_parser = regex)]
    iface_regex: Vec<Regex>,
    /// The interface that the route to this address uses
    #[arg(long, value_name = "IP")]
    iface_can_reach: Option<IpAddr>,
    /// Address that peers send to, if it is not the interface's own (1:1 NAT)
    #[arg(long, value_name = "IP")]
    public_ip: Option<std::net::Ipv4Addr>,
    /// The same for IPv6
    #[arg(long, value_name = "IP")]
    public_ipv6: Option<std::net::Ipv6Addr>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Lease and peers")]
struct LeaseArgs {
    /// How long the lease outlives the last keep-alive
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lease_ttl)]
    subnet_lease_ttl: Duration,
    /// Label of this host, in its lease. Repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// How long peers stay whose leases vanished all at once
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    peer_hold: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Masquerade and filters")]
struct FilterArgs {
    /// Masquerade what leaves the overlay
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1, action = ArgAction::Set)]
    ip_masq: bool,
    /// Masquerade what comes from outside and goes to another host's containers, so that replies find back
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1, action = ArgAction::Set)]
    masq_inbound: bool,
    /// Destination that containers reach under their own address. Repeatable
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    no_masq_cidr: Vec<Subnet>,
    /// Do not randomise source ports when masquerading
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1, action = ArgAction::Set)]
    ip_masq_fully_random_disable: bool,
    #[command(flatten)]
    mark: MarkArgs,
    /// Accept VXLAN from current peers' addresses only (auto), or from anywhere (off), which
    /// flannel peers behind 1:1 NAT need
    #[arg(long, value_enum, default_value = "auto")]
    vtep_source_check: SourceCheck,
}

/// The packet mark, which daemon and Docker must agree on.
#[derive(Debug, Clone, Args)]
pub(super) struct MarkArgs {
    /// Packet mark on what comes from the overlay for local containers, as VALUE/MASK
    #[arg(long, value_name = "MARK", default_value_t = format!("{DEFAULT_FWMARK:#x}/{DEFAULT_FWMARK:#x}"))]
    fwmark: String,
}

impl MarkArgs {
    pub(super) fn value_and_mask(&self) -> anyhow::Result<(u32, u32)> {
        fwmark(&self.fwmark).map_err(anyhow::Error::msg)
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Names")]
struct DnsArgs {
    /// Where to answer DNS requests, comma-separated: gateway (of this host's containers), shared (the address
    /// that every host has, DNS.Address of the network config), underlay (for clients outside of the overlay,
    /// who are told the hosts' addresses), none [default: gateway,shared,underlay; of a second --network on this
    /// host gateway alone, since the others are the first one's]
    #[arg(long, value_enum, value_name = "WHERE", value_delimiter = ',')]
    dns_listen: Vec<DnsListen>,
    /// Servers for all other names, comma-separated [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    dns_upstream: Vec<IpAddr>,
    /// Write this host's names to etcd in SkyDNS's layout as well, for CoreDNS's etcd plugin, which reads them
    /// below KEY (its path; /skydns where none is given)
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "/skydns", value_parser = skydns_prefix)]
    dns_export: Option<String>,
    /// Serve what others have written in this layout below KEY for our zone and for addresses of our networks,
    /// where no container has the name or the address
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "/skydns", value_parser = skydns_prefix)]
    dns_import: Option<String>,
    /// Docker's socket. Its containers in the overlay get names; a path at which nothing is turns that off
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    docker_socket: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DnsListen {
    Gateway,
    Shared,
    Underlay,
    None,
}

impl DnsListen {
    fn option(self) -> Option<Listen> {
        match self {
            Self::Gateway => Some(Listen::Gateway),
            Self::Shared => Some(Listen::Shared),
            Self::Underlay => Some(Listen::Underlay),
            Self::None => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SourceCheck {
    Auto,
    Off,
}

pub(super) async fn run(args: DaemonArgs, sources: &Sources) -> anyhow::Result<()> {
    crate::memory::keep_little();
    log(&args)?;
    for note in &sources.notes {
        tracing::info!("{note}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        network = args.place.network,
        endpoints = args.etcd.etcd_endpoints.join(","),
        "loden daemon"
    );
    app::run(options(args)?).await
}

fn options(args: DaemonArgs) -> anyhow::Result<app::Options> {
    let mark = args.filters.mark.value_and_mask()?;
    let keys = [("--dns-export", &args.dns.dns_export), ("--dns-import", &args.dns.dns_import)];
    for (flag, key) in keys.into_iter().filter_map(|(flag, key)| Some((flag, key.as_ref()?))) {
        let (ours, theirs) = (format!("{}/", args.etcd.etcd_prefix.trim_end_matches('/')), format!("{key}/"));
        anyhow::ensure!(
            !ours.starts_with(&theirs) && !theirs.starts_with(&ours),
            "{flag} {key} and --etcd-prefix {} lie in one another; give one beside it, such as /skydns",
            args.etcd.etcd_prefix
        );
    }
    let public = [args.underlay.public_ip.map(IpAddr::V4), args.underlay.public_ipv6.map(IpAddr::V6)];
    let dns_listen = match args.dns.dns_listen.as_slice() {
        [] if args.place.network == DEFAULT_NETWORK => Listen::ALL.to_vec(),
        [] => vec![Listen::Gateway],
        chosen => chosen.iter().filter_map(|place| place.option()).collect(),
    };
    Ok(app::Options {
        etcd: args.etcd.options(),
        lease_ttl: args.lease.subnet_lease_ttl.as_secs(),
        labels: args.lease.label.into_iter().collect::<BTreeMap<_, _>>(),
        run_dir: args.place.run_dir(),
        state_dir: args.place.state_dir(),
        subnet_file: args.place.subnet_file(),
        dns_upstreams: args.dns.dns_upstream,
        dns_export: args.dns.dns_export,
        dns_import: args.dns.dns_import,
        socket_group: Some(args.socket_group).filter(|g| !g.is_empty()),
        docker_socket: args.dns.docker_socket,
        settings: Settings {
            options: options::Options {
                network: args.place.network,
                masquerade: args.filters.ip_masq,
                masquerade_inbound: args.filters.masq_inbound,
                no_masquerade: args.filters.no_masq_cidr,
                fully_random: !args.filters.ip_masq_fully_random_disable,
                fwmark: mark,
                check_sources: args.filters.vtep_source_check == SourceCheck::Auto,
                dns_listen,
            },
            underlay: UnderlayOptions {
                interfaces: args.underlay.iface,
                patterns: args.underlay.iface_regex,
                can_reach: args.underlay.iface_can_reach,
                public: public.into_iter().flatten().collect(),
            },
            hold: args.lease.peer_hold.as_millis() as u64,
            full_pass: args.resync.map(|period| period.max(Duration::from_secs(1))),
        },
    })
}

fn log(args: &DaemonArgs) -> anyhow::Result<()> {
    let levels: Targets = args
        .log_level
        .parse()
        .with_context(|| format!("--log-level {:?} is not a level such as info or debug", args.log_level))?;
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let to = tracing_subscriber::registry().with(levels);
    // journald has its own time stamps.
    match (args.log_format, journal) {
        (LogFormat::Json, _) => to.with(layer.json().flatten_event(true)).init(),
        (LogFormat::Text, true) => to.with(layer.without_time()).init(),
        (LogFormat::Text, false) => to.with(layer).init(),
    }
    Ok(())
}

fn network_name(text: &str) -> Result<String, String> {
    let fits = (1..=6).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with(|c: char| c.is_ascii_digit());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 6 lower-case letters (digits inside): it begins device names, which hold 15 characters".into())
    }
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|e| e.to_string())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|e| format!("{e}; write it as 90s, 10m or 24h"))
}

/// etcd raises a TTL below its own least one (1.5 times its election timeout) without a word.
fn lease_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if ttl < Duration::from_secs(5) { Err("must be at least 5s".into()) } else { Ok(ttl) }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, such as rack=r7")?;
    if key.is_empty() || text.len() > 256 || text.contains(char::is_control) {
        return Err("must be KEY=VALUE of at most 256 printable characters".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `VALUE/MASK`, or `VALUE` alone, which is its own mask; hexadecimal or decimal.
fn fwmark(text: &str) -> Result<(u32, u32), String> {
    let number = |part: &str| match part.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => part.parse().ok(),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, text));
    match (number(value), number(mask)) {
        (Some(value), Some(mask)) if mask != 0 && value & !mask == 0 => Ok((value, mask)),
        _ => Err(format!(
            "--fwmark {text:?} is not VALUE/MASK such as 0x40000000/0x40000000, the value within the mask"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_in_both_forms_and_must_lie_in_their_mask() {
        assert_eq!(fwmark("0x40000000/0x40000000"), Ok((1 << 30, 1 << 30)));
        assert_eq!(fwmark("16"), Ok((16, 16)));
        for wrong in ["", "0", "0x3/0x1", "x", "1/0"] {
            assert!(fwmark(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_name_leaves_room_for_the_vni() {
        assert!(network_name("loden").is_ok() && network_name("b2b").is_ok());
        for wrong in ["", "toolong", "a.b", "Loden", "net6", "6net", "../x"] {
            assert!(network_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        assert_eq!(
            (duration("90"), duration("10m")),
            (Ok(Duration::from_secs(90)), Ok(Duration::from_secs(600)))
        );
        assert!(duration("soon").is_err() && lease_ttl("1s").is_err());
    }
}
