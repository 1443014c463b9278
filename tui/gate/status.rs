//! What a gate says of itself while it is at work, and what the kernel says of every gate: `varve gate --status`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use varve_capture::output::{Orphan, OutputBuffer, Traffic};

use super::metrics::replace;
use crate::exit::{Failure, Status};
use crate::output::{Output, Table};

/// Where running gates say how they are.
const FOLDER: &str = "/run/varve";

/// What a gate says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) vm: String,
    pub(super) source: String,
    pub(super) vifs: Vec<String>,
    /// Its process.
    pub(super) pid: u32,
    /// What it is doing: `gating`, `paused`, `quarantined`, `frozen`, `ended`.
    pub(super) state: String,
    /// Why, when it is not as usual.
    pub(super) because: String,
    pub(super) fail_open: bool,
    pub(super) failed_open: u64,
    pub(super) epoch: Option<u64>,
    pub(super) verdict: String,
    pub(super) last_passed: Option<u64>,
    /// When this was said, in seconds since 1970.
    pub(super) at: u64,
}

/// Where the gate of this VM says how it is.
pub(crate) fn status_path(vm: &str) -> PathBuf {
    // A VM's name is no path: the archive allows neither `/` nor what begins with a dot.
    Path::new(FOLDER).join(format!("gate-{vm}.json"))
}

impl Said {
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        replace(path, &serde_json::to_vec(self)?)
    }
}

/// A gate as it is seen now.
struct Seen {
    vm: String,
    state: String,
    vif: String,
    said: Option<Said>,
    packets: Option<u32>,
    bytes: Option<u32>,
}

/// Prints how all gates of this host are, or that of `vm`.
pub(crate) fn print(out: &mut Output, vm: Option<&str>) -> Result<Status, Failure> {
    let said: Vec<Said> = said().map_err(Failure::new)?;
    let orphans = OutputBuffer::orphans().map_err(Failure::new)?;
    let mut rows: Vec<Seen> = orphans.iter().map(|orphan| of_buffer(orphan, &said)).collect();
    // Those whose guest or buffer is gone.
    let lost = said.iter().filter(|said| rows.iter().all(|row| row.vm != said.vm));
    let lost: Vec<Seen> = lost
        .map(|said| Seen {
            vm: said.vm.clone(),
            state: if is_running(said) { said.state.clone() } else { "ended".to_owned() },
            vif: String::new(),
            said: Some(said.clone()),
            packets: None,
            bytes: None,
        })
        .collect();
    rows.extend(lost);
    rows.retain(|row| vm.is_none_or(|vm| row.vm == vm));
    if out.is_json() {
        for row in &rows {
            out.line(&json!({
                "type": "gate", "vm": row.vm, "state": row.state, "vif": row.vif, "held_packets": row.packets,
                "held_bytes": row.bytes, "because": row.said.as_ref().map(|said| said.because.as_str()),
                "pid": row.said.as_ref().filter(|said| is_running(said)).map(|said| said.pid),
                "epoch": row.said.as_ref().and_then(|said| said.epoch),
                "verdict": row.said.as_ref().map(|said| said.verdict.as_str()),
                "last_passed": row.said.as_ref().and_then(|said| said.last_passed),
                "fail_open": row.said.as_ref().map(|said| said.fail_open),
                "failed_open": row.said.as_ref().map(|said| said.failed_open),
            }))?;
        }
    } else if rows.is_empty() {
        out.text("no guest of this host is gated")?;
    } else {
        let mut table = Table::new(&[
            "vm",
            "state",
            "card",
            "held packets>",
            "held bytes>",
            "epoch>",
            "verdict",
            "because",
        ]);
        let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
        for row in &rows {
            let said = row.said.clone().unwrap_or_default();
            let open = if said.fail_open {
                format!(" (fails open; used {} times)", said.failed_open)
            } else {
                String::new()
            };
            table.row([
                row.vm.clone(),
                format!("{}{open}", row.state),
                row.vif.clone(),
                number(row.packets),
                number(row.bytes),
                said.epoch.map_or("-".to_owned(), |epoch| epoch.to_string()),
                said.verdict,
                said.because,
            ]);
        }
        out.table(&table)?;
    }
    out.flush()?;
    Ok(Status::Nothing)
}

fn of_buffer(orphan: &Orphan, said: &[Said]) -> Seen {
    let said = said.iter().find(|said| said.vifs.contains(&orphan.vif.name)).cloned();
    let running = said.as_ref().is_some_and(is_running);
    let state = match &said {
        Some(said) if running || said.state == "frozen" => said.state.clone(),
        Some(_) if orphan.traffic == Traffic::Unknown => "held, and no gate is at work".to_owned(),
        _ => format!("no gate is at work: {}", orphan.traffic),
    };
    let vm = said.as_ref().map(|said| said.vm.clone());
    Seen {
        vm: vm.or_else(|| orphan.vm.clone()).unwrap_or_default(),
        state,
        vif: orphan.vif.name.clone(),
        said,
        packets: orphan.outbound.map(|plug| plug.waiting_packets),
        bytes: orphan.outbound.map(|plug| plug.waiting_bytes),
    }
}

/// What gates have said.
fn said() -> io::Result<Vec<Said>> {
    let entries = match fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let ours = entries.filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("gate-") && name.ends_with(".json")
    });
    Ok(ours.filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()).collect())
}

/// Whether the process that said it still is a gate.
fn is_running(said: &Said) -> bool {
    let command = fs::read(format!("/proc/{}/cmdline", said.pid)).unwrap_or_default();
    said.state != "ended" && command.split(|byte| *byte == 0).any(|argument| argument == b"gate")
}
