//! Earlier epochs as the scanner has them: it asks the gate for pages, and keeps what it was given.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use varve_analyze::engine::{Past, PastEpoch};
use varve_formats::{Fault, Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region, Vcpu};

use super::wire::{self, Frame, Order, PAGES_MAX, Report};

/// Most pages kept of an epoch: a kernel's code and tables are some ten thousand.
const KEPT_MAX: usize = 1 << 16;

/// The line to the gate. One question at a time.
pub(super) struct Line(Mutex<Ends>);

struct Ends {
    stream: UnixStream,
    /// Orders that came while an answer was waited for.
    orders: VecDeque<Frame<Order>>,
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(Ends { stream, orders: VecDeque::new() }))
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next order; `None` when the gate is gone.
    pub(super) fn next(&self) -> io::Result<Option<Frame<Order>>> {
        let mut ends = self.ends();
        match ends.orders.pop_front() {
            Some(frame) => Ok(Some(frame)),
            None => wire::receive_file(&ends.stream),
        }
    }

    pub(super) fn say(&self, report: &Report, bytes: &[u8]) -> io::Result<()> {
        wire::send(&self.ends().stream, report, bytes, None)
    }

    fn ask(&self, question: &Report) -> Result<Frame<Order>, String> {
        let mut ends = self.ends();
        wire::send(&ends.stream, question, &[], None).map_err(|error| error.to_string())?;
        loop {
            match wire::receive_file(&ends.stream) {
                Ok(Some(Frame { text: Order::Refused { reason }, .. })) => return Err(reason),
                Ok(Some(frame @ Frame { text: Order::Epoch { .. } | Order::Pages { .. }, .. })) => {
                    return Ok(frame);
                }
                // The gate does not wait until a scanner that was started anew is ready.
                Ok(Some(order)) => ends.orders.push_back(order),
                Ok(None) => return Err("the gate is gone".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// All earlier epochs.
pub(super) struct Remote(pub(super) Arc<Line>);

impl Past for Remote {
    fn epoch(&self, epoch: u64) -> Result<PastEpoch, String> {
        let frame = self.0.ask(&Report::WantEpoch { epoch })?;
        let Order::Epoch { regions, vcpus } = frame.text else {
            return Err("the gate answers nonsense".to_owned());
        };
        let regions = regions.iter().map(|(start, len)| Region { start: Gpa(*start), len: *len }).collect();
        let memory = Memory { line: Arc::clone(&self.0), epoch, regions, pages: Mutex::default() };
        Ok(PastEpoch { memory: Arc::new(memory), vcpus: vcpus.iter().map(Vcpu::from).collect() })
    }
}

/// The memory of an earlier epoch.
struct Memory {
    line: Arc<Line>,
    epoch: u64,
    regions: Vec<Region>,
    /// What was asked for already; `None` where there is nothing.
    pages: Mutex<BTreeMap<u64, Option<Box<[u8; PAGE_SIZE]>>>>,
}

impl Memory {
    /// Copies from a page. The lock is held while the gate is asked: whoever waits wants the same pages as a rule.
    fn copy(&self, gfn: Gfn, offset: usize, to: &mut [u8]) -> Option<()> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if !pages.contains_key(&gfn.0) {
            if pages.len() > KEPT_MAX {
                pages.clear();
            }
            self.fetch(gfn, &mut pages)?;
        }
        let page = pages.get(&gfn.0)?.as_ref()?;
        to.copy_from_slice(page.get(offset..offset.checked_add(to.len())?)?);
        Some(())
    }

    /// Asks for a run of pages that begins with this one.
    fn fetch(&self, gfn: Gfn, pages: &mut BTreeMap<u64, Option<Box<[u8; PAGE_SIZE]>>>) -> Option<()> {
        let question = Report::WantPages { epoch: self.epoch, gfn: gfn.0, count: PAGES_MAX };
        let frame = self.line.ask(&question).ok()?;
        let Order::Pages { there } = frame.text else { return None };
        let (mut bytes, _) = frame.bytes.as_chunks::<PAGE_SIZE>();
        for (number, there) in (gfn.0..).zip(there.into_iter().take(PAGES_MAX as usize)) {
            let page = match (there, bytes.split_first()) {
                (true, Some((page, rest))) => {
                    bytes = rest;
                    Some(Box::new(*page))
                }
                _ => None,
            };
            pages.insert(number, page);
        }
        Some(())
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let (mut at, mut rest) = (at, buf);
        while !rest.is_empty() {
            let offset = at.page_offset();
            let (part, tail) = rest.split_at_mut(rest.len().min(PAGE_SIZE - offset));
            self.copy(at.gfn(), offset, part).ok_or(Fault::NotCaptured { at })?;
            at = at.checked_add(part.len() as u64).ok_or(Fault::Overflow { at: at.0 })?;
            rest = tail;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}
