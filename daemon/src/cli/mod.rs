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

use std::process::ExitCode;

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
    let sources = match settings::Sources::read() {
        Ok(sources) => sources,
        Err(error) => {
            eprintln!("loden: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let command = sources.fill_in(Cli::command());
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version go to standard output with exit code 0.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(cli.command, &sources)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loden: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, sources: &settings::Sources) -> anyhow::Result<()> {
    match command {
        Command::Daemon(args) => daemon::run(*args, sources).await,
        Command::Status(args) => status::run(args).await,
        Command::Endpoints(args) => endpoints::run(args),
        Command::Names(args) => names::run(args),
        Command::Name(command) => name::run(command),
        Command::Doctor(command) => doctor::run(command).await,
        Command::Export(command) => export::run(command),
        Command::Config(command) => config::run(command).await,
        Command::Lease(command) => lease::run(command).await,
        Command::Attach(args) => attach::run(args).await,
        Command::Detach(args) => detach::run(args).await,
        Command::JudgeRules => judge_rules::run().await,
        Command::DockerOpts(args) => docker_opts::run(args).await,
        Command::Cleanup(args) => cleanup::run(args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "loden", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}
