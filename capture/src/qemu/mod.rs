//! A running QEMU guest: `qemu:SOCKET`, where SOCKET is a QMP socket.
//!
//! QEMU must keep the guest's RAM in a shared file; varve maps that file and never asks QEMU for memory. For each
//! epoch the guest is stopped (`stop`), its memory compared with the epoch before, its registers read, and the
//! guest let go (`cont`).
//!
//! **The guest always comes back.** Whatever fails while we hold it, it is let go; if the connection breaks, over a
//! new one. For the one case nobody can help, our own sudden death, we leave a mark inside QEMU before we stop it
//! (an inert `secret` object named `varve-holds-the-guest`, which cannot outlive that QEMU); whoever connects next and finds it
//! lets the guest go. A guest that somebody else has paused stays paused.

mod layout;
mod memory;
mod qmp;
mod registers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::SourceError;
use crate::source::{GuestMemory, Hold, Pause, Registers, Remainder, Source, SourceKind};
use layout::MemoryRange;
use memory::{Backend, RamFiles};
pub(crate) use qmp::Qmp;

/// The line for [`SOURCES`](crate::source::SOURCES).
pub(crate) const KIND: SourceKind = SourceKind {
    name: "qemu",
    argument: "SOCKET",
    available: || Ok(()),
    open: |socket| Ok(Box::new(Qemu::connect(Path::new(socket), Limits::default())?)),
};

/// Id of the object that says "varve stopped this guest".
const MARK: &str = "varve-holds-the-guest";

/// How long QEMU may take to answer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To greet a client.
    pub greeting: Duration,
    /// To answer a question.
    pub answer: Duration,
    /// To stop or resume the guest, which waits for disk requests under way.
    pub switch: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            greeting: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            switch: Duration::from_secs(60),
        }
    }
}

/// A running QEMU guest.
#[derive(Debug)]
pub struct Qemu {
    socket: PathBuf,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    qmp: Qmp,
    /// The layout as last seen, and its files.
    ram: Option<(Vec<MemoryRange>, Arc<RamFiles>)>,
    remarks: Vec<String>,
}

impl Qemu {
    /// Connects to the QMP socket of a guest, and makes sure that its memory can be captured.
    ///
    /// # Errors
    /// [`SourceError`]: nobody answers, or the guest's RAM is not in a shared file.
    pub fn connect(socket: &Path, limits: Limits) -> Result<Self, SourceError> {
        let qmp = Qmp::connect(socket, limits.greeting)?;
        let state = Mutex::new(State { qmp, ram: None, remarks: Vec::new() });
        let qemu = Self { socket: socket.to_owned(), limits, state };
        qemu.let_go_of_what_a_dead_varve_held()?;
        qemu.memory()?;
        Ok(qemu)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not keep us from letting the guest go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_go_of_what_a_dead_varve_held(&self) -> Result<(), SourceError> {
        let mut state = self.state();
        let objects = state.qmp.execute("qom-list", json!({ "path": "/objects" }), self.limits.answer)?;
        let marked = objects
            .as_array()
            .is_some_and(|objects| objects.iter().any(|object| object.get("name") == Some(&json!(MARK))));
        if !marked {
            return Ok(());
        }
        if !run_state(&mut state.qmp, self.limits)?.running {
            state.qmp.execute("cont", json!({}), self.limits.switch)?;
            state.remarks.push("the guest stood still since an earlier varve was killed: resumed".to_owned());
        }
        unmark(&mut state.qmp, self.limits);
        Ok(())
    }
}

impl Source for Qemu {
    fn spec(&self) -> String {
        format!("qemu:{}", self.socket.display())
    }

    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError> {
        let mut state = self.state();
        let printed = state.qmp.human("info mtree -f", self.limits.answer)?;
        let ranges = layout::parse(&printed)
            .map_err(|reason| SourceError::Protocol { doing: "info mtree -f".to_owned(), reason })?;
        if let Some((known, files)) = &state.ram
            && *known == ranges
        {
            files.check()?;
            return Ok(files.clone());
        }
        let backends = backends(&mut state.qmp, &ranges, self.limits.answer)?;
        let files = Arc::new(RamFiles::open(&ranges, &backends)?);
        state.ram = Some((ranges, Arc::clone(&files)));
        Ok(files)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(self)
    }

    fn take_remarks(&self) -> Vec<String> {
        std::mem::take(&mut self.state().remarks)
    }
}

impl Registers for Qemu {
    fn read(&self) -> Result<Remainder, SourceError> {
        let printed = self.state().qmp.human("info registers -a", self.limits.answer)?;
        let vcpus = registers::parse(&printed);
        if vcpus.is_empty() {
            let reason = "no vCPU in it".to_owned();
            return Err(SourceError::Protocol { doing: "info registers -a".to_owned(), reason });
        }
        Ok(Remainder { vcpus, state: None })
    }
}

impl Pause for Qemu {
    fn pause(&self) -> Result<Hold, SourceError> {
        let mut state = self.state();
        let before = run_state(&mut state.qmp, self.limits)?;
        if !before.running {
            state.qmp.take_events();
            return Ok(Hold::Theirs(before.status));
        }
        mark(&mut state.qmp, self.limits);
        let stopped = state.qmp.execute("stop", json!({}), self.limits.switch);
        state.qmp.take_events();
        match stopped {
            Ok(_) => Ok(Hold::Ours),
            Err(error) => {
                // It may have been stopped all the same, or may be later.
                let _ = self.cont(&mut state);
                Err(error)
            }
        }
    }

