//! One daemon per network on a host: a lock that goes with its process.

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Whether a daemon runs with this folder of run-time state.
pub fn runs(run_dir: &Path) -> bool {
    match File::open(run_dir.join(LOCK_FILE)) {
        Ok(file) => rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err(),
        // Another user's: it is there, so it is taken for living.
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

/// Held for the daemon's life, in its folder of run-time state.
const LOCK_FILE: &str = "loden.lock";

/// For as long the lock may be held by nobody who runs: by a child that the former daemon started in its last
/// moment and that has not closed what it inherited yet, or by [`runs`].
const PATIENCE: Duration = Duration::from_secs(1);

/// One daemon per network on a host. The lock goes with the process.
pub fn take(run_dir: &Path, network: &str) -> anyhow::Result<File> {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::OpenOptionsExt;
    let path = run_dir.join(LOCK_FILE);
    // Nobody else may hold it, and so stop a start.
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(
            |error| {
                let hint = match error.kind() {
                    std::io::ErrorKind::PermissionDenied => "be root, or the user of the daemon",
                    _ => "is the disk full or read-only?",
                };
                anyhow::Error::new(error).context(format!("cannot open {}; {hint}", path.display()))
            },
        )?;
    let end = Instant::now() + PATIENCE;
    while let Err(error) = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            bail!("cannot lock {}: {error}", path.display());
        }
        if Instant::now() < end {
            sleep(PATIENCE / 50);
            continue;
        }
        let mut holder = String::new();
        file.read_to_string(&mut holder)?;
        bail!(
            "a daemon (process {}) runs the network {network} on this host; stop it, or give this one its own --network",
            holder.trim()
        );
    }
    // The lock holds all the same when the disk is too full for the process id.
    if let Err(error) =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()))
    {
        tracing::warn!(%error, "cannot write our process id to {}; is the disk full?", path.display());
    }
    Ok(file)
}
