//! The process that looks: it has nothing but a socket and a file to read, and no way to anything else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use varve_analyze::engine::{EpochResult, Live, Verdict};
use varve_analyze::policy::Policy;
use varve_analyze::scans::{self, Scan};
use varve_formats::image::Image;
use varve_formats::{Fault, Gfn, Gpa, PhysicalMemory, Region, Vcpu};

use super::confine::confine;
use super::past::{Line, Remote};
use super::wire::{self, Frame, Order, Report, WireVerdict};
use crate::scanning::THRESHOLD;

/// Serves the gate at the other end of `stream` until it is gone.
pub(crate) fn serve(stream: UnixStream) -> io::Result<()> {
    confine()?;
    let line = Arc::new(Line::new(stream));
    let Some(frame) = line.next()? else { return Ok(()) };
    let Order::Begin { policy, scans, epochs } = frame.text else { return Err(nonsense()) };
    let (policy, scans) = match prepare(&policy, &scans) {
        Ok(prepared) => prepared,
        Err(reason) => return line.say(&Report::Cannot { reason }, &[]),
    };
    let past = Remote(Arc::clone(&line));
    let pinned = (!frame.bytes.is_empty()).then_some(frame.bytes);
    // Whether the gate still listens shows later.
    let learned = |epoch: u64| drop(line.say(&Report::Learned { epochs: epoch + 1 }, &[]));
    let live = match Live::begin(&past, &scans, &policy, pinned.as_deref(), epochs, learned) {
        Ok(live) => live,
        Err(error) => return line.say(&Report::Cannot { reason: error.to_string() }, &[]),
    };
    line.say(&Report::Ready, &[])?;
    answer(&line, live)
}

fn prepare(policy: &str, names: &[String]) -> Result<(Policy, Vec<&'static Scan>), String> {
    let policy = Policy::parse(policy).map_err(|error| error.to_string())?;
    let scan = |name: &String| scans::named(name).ok_or_else(|| format!("there is no scan {name:?}"));
    Ok((policy, names.iter().map(scan).collect::<Result<_, _>>()?))
}

/// Answers questions.
fn answer(line: &Line, mut live: Live<'_>) -> io::Result<()> {
    let mut mirror: Option<Mirror> = None;
    let mut looks = 0;
    while let Some(Frame { text, bytes, file }) = line.next()? {
        match text {
            Order::Mirror { segments } => {
                let image = open(file.ok_or_else(nonsense)?, &segments)?;
                mirror = Some(Mirror { image, since: looks, changed: HashMap::new() });
            }
            Order::Look { epoch, vcpus, absent, fresh } => {
                let begun = Instant::now();
                looks += 1;
                let mirror = mirror.as_mut().ok_or_else(nonsense)?;
                let changes = (!fresh).then(|| wire::changes_of(&bytes));
                let gfns = changes.iter().flatten().map(|change| change.gfn.0);
                mirror.changed.extend(gfns.map(|gfn| (gfn, looks)));
                let memory = Seen { mirror, absent: absent.into_iter().collect() };
                let vcpus: Vec<Vcpu> = vcpus.iter().map(Vcpu::from).collect();
                let result = live.judge(epoch, &memory, &vcpus, changes.as_deref());
                let (verdict, because) = verdict(&result);
                let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                line.say(&Report::Verdict { epoch, verdict, because, took_us }, &live.pinned())?;
            }
            _ => return Err(nonsense()),
        }
    }
    Ok(())
}

fn open(file: File, segments: &[(u64, u64, u64)]) -> io::Result<Image> {
    let image = Image::of_ram(file, Path::new("mirror"), wire::segments_of(segments));
    image.map_err(io::Error::other)
}

/// The verdict and its reasons.
fn verdict(result: &EpochResult) -> (WireVerdict, Vec<String>) {
    let scans = result.scans.as_deref().unwrap_or_default();
    let findings = scans.iter().flat_map(|scan| scan.report.findings.iter());
    let found = findings.filter(|finding| finding.severity >= THRESHOLD);
    let found = found.map(|finding| format!("{}: {}", finding.scan, finding.title));
    let faults = scans.iter().flat_map(|scan| scan.report.faults.iter().map(|fault| (scan.scan, fault)));
    let missed = faults.map(|(scan, fault)| format!("{scan}: {}: {}", fault.what, fault.reason));
    match result.verdict(THRESHOLD) {
        Verdict::Clean => (WireVerdict::Passed, Vec::new()),
        Verdict::Bad => (WireVerdict::Bad, wire::shortened(found)),
        Verdict::Incomplete => {
            let whole = result.scans.as_ref().err().map(ToString::to_string);
            (WireVerdict::Incomplete, wire::shortened(whole.into_iter().chain(missed)))
        }
    }
}

/// The memory that the gate shows.
struct Mirror {
    image: Image,
    /// The number of looks there had been when it came.
    since: u64,
    /// At which look a frame had last changed; all others have not since it came.
    changed: HashMap<u64, u64>,
}

/// Bits of an identity that are the frame's number; the rest is the number of a look.
const GFN_BITS: u32 = 40;

/// The mirror, without the frames of which it has nothing.
struct Seen<'a> {
    mirror: &'a Mirror,
    absent: HashSet<u64>,
}

impl PhysicalMemory for Seen<'_> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let last = at.checked_add(buf.len().saturating_sub(1) as u64).ok_or(Fault::Overflow { at: at.0 })?;
        if !self.absent.is_empty() {
            let missing = (at.gfn().0..=last.gfn().0).find(|gfn| self.absent.contains(gfn));
            if let Some(missing) = missing.and_then(|gfn| Gfn(gfn).gpa()) {
                return Err(Fault::NotCaptured { at: missing.max(at) });
            }
        }
        self.mirror.image.read(at, buf)
    }

    fn regions(&self) -> &[Region] {
        self.mirror.image.regions()
    }

    /// A frame has the content it had when it last changed: the frame and that moment name it.
    fn page_identity(&self, gfn: Gfn) -> Option<u64> {
        let look = self.mirror.changed.get(&gfn.0).copied().unwrap_or(self.mirror.since);
        let nameable = gfn.0 >> GFN_BITS == 0 && look >> (u64::BITS - GFN_BITS) == 0;
        (nameable && !self.absent.contains(&gfn.0)).then_some(look << GFN_BITS | gfn.0)
    }
}

fn nonsense() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the gate says what makes no sense")
}
