//! Xen's trace of its scheduler, as `xentrace` writes it: what the domain's processor did, cycle by cycle.
//!
//! A file is records (`struct t_rec` of `xen/trace.h`): a word with the event (28 bits), the number of words that follow
//! (3 bits) and whether there is a time, in cycles, before them (1 bit). A change of a processor's state has both states in
//! its event and the processor and the domain in its word (`trace_runstate_change` of `common/sched/core.c`).

/// `TRC_SCHED_RUNSTATE_CHANGE`, without the states.
const RUNSTATE_CHANGE: u32 = 0x2_1001;

/// `TRC_LOST_RECORDS`.
const LOST: u32 = 0x1_f001;

/// `RUNSTATE_offline` of `xen/vcpu.h`: it could run, and somebody in control does not let it.
const OFFLINE: u32 = 3;

/// How long, in cycles, the first processor of a domain stood still each time.
pub(super) fn stood_still(trace: &[u8], domain: u32) -> Vec<u64> {
    let mut changes = changes(trace, domain);
    // Each processor of the host has a buffer of its own.
    changes.sort_unstable();
    let mut since = None;
    let mut stood = Vec::new();
    for (at, before, after) in changes {
        if let Some(since) = since.take().filter(|_| before == OFFLINE) {
            stood.push(at - since);
        }
        since = (after == OFFLINE).then_some(at);
    }
    stood
}

/// Changes of the state of a domain's first processor: when, from which, to which.
fn changes(trace: &[u8], domain: u32) -> Vec<(u64, u32, u32)> {
    let mut words = trace.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let mut changes = Vec::new();
    while let Some(header) = words.next() {
        let event = header & 0x0fff_ffff;
        assert_ne!(event, LOST, "Xen's trace has gaps");
        let mut next = || u64::from(words.next().unwrap());
        let at = if header >> 31 == 1 { next() | next() << 32 } else { 0 };
        let words: Vec<u64> = (0..header >> 28 & 7).map(|_| next()).collect();
        if event & !0xff0 == RUNSTATE_CHANGE && words == [u64::from(domain) << 16] {
            changes.push((at, event >> 8 & 3, event >> 4 & 3));
        }
    }
    changes
}
