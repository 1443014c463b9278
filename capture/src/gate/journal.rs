//! The gate's journal: a line for everything it is about to do, in a file that is only ever appended to.
//!
//! It answers two questions. Afterwards: which epoch let which packets go, and when was the guest paused, quarantined, or opened
//! without a verdict? And at the next start: what did the gate before have in mind, which the kernel cannot tell? **Nothing is done
//! that could not be written down first.** Each line is one JSON object: `at_ns` (since 1970, UTC), `act`, and what belongs to it.
//!
//! When the file has grown to [`ROTATE_BYTES`] it is renamed to end in `.1`, in place of the one before.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value};

use crate::ingest::nanoseconds;

/// Length at which a journal is begun anew, in bytes: some four days at five epochs a second.
const ROTATE_BYTES: u64 = 256 << 20;

/// How much of its end is read to learn how the last gate ended, in bytes.
const TAIL_BYTES: u64 = 1 << 20;

/// What a guest was left as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Left {
    /// As any other.
    #[default]
    Ordinary,
    /// Paused for good, because something was found in this epoch.
    Frozen(u64),
    /// On a bridge where it can harm nobody.
    Quarantined(String),
}

/// The journal of a gate. While it is open no other can open it.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Journal {
    /// Opens the journal and tells what the gate before left of the guest with this identity.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] when another gate has it.
    pub(super) fn open(path: &Path, identity: &str) -> io::Result<(Self, Left)> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        Read::by_ref(&mut file).take(TAIL_BYTES).read_to_end(&mut tail)?;
        // A line that was cut off by a full disk must not spoil the next.
        if tail.last().is_some_and(|byte| *byte != b'\n') {
            file.write_all(b"\n")?;
        }
        let left = left(&String::from_utf8_lossy(&tail), identity);
        Ok((Self { path: path.to_owned(), file, bytes }, left))
    }

    /// Writes a line. What it says must not be done when that fails.
    pub(super) fn write(&mut self, act: &str, rest: &Value) -> io::Result<()> {
        let mut line = Map::new();
        line.insert("at_ns".to_owned(), nanoseconds(SystemTime::now()).into());
        line.insert("act".to_owned(), act.into());
        line.extend(rest.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        let line = format!("{}\n", Value::Object(line));
        if self.bytes > ROTATE_BYTES {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = OsString::from(&self.path);
        old.push(".1");
        fs::rename(&self.path, old)?;
        let file = open(&self.path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        (self.file, self.bytes) = (file, 0);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

/// What the last gate of this guest left, from the end of its journal.
fn left(tail: &str, identity: &str) -> Left {
    let lines = tail.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for line in lines {
        let text = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("act") {
            // What came before was another guest's, or was undone on purpose.
            "begin" if text("guest") != identity => return Left::Ordinary,
            "thaw" | "off" => return Left::Ordinary,
            "freeze" => return Left::Frozen(line.get("epoch").and_then(Value::as_u64).unwrap_or_default()),
            "quarantine" => return Left::Quarantined(text("bridge").to_owned()),
            _ => {}
        }
    }
    Left::Ordinary
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(lines: &[(&str, Value)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gates/web1.jsonl");
        let (mut journal, left) = Journal::open(&path, "a").unwrap();
        assert_eq!(left, Left::Ordinary);
        lines.iter().for_each(|(act, rest)| journal.write(act, rest).unwrap());
        (folder, path)
    }

    fn left_of(lines: &[(&str, Value)]) -> Left {
        let (_folder, path) = written(lines);
        Journal::open(&path, "a").unwrap().1
    }

    #[test]
    fn the_next_gate_knows_what_the_one_before_left() {
        let begin = ("begin", json!({"guest": "a"}));
        let freeze = ("freeze", json!({"epoch": 17}));
        let quarantine = ("quarantine", json!({"bridge": "island"}));
        let release = ("release", json!({"epoch": 3}));
        assert_eq!(left_of(&[begin.clone(), release]), Left::Ordinary);
        assert_eq!(left_of(&[begin.clone(), freeze.clone()]), Left::Frozen(17));
        assert_eq!(left_of(&[begin.clone(), freeze.clone(), begin.clone()]), Left::Frozen(17), "asked again");
        assert_eq!(left_of(&[begin.clone(), quarantine]), Left::Quarantined("island".to_owned()));
        assert_eq!(left_of(&[begin, freeze.clone(), ("thaw", json!({}))]), Left::Ordinary);
        assert_eq!(left_of(&[freeze, ("begin", json!({"guest": "b"}))]), Left::Ordinary, "another guest");
    }

    #[test]
    fn lines_are_one_object_each_and_a_cut_one_spoils_no_other() {
        let (_folder, path) = written(&[("begin", json!({"guest": "a"}))]);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at_ns\":12").unwrap();
        let (mut journal, _) = Journal::open(&path, "a").unwrap();
        journal.write("release", &json!({"epoch": 1, "guest": "x\n\u{1b}"})).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let last: Value = serde_json::from_str(lines[2]).unwrap();
        assert_eq!((&last["act"], &last["epoch"]), (&"release".into(), &1.into()));
        assert!(last["at_ns"].as_u64().unwrap() > 1_700_000_000_000_000_000);
    }

    #[test]
    fn one_gate_at_a_time() {
        let (_folder, path) = written(&[]);
        let (first, _) = Journal::open(&path, "a").unwrap();
        assert_eq!(Journal::open(&path, "a").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(Journal::open(&path, "a").is_ok());
    }
}
