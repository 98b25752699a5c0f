//! Programs that speak for us to the kernel: `nft`, and for Docker's own chains `iptables`.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

/// No program here takes a tenth of it; one that hangs must not hold up the data plane for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where Debian keeps what only root used to run; the search path of a user may lack it.
const FOLDERS: [&str; 2] = ["", "/usr/sbin/"];

/// Runs the first of these programs that is installed, with a text as its input; returns its output.
/// The error says what it said, or which package is missing.
pub(super) async fn run(
    programs: &[&str],
    arguments: &[&str],
    input: &str,
    package: &str,
) -> Result<String, String> {
    let mut missing = String::new();
    for path in programs.iter().flat_map(|p| FOLDERS.map(|folder| format!("{folder}{p}"))) {
        let ended = match tokio::time::timeout(PATIENCE, started(&path, arguments, input)).await {
            Ok(ended) => ended,
            Err(_) => return Err(format!("{path} did not end within {} s", PATIENCE.as_secs())),
        };
        match ended {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing = e.to_string(),
            Err(e) => return Err(format!("cannot run {path}: {e}")),
            Ok(output) if output.status.success() => {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(output) => {
                return Err(format!("{path}: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
        }
    }
    Err(format!("{} is not installed ({missing}); install the package {package}", programs.join(" or ")))
}

async fn started(path: &str, arguments: &[&str], input: &str) -> std::io::Result<std::process::Output> {
    let mut child = tokio::process::Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may end before it has read everything; its own error says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait_with_output().await
}
