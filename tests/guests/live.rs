//! What is said of an epoch at once, as by a gate, is what a sweep says of it afterwards.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_analyze::engine::{Change, History, LINE_BYTES, Live, Past, PastEpoch, Sweep};
use varve_analyze::policy::Policy;
use varve_analyze::scans::{SCANS, Scan};
use varve_formats::{Gfn, PAGE_SIZE, PhysicalMemory};
use varve_store::{Access, Archive, EpochMemory};

use super::{POLICY, Recorded};

/// The VM that histories are recorded of.
const VM: &str = "web1";

struct Archived<'a>(&'a Archive);

impl Past for Archived<'_> {
    fn epoch(&self, number: u64) -> Result<PastEpoch, String> {
        let memory = self.0.epoch(VM, number).map_err(|error| error.to_string())?;
        Ok(PastEpoch { vcpus: memory.vcpus().to_vec(), memory: Arc::new(memory) })
    }
}

/// The lines in which two epochs differ.
fn changes(before: &EpochMemory, after: &EpochMemory) -> Vec<Change> {
    assert_eq!(before.regions(), after.regions());
    let mut found = Vec::new();
    for region in after.regions() {
        for gfn in (region.start.gfn().0..region.end().unwrap().gfn().0).map(Gfn) {
            if before.page_id(gfn) == after.page_id(gfn) {
                continue;
            }
            let page = |memory: &EpochMemory| {
                let mut page = [0; PAGE_SIZE];
                memory.read(gfn.gpa().unwrap(), &mut page).map(|()| page).ok()
            };
            let lines = match (page(before), page(after)) {
                (Some(before), Some(after)) => {
                    let pairs = before.chunks(LINE_BYTES).zip(after.chunks(LINE_BYTES));
                    let differ = pairs.map(|(before, after)| u64::from(before != after));
                    differ.enumerate().fold(0, |lines, (line, differs)| lines | differs << line)
                }
                _ => u64::MAX,
            };
            found.push(Change { gfn, lines });
        }
    }
    found
}

pub(super) fn agree(recorded: &Recorded) {
    let archive = Archive::open(&recorded.archive.path(), Access::Read).unwrap();
    let policy = Policy::parse(POLICY).unwrap();
    let scans: Vec<&'static Scan> = SCANS.iter().collect();
    let past = Archived(&archive);
    let half = archive.epoch_count(VM).unwrap() / 2;
    let mut from_start = Live::begin(&past, &scans, &policy, None, 0, |_| {}).unwrap();
    // One that is started anew in the middle, as after a crash, must learn what went before.
    let mut learned = 0;
    let mut from_middle = Live::begin(&past, &scans, &policy, None, half, |_| learned += 1).unwrap();
    assert_eq!(learned, half);
    let history = History::open(&archive, VM).unwrap();
    let sweep = Sweep { history: &history, scans: &scans, policy: &policy };
    let (mut seen, mut kept) = (0, 0);
    let compared = sweep.run(0..half * 2, |afterwards| {
        let epoch = afterwards.epoch;
        let memory = archive.epoch(VM, epoch).unwrap();
        let changes =
            epoch.checked_sub(1).map(|before| changes(&archive.epoch(VM, before).unwrap(), &memory));
        let mut lives = vec![from_start.judge(epoch, &memory, memory.vcpus(), changes.as_deref())];
        if epoch >= half {
            // The first that it looks at is no change of anything.
            let changes = changes.filter(|_| epoch > half);
            lives.push(from_middle.judge(epoch, &memory, memory.vcpus(), changes.as_deref()));
        }
        let expected = afterwards.scans.unwrap();
        for live in lives {
            for (now, later) in live.scans.unwrap().iter().zip(&expected) {
                assert_eq!((now.scan, &now.report), (later.scan, &later.report), "epoch {epoch}");
                seen += 1;
                kept += u64::from(now.kept);
            }
        }
        ControlFlow::Continue(())
    });
    compared.unwrap();
    println!("{kept} of {seen} reports still held");
    assert!(kept > 0);
    assert_eq!(from_start.pinned(), from_middle.pinned());
}
