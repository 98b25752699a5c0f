//! `loden-counts TABLE FOLDER [record]`: counts instructions and allocations of the pure core with
//! 10,000 leases and compares them with those in the table; with `record` writes the table anew.
//! callgrind's files go into the folder, for callgrind_annotate. Called by `make check-perf`.
//!
//! A count does not depend on how busy the machine is, nor on its speed or its C library: the
//! program that is counted (`loden-counted`) is linked statically with all it needs. It does depend
//! on the compiler, which rust-toolchain.toml pins, and on the instruction set.
//!
//! Ends with 1 if a count grew too much, and if one could not be taken; with `CI` in the environment
//! also if the table is of another platform, since then nothing was compared.

mod table;

use std::fs;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, bail};

use table::{Counts, Table, Verdict};

/// callgrind collects between entry and return of these.
const COUNTED: &str = "loden_counted::allocator::counted*";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loden-counts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (table, folder, record) = match &arguments[..] {
        [table, folder] => (Path::new(table), Path::new(folder), false),
        [table, folder, record] if record == "record" => (Path::new(table), Path::new(folder), true),
        _ => bail!("usage: loden-counts TABLE FOLDER [record]"),
    };
    let now = Table { platform: platform(), compiler: compiler()?, rows: count_all(folder)? };
    if record {
        fs::write(table, now.to_text()).with_context(|| format!("write {}", table.display()))?;
        writeln!(stdout(), "recorded in {}", table.display())?;
        return Ok(true);
    }
    let text = fs::read_to_string(table).with_context(|| format!("read {}", table.display()))?;
    let recorded = Table::parse(&text).with_context(|| table.display().to_string())?;
    let comparison = recorded.compare(&now);
    stdout().write_all(comparison.text(folder).as_bytes())?;
    Ok(match comparison.verdict() {
        Verdict::Holds => true,
        Verdict::Grew => false,
        Verdict::NotComparable => std::env::var_os("CI").is_none(),
    })
}

/// What counts depend on beside the compiler.
fn platform() -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-{libc}", std::env::consts::ARCH)
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("start rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// All operations, as many at once as there are CPUs: they do not disturb each other's counts.
fn count_all(folder: &Path) -> Result<Vec<(String, Counts)>> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let program = std::env::current_exe()?.with_file_name("loden-counted");
    let names = Command::new(&program).output().with_context(|| format!("start {}", program.display()))?;
    let names: Vec<String> = String::from_utf8_lossy(&names.stdout).lines().map(str::to_owned).collect();
    let queue = Mutex::new(names.iter().enumerate());
    let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let work = || -> Result<Vec<(usize, Counts)>> {
        let mut done = Vec::new();
        while let Some((place, name)) = next() {
            eprintln!("counting {name}");
            let counts = count(&program, name, folder).with_context(|| format!("count {name}"))?;
            done.push((place, counts));
        }
        Ok(done)
    };
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        ends.collect::<Result<Vec<_>>>()
    })?
    .concat();
    done.sort_by_key(|(place, _)| *place);
    Ok(names.into_iter().zip(done).map(|(name, (_, counts))| (name, counts)).collect())
}

fn count(program: &Path, operation: &str, folder: &Path) -> Result<Counts> {
    let profile: PathBuf = folder.join(format!("{operation}.callgrind"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .arg(operation)
        .output()
        .context("start valgrind (make deps installs it)")?;
    if !output.status.success() {
        bail!("valgrind: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let text = fs::read_to_string(&profile).with_context(|| format!("read {}", profile.display()))?;
    let instructions = table::callgrind_total(&text).context("callgrind's file has no totals")?;
    if instructions == 0 {
        bail!("callgrind has not seen {COUNTED}: was the program built without its names?");
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = printed.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [allocations, bytes, peak] = numbers[..] else { bail!("{} printed {printed:?}", program.display()) };
    Ok(Counts([instructions, allocations, bytes, peak]))
}
