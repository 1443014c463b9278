//! Runs the `varve` command, and how often.

use std::io::{BufRead, BufReader, Read};
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::str::FromStr;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How often something is done, which an environment variable may say otherwise (docs/development.md).
pub(crate) fn times<N: FromStr<Err = ParseIntError>>(variable: &str, otherwise: N) -> N {
    std::env::var(variable).map_or(otherwise, |number| number.parse().unwrap())
}

/// An archive in a folder of its own, and the command to use it with.
pub(crate) struct Archive {
    folder: TempDir,
}

/// How a command ended, and what it printed.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Archive {
    /// A new, empty archive.
    pub(crate) fn create() -> Self {
        let archive = Self::missing();
        archive.run(&["init"]).expect_status(0);
        archive
    }

    /// The place of an archive that is not there yet.
    pub(crate) fn missing() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    /// The archive's directory.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    /// A file beside the archive, gone with it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command on this archive and the VM `web1`.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(varve());
        command.env_remove("VARVE_ARCHIVE").env("VARVE_VM", "web1");
        command.arg("-r").arg(self.path());
        command
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.command().args(arguments).output().unwrap().into()
    }

    /// Runs the command with `--json`, which must exit with `status`, and gives the lines it printed.
    pub(crate) fn json(&self, arguments: &[&str], status: i32) -> Vec<Value> {
        let ran: Ran = self.command().arg("--json").args(arguments).output().unwrap().into();
        ran.expect_status(status);
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs the command with `--json`, sends it each of the signals when it has printed another line, and gives all the lines it printed.
    pub(crate) fn signalled(&self, arguments: &[&str], signals: &[Signal]) -> (Vec<Value>, Ran) {
        let mut command = self.command();
        command.arg("--json").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        for signal in signals {
            stdout.read_line(&mut printed).unwrap();
            kill_process(Pid::from_child(&child), *signal).unwrap();
        }
        stdout.read_to_string(&mut printed).unwrap();
        let lines = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines, child.wait_with_output().unwrap().into())
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("the command was not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    #[track_caller]
    pub(crate) fn expect_status(&self, status: i32) -> &Self {
        assert_eq!(self.status, status, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

/// The command: where the tests were packed, beside them.
fn varve() -> PathBuf {
    std::env::var_os("VARVE_XEN_FILES")
        .map_or_else(|| env!("CARGO_BIN_EXE_varve").into(), |folder| Path::new(&folder).join("varve"))
}

/// The lines whose `key` is `value`.
pub(crate) fn having<'a>(
    lines: &'a [Value],
    key: &'a str,
    value: &'a str,
) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line[key] == value)
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
