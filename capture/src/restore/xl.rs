//! `xl`, the toolstack that makes and ends domains.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::RestoreError;
use super::configuration::Configuration;

/// Most that is read of what `xl` prints, in bytes: ten thousand domains have less.
const MAX_OUTPUT: u64 = 64 << 20;

/// Longest wait for the memory of a domain that was ended, and the time between two looks.
const GONE_LIMIT: Duration = Duration::from_secs(30);
const GONE_LOOK: Duration = Duration::from_millis(100);

/// A domain there is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Domain {
    pub(super) id: u64,
    pub(super) configuration: Configuration,
}

/// Every domain.
pub(super) fn domains() -> Result<Vec<Domain>, RestoreError> {
    let listed = run(&["list", "--long"])?;
    let unexpected = |reason: String| RestoreError::Xl { command: "list".to_owned(), reason };
    let listed: Value = serde_json::from_str(&listed).map_err(|error| unexpected(error.to_string()))?;
    let domains = listed.as_array().ok_or_else(|| unexpected("it printed no list".to_owned()))?;
    let domain = |domain: &Value| {
        let id = domain.get("domid")?.as_u64()?;
        Some(Domain { id, configuration: Configuration::of(domain.get("config")?.clone()) })
    };
    domains.iter().map(|value| domain(value).ok_or_else(|| unexpected(value.to_string()))).collect()
}

/// Ends a domain at once.
pub(super) fn destroy(id: u64) -> Result<(), RestoreError> {
    run(&["destroy", &id.to_string()]).map(drop)
}

/// Waits until Xen has back what an ended domain had, which may be mapped by those who capture it; not for ever.
pub(super) fn wait_until_gone(id: u64) {
    let (begun, id) = (Instant::now(), id.to_string());
    while begun.elapsed() < GONE_LIMIT && run(&["list", &id]).is_ok() {
        thread::sleep(GONE_LOOK);
    }
}

/// Lets a paused domain run.
pub(super) fn unpause(id: u64) -> Result<(), RestoreError> {
    run(&["unpause", &id.to_string()]).map(drop)
}

/// Makes a paused domain from the stream that `write` writes. It is never half there: when the stream ends early or makes no
/// sense, `xl` removes what it had made.
pub(super) fn restore<T>(
    write: impl FnOnce(&mut dyn io::Write) -> Result<T, RestoreError>,
) -> Result<T, RestoreError> {
    let mut child = start(&["restore", "-p", "/proc/self/fd/0"], Stdio::piped())?;
    let mut stdin = child.stdin.take();
    // Read meanwhile: what nobody reads would stop it.
    let (written, ended) = thread::scope(|scope| {
        let ended = scope.spawn(|| end(child));
        let written = match &mut stdin {
            Some(stdin) => write(stdin),
            None => {
                Err(RestoreError::Io { doing: "writing to xl", source: io::ErrorKind::BrokenPipe.into() })
            }
        };
        drop(stdin.take());
        (written, ended.join())
    });
    let (status, _, errors) = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    match written {
        // What `xl` says of its failure tells more than the pipe it left broken; of a stream we broke off it can tell nothing.
        Err(error) if !error.is_broken_pipe() => Err(error),
        _ if !status.success() => Err(failed("restore", status, &errors)),
        written => written,
    }
}

/// Runs `xl` to its end and gives what it printed.
fn run(arguments: &[&str]) -> Result<String, RestoreError> {
    let (status, output, errors) = end(start(arguments, Stdio::null())?)?;
    if status.success() {
        return Ok(output);
    }
    Err(failed(arguments.first().copied().unwrap_or_default(), status, &errors))
}

fn start(arguments: &[&str], input: Stdio) -> Result<Child, RestoreError> {
    let mut command = Command::new("xl");
    command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    // In a process group of its own: Ctrl-C is for varve, which then decides what is still to be done.
    command.process_group(0).spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RestoreError::NoXl,
        _ => RestoreError::Io { doing: "starting xl", source },
    })
}

/// Waits for the end: status, standard output, standard error.
fn end(mut child: Child) -> Result<(ExitStatus, String, String), RestoreError> {
    let failed = |source| RestoreError::Io { doing: "running xl", source };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (output, errors) = thread::scope(|scope| {
        let errors = scope.spawn(|| read(stderr));
        (read(stdout), errors.join())
    });
    let errors = errors.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok((child.wait().map_err(failed)?, output.map_err(failed)?, errors.map_err(failed)?))
}

fn read(from: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let mut from = from.take(MAX_OUTPUT);
        from.read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of what `xl` says: the cause stands in the first of a failure, which may follow pages of progress.
fn failed(command: &str, status: ExitStatus, errors: &str) -> RestoreError {
    let lines: Vec<&str> = errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let cause = lines.iter().position(|line| line.contains("rror")).unwrap_or(lines.len().saturating_sub(5));
    let said: Vec<&str> = lines.into_iter().skip(cause).take(5).collect();
    let reason = if said.is_empty() { status.to_string() } else { said.join("; ") };
    RestoreError::Xl { command: command.to_owned(), reason }
}
