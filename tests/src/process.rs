//! Child processes that die with the test process, however it dies.
//!
//! The kernel sends a child its parent-death signal when the *thread* that forked it ends
//! (prctl(2), PR_SET_PDEATHSIG), so one thread that lives as long as the process forks them all.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal};

type Job = (Command, Sender<io::Result<Child>>);

/// Commands that hang would hang the scenario; none takes near as long.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // The scenario may have panicked meanwhile; then nobody reads the answer.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
    let (reply, answer) = channel();
    lock(spawner).send((command, reply)).expect("the spawner thread never ends");
    answer.recv().expect("the spawner thread answers each job")
}

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended; `None` if it was killed for taking too long.
    pub status: Option<ExitStatus>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(self.success(), "{}", self.describe());
        self.stdout
    }

    /// Both outputs of a command that must fail.
    #[track_caller]
    pub fn expect_failure(self) -> String {
        assert!(self.status.is_some_and(|s| !s.success()), "should have failed: {}", self.describe());
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Command, end and outputs in one text.
    pub fn describe(&self) -> String {
        let end = match self.status {
            None => format!("killed after {COMMAND_LIMIT:?}"),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, signal) => format!("signal {signal:?}"),
            },
        };
        format!("{}: {end}\n{}{}", self.command, self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command, input: &[u8]) -> Output {
    let line = describe(&command);
    let file = || tempfile::tempfile().unwrap_or_else(|e| panic!("a temporary file for `{line}`: {e}"));
    let (mut stdin, mut stdout, mut stderr) = (file(), file(), file());
    stdin.write_all(input).and_then(|()| stdin.rewind()).expect("writing a temporary file");
    let copy = |f: &File| Stdio::from(f.try_clone().expect("a second descriptor"));
    command.stdin(copy(&stdin)).stdout(copy(&stdout)).stderr(copy(&stderr));
    let mut child = spawn(command).unwrap_or_else(|e| panic!("cannot start `{line}`: {e}"));
    let status = wait_within(&mut child, COMMAND_LIMIT);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    Output { command: line, status, stdout: contents(&mut stdout), stderr: contents(&mut stderr) }
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("reading an output");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let fd = pidfd_open(pid_of(child), PidfdFlags::empty()).expect("a pidfd of an unreaped child");
    let limit = Timespec::try_from(limit).expect("a short duration");
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit));
    child.try_wait().expect("waiting for an own child")
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// The children of all threads of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|c| c.parse().ok()).collect::<Vec<_>>())
        .collect()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running program with its log; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    log: PathBuf,
    heir: OnceLock<OwnedFd>,
}

impl Process {
    /// Starts it, both outputs appended to the log.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Self {
            name: name.into(),
            child: Mutex::new(spawn(command)?),
            log: log.into(),
            heir: OnceLock::new(),
        })
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = lock(&self.child);
        if let Ok(None) = child.try_wait() {
            let _ = kill_process(pid_of(&child), signal);
        }
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().expect("waiting for an own child")
    }

    /// Waits for its end.
    pub fn wait_within(&self, limit: Duration) -> Option<ExitStatus> {
        wait_within(&mut lock(&self.child), limit)
    }

    /// Another process dies when this one does, but takes its time: killing this one waits for it.
    pub(crate) fn takes_along(&self, heir: OwnedFd) {
        let _ = self.heir.set(heir);
    }

    /// SIGKILL, and waits.
    pub fn kill9(&self) {
        let mut child = lock(&self.child);
        if let Ok(None) = child.try_wait() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(heir) = self.heir.get() {
            let limit = Timespec::try_from(COMMAND_LIMIT).expect("a short duration");
            let _ = poll(&mut [PollFd::new(heir, PollFlags::IN)], Some(&limit));
        }
    }

    /// SIGTERM; panics if it has not ended within 10 s.
    #[track_caller]
    pub fn terminate(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_within(Duration::from_secs(10))
            .unwrap_or_else(|| panic!("{} has not ended within 10 s of SIGTERM", self.name))
    }

    /// Everything that it printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}
