//! The gate's journal: a line for everything it is about to do, in a file that is only ever appended to.
//!
//! It answers two questions. Afterwards: which epoch let which packets go, and when was the guest paused, quarantined, or opened
//! without a verdict? And at the next start: what did the gate before have in mind, which the kernel cannot tell? **Nothing is done
//! that could not be written down first.** Each line is one JSON object: `at_ns` (since 1970, UTC), `act`, and what belongs to it.
//!
//! When the file has grown to [`ROTATE_BYTES`] it is renamed to end in `.1`, in place of the one before.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value};

use crate::ingest::nanoseconds;

/// Length at which a journal is begun anew, in bytes: some four days at five epochs a second.
const ROTATE_BYTES: u64 = 256 << 20;

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
    guest: String,
    /// The line that says what the guest was left as, unless it is as any other.
    standing: Option<Value>,
}

impl Journal {
    /// Opens the journal of the guest with this identity.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] when another gate has it.
    pub(super) fn open(path: &Path, guest: &str) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let (standing, whole) = read(&file, guest)?;
        // A line that was cut off by a full disk must not spoil the next.
        if !whole {
            file.write_all(b"\n")?;
        }
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, guest: guest.to_owned(), standing })
    }

    /// What the gate before left of the guest.
    pub(super) fn left(&self) -> Left {
        let Some(line) = &self.standing else { return Left::Ordinary };
        match text(line, "act") {
            "freeze" => Left::Frozen(line.get("epoch").and_then(Value::as_u64).unwrap_or_default()),
            _ => Left::Quarantined(text(line, "bridge").to_owned()),
        }
    }

    /// Writes a line. What it says must not be done when that fails.
    pub(super) fn write(&mut self, act: &str, rest: &Value) -> io::Result<()> {
        let mut line = Map::new();
        line.insert("at_ns".to_owned(), nanoseconds(SystemTime::now()).into());
        line.insert("act".to_owned(), act.into());
        if decides(act) || act == "begin" {
            line.insert("guest".to_owned(), self.guest.as_str().into());
        }
        line.extend(rest.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        if self.bytes > ROTATE_BYTES {
            self.rotate()?;
        }
        let line = Value::Object(line);
        self.append(&line)?;
        if decides(act) {
            self.standing = stands(act).then_some(line);
        }
        Ok(())
    }

    fn append(&mut self, line: &Value) -> io::Result<()> {
        let line = format!("{line}\n");
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
        // Who reads the new file must know it too.
        self.standing.clone().map_or(Ok(()), |line| self.append(&line))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Whether what a guest was left as is told by this act.
fn decides(act: &str) -> bool {
    stands(act) || matches!(act, "thaw" | "stay" | "off")
}

/// Whether a guest stays as this act left it.
fn stands(act: &str) -> bool {
    matches!(act, "freeze" | "quarantine")
}

/// What a journal says that the guest was left as, and whether its last line is whole.
fn read(file: &File, guest: &str) -> io::Result<(Option<Value>, bool)> {
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    let (mut standing, mut whole) = (None, true);
    while reader.read_until(b'\n', &mut line)? > 0 {
        whole = line.ends_with(b"\n");
        let value = serde_json::from_slice::<Value>(&line).unwrap_or_default();
        let act = text(&value, "act");
        if decides(act) && text(&value, "guest") == guest {
            standing = stands(act).then_some(value);
        }
        line.clear();
    }
    Ok((standing, whole))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(guest: &str, lines: &[(&str, Value)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gates/web1.jsonl");
        let mut journal = Journal::open(&path, guest).unwrap();
        assert_eq!(journal.left(), Left::Ordinary);
        lines.iter().for_each(|(act, rest)| journal.write(act, rest).unwrap());
        (folder, path)
    }

    fn left_of(lines: &[(&str, Value)]) -> Left {
        let (_folder, path) = written("a", lines);
        Journal::open(&path, "a").unwrap().left()
    }

    #[test]
    fn the_next_gate_knows_what_the_one_before_left() {
        let begin = ("begin", json!({}));
        let freeze = ("freeze", json!({"epoch": 17}));
        let quarantine = ("quarantine", json!({"bridge": "island"}));
        let release = ("release", json!({"epoch": 3}));
        assert_eq!(left_of(&[begin.clone(), release.clone()]), Left::Ordinary);
        assert_eq!(left_of(&[begin.clone(), freeze.clone()]), Left::Frozen(17));
        assert_eq!(left_of(&[begin.clone(), freeze.clone(), begin.clone()]), Left::Frozen(17), "asked again");
        let moved = [begin.clone(), quarantine.clone(), release.clone(), begin.clone(), release];
        assert_eq!(left_of(&moved), Left::Quarantined("island".to_owned()), "for as long as it is gated");
        let stayed = [quarantine, ("stay", json!({"reason": "no such bridge"}))];
        assert_eq!(left_of(&stayed), Left::Ordinary);
        assert_eq!(left_of(&[begin.clone(), freeze.clone(), ("thaw", json!({}))]), Left::Ordinary);
        assert_eq!(left_of(&[begin, freeze, ("off", json!({}))]), Left::Ordinary);
    }

    #[test]
    fn what_was_left_of_another_guest_is_its_own() {
        let (_folder, path) = written("a", &[("begin", json!({})), ("freeze", json!({"epoch": 17}))]);
        let mut other = Journal::open(&path, "b").unwrap();
        assert_eq!(other.left(), Left::Ordinary, "one of the same name, rolled back to before");
        other.write("quarantine", &json!({"bridge": "island"})).unwrap();
        drop(other);
        assert_eq!(Journal::open(&path, "a").unwrap().left(), Left::Frozen(17));
    }

    #[test]
    fn a_journal_that_is_begun_anew_says_what_the_guest_was_left_as() {
        let (_folder, path) = written("a", &[("quarantine", json!({"bridge": "island"}))]);
        let mut journal = Journal::open(&path, "a").unwrap();
        journal.bytes = ROTATE_BYTES + 1;
        journal.write("release", &json!({"epoch": 3})).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("release") && journal.bytes < 1000);
        drop(journal);
        assert_eq!(Journal::open(&path, "a").unwrap().left(), Left::Quarantined("island".to_owned()));
    }

    #[test]
    fn lines_are_one_object_each_and_a_cut_one_spoils_no_other() {
        let (_folder, path) = written("a", &[("begin", json!({}))]);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at_ns\":12").unwrap();
        let mut journal = Journal::open(&path, "a").unwrap();
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
        let (_folder, path) = written("a", &[]);
        let first = Journal::open(&path, "a").unwrap();
        assert_eq!(Journal::open(&path, "a").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(Journal::open(&path, "a").is_ok());
    }
}
