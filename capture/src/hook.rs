//! Commands of the user's that run at certain moments.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// Most that a command may print, in bytes.
pub const MAX_OUTPUT: usize = 4096;

/// A command of the user's, run by the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it is for, as errors call it.
    pub purpose: &'static str,
    /// The command.
    pub command: String,
    /// How long it may take; then it is killed.
    pub limit: Duration,
}

/// A command that did not do what it should.
#[derive(Debug, thiserror::Error)]
#[error("the command for {purpose} ({command}) {reason}")]
pub struct HookError {
    /// What it was for.
    pub purpose: &'static str,
    /// The command.
    pub command: String,
    /// What happened.
    pub reason: String,
}

impl Hook {
    /// A command for the disks of a guest, which waits for it: half a minute is long.
    pub fn for_disks(command: &str) -> Self {
        Self { purpose: "disks", command: command.to_owned(), limit: Duration::from_secs(30) }
    }

    /// Runs the command to its end with these environment variables and returns what it printed, without white space at
    /// either end. What it says on standard error is for the user to see.
    ///
    /// # Errors
    /// [`HookError`]: it cannot be started, fails, takes longer than its limit, or prints more than [`MAX_OUTPUT`] bytes
    /// or no text.
    pub fn run(&self, environment: &[(&str, &str)]) -> Result<String, HookError> {
        let mut command = Command::new("sh");
        command.args(["-c", &self.command]).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // In a process group of its own: it is killed with all it started, and Ctrl-C does not leave its work half done.
        let child = command.process_group(0).spawn();
        let child = child.map_err(|error| self.failed(format!("cannot be started: {error}")))?;
        let output = self.wait(child)?;
        let text = String::from_utf8(output).map_err(|_| self.failed("printed what is no text"))?;
        Ok(text.trim().to_owned())
    }

    fn wait(&self, mut child: Child) -> Result<Vec<u8>, HookError> {
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let stdout = child.stdout.take();
        let (done, ended) = mpsc::channel();
        // Nobody waits for it: what the command has started elsewhere may keep its output open for ever.
        thread::spawn(move || {
            let output = read(stdout);
            let status = child.wait();
            // Whether anybody still wants to know does not matter.
            let _ = done.send((output, status));
        });
        let Ok((output, status)) = ended.recv_timeout(self.limit) else {
            // It may have ended by itself just now.
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            return Err(
                self.failed(format!("took longer than {} s and was killed", self.limit.as_secs_f32()))
            );
        };
        let status = status.map_err(|error| self.failed(error))?;
        let output = output.map_err(|error| self.failed(error))?;
        if !status.success() {
            return Err(self.failed(format!("failed: {status}")));
        }
        if output.len() > MAX_OUTPUT {
            return Err(self.failed(format!("printed more than {MAX_OUTPUT} bytes")));
        }
        Ok(output)
    }

    fn failed(&self, reason: impl ToString) -> HookError {
        HookError { purpose: self.purpose, command: self.command.clone(), reason: reason.to_string() }
    }
}

/// The beginning of what a command prints; the rest is read and forgotten, so that the command can go on.
fn read(from: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        from.by_ref().take(MAX_OUTPUT as u64 + 1).read_to_end(&mut bytes)?;
        io::copy(&mut from, &mut io::sink())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str) -> Result<String, String> {
        let hook = Hook { purpose: "a test", command: command.to_owned(), limit: Duration::from_secs(60) };
        hook.run(&[("VARVE_DOMAIN", "web1; id")]).map_err(|error| error.reason)
    }

    #[test]
    fn a_command_runs_with_its_environment() {
        assert_eq!(run("echo \"  $VARVE_DOMAIN\"").unwrap(), "web1; id");
        assert_eq!(run("true").unwrap(), "");
    }

    #[test]
    fn what_a_command_does_wrong_is_said() {
        assert_eq!(run("exit 3").unwrap_err(), "failed: exit status: 3");
        assert_eq!(run("printf '\\377'").unwrap_err(), "printed what is no text");
        assert_eq!(run("yes | head -c 5000").unwrap_err(), "printed more than 4096 bytes");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let limit = Duration::from_millis(100);
        // The second is in a process group of its own, and keeps the output open.
        for command in ["sleep 1000 | sleep 1000", "setsid sleep 2"] {
            let hook = Hook { purpose: "a test", command: command.to_owned(), limit };
            let error = hook.run(&[]).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("the command for a test ({command}) took longer than 0.1 s and was killed")
            );
        }
    }
}
