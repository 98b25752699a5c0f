//! `loden names`: every name of the overlay, as this host serves them.

use clap::Args;
use loden_proto::status::{NameStatus, Names, Request};

use super::daemon::PlaceArgs;
use super::output::{duration, print, print_json, table};
use super::question::{Answer, ask};
use crate::clock;

/// List the names of containers, on all hosts.
#[derive(Debug, Args)]
#[command(
    after_help = "States:\n  owner      the name is this container's\n  member     it shares the name with others\n  withdrawn  a newer container has the name\n  local      etcd does not have it yet, so this host alone knows it"
)]
pub(super) struct NamesArgs {
    /// Only names that contain this
    #[arg(value_name = "PART")]
    part: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print everything as JSON with stable names
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: NamesArgs) -> anyhow::Result<()> {
    let mut answer: Names = match ask(&args.place.run_dir(), Request::Names)? {
        Answer::Given(answer) => answer,
        Answer::None { reason, .. } => anyhow::bail!("{reason}; names are in the daemon's memory alone"),
    };
    if let Some(part) = args.part.map(|part| part.to_ascii_lowercase()) {
        let all = answer.names.len();
        answer.names.retain(|name| name.name.contains(&part));
        if answer.names.is_empty() && all > 0 && !args.json {
            return print(&format!("none of the {all} names has {part:?} in it\n"));
        }
    }
    for problem in &answer.problems {
        eprintln!("loden: {problem}");
    }
    if args.json { print_json(&answer) } else { print(&text(&answer)) }
}

fn text(answer: &Names) -> String {
    if answer.zone.is_empty() {
        return "no names are served: there is no network config yet, or its member DNS is false\n".into();
    }
    if answer.names.is_empty() {
        return format!("no container has a name below {}\n", answer.zone);
    }
    let now = clock::unix_seconds();
    let row = |n: &NameStatus| {
        let addresses: Vec<String> = n.addresses.iter().map(ToString::to_string).collect();
        vec![
            n.name.clone(),
            addresses.join(" "),
            n.host.clone(),
            n.endpoint.clone(),
            n.source.clone(),
            duration(now.saturating_sub(n.since_unix_seconds)),
            n.state.clone(),
        ]
    };
    let head = ["NAME", "ADDRESS", "HOST", "ENDPOINT", "SOURCE", "AGE", "STATE"];
    table(&head, &answer.names.iter().map(row).collect::<Vec<_>>())
}