    fn resume(&self, hold: &Hold) -> Result<(), SourceError> {
        let mut state = self.state();
        let ran = run_state(&mut state.qmp, self.limits).map(|now| now.running);
        let disturbed = state.qmp.take_events().resumed > 0 || matches!(ran, Ok(true));
        if *hold == Hold::Ours {
            self.cont(&mut state)?;
        }
        ran?;
        if disturbed { Err(SourceError::Disturbed) } else { Ok(()) }
    }
}

impl Qemu {
    /// Lets the guest run; over a new connection when the old one does not serve.
    fn cont(&self, state: &mut State) -> Result<(), SourceError> {
        if state.qmp.execute("cont", json!({}), self.limits.switch).is_err() {
            state.qmp = Qmp::connect(&self.socket, self.limits.greeting).map_err(|error| match error {
                SourceError::Absent { .. } => qmp::gone("cont"),
                error => error,
            })?;
            state.qmp.execute("cont", json!({}), self.limits.switch)?;
        }
        unmark(&mut state.qmp, self.limits);
        Ok(())
    }
}

struct RunState {
    running: bool,
    status: String,
}

fn run_state(qmp: &mut Qmp, limits: Limits) -> Result<RunState, SourceError> {
    let reply = qmp.execute("query-status", json!({}), limits.answer)?;
    let running = reply.get("running").and_then(Value::as_bool);
    let status = reply.get("status").and_then(Value::as_str);
    match (running, status) {
        (Some(running), Some(status)) => Ok(RunState { running, status: status.to_owned() }),
        _ => Err(SourceError::Protocol { doing: "query-status".to_owned(), reason: reply.to_string() }),
    }
}

/// Leaves the mark. A QEMU that refuses it can be captured as well; only the safety net is missing then.
fn mark(qmp: &mut Qmp, limits: Limits) {
    let object = json!({ "qom-type": "secret", "id": MARK, "data": "see varve's docs/capture.md" });
    let _ = qmp.execute("object-add", object, limits.answer);
}

/// Takes the mark away. If that fails it is taken away at the next connection.
fn unmark(qmp: &mut Qmp, limits: Limits) {
    let _ = qmp.execute("object-del", json!({ "id": MARK }), limits.answer);
}

/// The files of the memory backends that show in `ranges`, by id.
fn backends(
    qmp: &mut Qmp,
    ranges: &[MemoryRange],
    limit: Duration,
) -> Result<BTreeMap<String, Backend>, SourceError> {
    let reply = qmp.execute("query-memdev", json!({}), limit)?;
    let devices = reply.as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: BTreeSet<&str> = ranges.iter().map(|range| range.region.as_str()).collect();
    let mut backends = BTreeMap::new();
    for device in devices {
        let Some(id) = device.get("id").and_then(Value::as_str).filter(|id| shown.contains(id)) else {
            continue;
        };
        let shared = device.get("share").and_then(Value::as_bool) == Some(true);
        let size = device.get("size").and_then(Value::as_u64).unwrap_or(0);
        backends.insert(id.to_owned(), backend(qmp, id, shared, size, limit)?);
    }
    if backends.is_empty() {
        let reason = format!("QEMU reports no memory backend that the guest sees: {}", advice("mem0", 0));
        return Err(SourceError::Unsuitable { reason });
    }
    Ok(backends)
}

fn backend(
    qmp: &mut Qmp,
    id: &str,
    shared: bool,
    size: u64,
    limit: Duration,
) -> Result<Backend, SourceError> {
    let unsuitable = |what: &str| SourceError::Unsuitable {
        reason: format!("the guest's memory {id:?} {what}: {}", advice(id, size)),
    };
    if !shared {
        return Err(unsuitable("is private to QEMU"));
    }
    let mut property = |name: &str| {
        qmp.execute("qom-get", json!({ "path": format!("/objects/{id}"), "property": name }), limit)
    };
    if property("type")?.as_str() != Some("memory-backend-file") {
        return Err(unsuitable("is in no file"));
    }
    let path = property("mem-path")?.as_str().map(PathBuf::from).unwrap_or_default();
    if !path.is_absolute() {
        return Err(unsuitable("is in a file with a relative path, relative to a directory only QEMU knows"));
    }
    if path.is_dir() {
        return Err(unsuitable("is in a nameless file, as mem-path is a directory"));
    }
    // Since QEMU 8.1; before, a backend begins where its file begins.
    let offset = match property("offset") {
        Ok(offset) => offset.as_u64().unwrap_or(0),
        Err(SourceError::Refused { .. }) => 0,
        Err(error) => return Err(error),
    };
    Ok(Backend { path, offset })
}

/// How to start QEMU so that its guest can be captured.
fn advice(id: &str, size: u64) -> String {
    let size = match size {
        0 => "SIZE".to_owned(),
        bytes if bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
        bytes => bytes.to_string(),
    };
    format!(
        "start QEMU with `-object memory-backend-file,id={id},size={size},mem-path=/dev/shm/NAME,share=on \
         -machine memory-backend={id}`"
    )
}
