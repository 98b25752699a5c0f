//! The command line: one file per subcommand.
//!
//! Every flag can also be given in the environment (`LODEN_…`) and in one configuration file; a
//! flag wins over the environment, the environment over the file.

mod attach;
mod cleanup;
mod config;
mod daemon;
mod detach;
mod docker_opts;
mod doctor;
mod endpoints;
mod export;
mod judge_rules;
mod lease;
mod name;
mod names;
mod output;
mod question;
mod settings;
mod status;

use std::pin::Pin;
use std::process::ExitCode;
use std::thread;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// EX_USAGE of sysexits(3).
const USAGE: u8 = 64;

/// Loden: a weatherproof overlay network for containers.
#[derive(Debug, Parser)]
#[command(
    name = "loden",
    version,
    arg_required_else_help = true,
    after_help = "First steps:\n  loden config init --ipv4-network 10.5.0.0/16    write the network config to etcd, once\n  loden daemon                               on each host\n  loden status                               what this host knows\n\nEvery flag can also be set as LODEN_FLAG_NAME in the environment and as flag-name in\n/etc/loden/loden.toml. A flag wins over the environment, the environment over the file."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of this host
    Daemon(Box<daemon::DaemonArgs>),
    /// Show what this host knows: lease, underlay, peers, etcd, problems
    Status(status::StatusArgs),
    /// List this host's containers with their addresses
    Endpoints(endpoints::EndpointsArgs),
    /// List the names of containers, on all hosts
    Names(names::NamesArgs),
    /// Give names by hand, to what no container runtime names
    #[command(subcommand)]
    Name(name::NameCommand),
    /// Compare what different parts of the overlay say of the same thing
    #[command(subcommand)]
    Doctor(doctor::DoctorCommand),
    /// Print what the overlay knows in other programs' formats
    #[command(subcommand)]
    Export(export::ExportCommand),
    /// Read and write the network config in etcd
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// List, reserve and release subnet leases
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Connect a namespace, a process or a machine that no container runtime connects
    Attach(attach::AttachArgs),
    /// Take back what attach gave
    Detach(detach::DetachArgs),
    /// Print the options that make Docker's containers members of the overlay
    DockerOpts(docker_opts::DockerOptsArgs),
    /// Remove from this host's kernel what Loden made
    Cleanup(cleanup::CleanupArgs),
    /// Judge other people's rules; the daemon asks it
    #[command(hide = true)]
    JudgeRules,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let mut sources = match settings::Sources::read() {
        Ok(sources) => sources,
        Err(error) => {
            eprintln!("loden: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let command = match parse_apart(&mut sources) {
        Ok(command) => command,
        Err(error) => {
            // Help and version go to standard output with exit code 0.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    // To all other commands the file is only a help.
    if let (Command::Daemon(_), Some(problem)) = (&command, &sources.unknown_keys) {
        eprintln!("loden: {problem}");
        return ExitCode::from(USAGE);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(command, &sources)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loden: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Parses on a stack of its own, since a stack never gives back what it once took, and this takes 0.1 MiB.
/// Where there can be no further thread, on this one.
fn parse_apart(sources: &mut settings::Sources) -> Result<Command, clap::Error> {
    let mut parsed = None;
    thread::scope(|scope| {
        // Who cannot be started has not touched what it was given, and who panics tells so by itself.
        let _ = thread::Builder::new().spawn_scoped(scope, || parsed = Some(parse(sources)));
    });
    parsed.unwrap_or_else(|| parse(sources))
}

/// The command of the arguments, of the environment and of the file, whose keys are the daemon's flags.
fn parse(sources: &mut settings::Sources) -> Result<Command, clap::Error> {
    let command = Cli::command();
    sources.look_for_unknown_keys(command.find_subcommand("daemon"));
    let matches = sources.fill_in(command).try_get_matches()?;
    Ok(Cli::from_arg_matches(&matches)?.command)
}

/// The work of a command. Each is a future behind a pointer, those without a wait as well: as one, all
/// commands' would share the largest stack frame.
fn run(
    command: Command,
    sources: &settings::Sources,
) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + '_>> {
    match command {
        Command::Daemon(args) => Box::pin(daemon::run(*args, sources)),
        Command::Status(args) => Box::pin(async { status::run(args) }),
        Command::Endpoints(args) => Box::pin(async { endpoints::run(args) }),
        Command::Names(args) => Box::pin(async { names::run(args) }),
        Command::Name(command) => Box::pin(async { name::run(command) }),
        Command::Doctor(command) => Box::pin(doctor::run(command)),
        Command::Export(command) => Box::pin(async { export::run(command) }),
        Command::Config(command) => Box::pin(config::run(command)),
        Command::Lease(command) => Box::pin(lease::run(command)),
        Command::Attach(args) => Box::pin(attach::run(args)),
        Command::Detach(args) => Box::pin(detach::run(args)),
        Command::JudgeRules => Box::pin(judge_rules::run()),
        Command::DockerOpts(args) => Box::pin(docker_opts::run(args)),
        Command::Cleanup(args) => Box::pin(cleanup::run(args)),
        Command::Completions { shell } => Box::pin(async move {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "loden", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }),
    }
}
