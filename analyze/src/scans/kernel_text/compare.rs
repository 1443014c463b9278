//! Where code is not what it may be.

use std::ops::Range;

use varve_formats::{Gva, PAGE_SIZE};

use super::image::TextImage;
use crate::linux::patching::{Kind, MAX_SITE_LEN, Patching};

/// Differing bytes with fewer equal ones between them belong to one change. Longest instruction: 15 bytes.
const MAX_GAP: usize = 15;

/// Bytes shown of what stands at a site: the longest that the kernel itself may put there.
const SHOWN_AT_SITE: usize = 5;

/// Code that is not what it may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference<'a> {
    pub(super) at: Gva,
    /// The mechanism that patches this place, and cannot have put there what is there.
    pub(super) kind: Option<&'a Kind>,
    pub(super) before: Option<&'a [u8]>,
    pub(super) after: &'a [u8],
}

/// What is wrong with `now`: sites that hold what they may not (those of `patching`, and `trampolines`), and bytes elsewhere
/// that differ from `before`. Ascending.
pub(super) fn compare<'a>(
    now: &'a TextImage,
    before: Option<&'a TextImage>,
    patching: &'a Patching,
    trampolines: &'a [(Gva, Kind)],
) -> Vec<Difference<'a>> {
    let end = Gva(now.start.0.wrapping_add(now.bytes.len() as u64));
    let mut differences = Vec::new();
    let mut judged = Vec::new();
    for (at, kind) in patching.between(now.start, end).iter().chain(trampolines) {
        let offset = at.0.wrapping_sub(now.start.0) as usize;
        let code = now.bytes.get(offset..).unwrap_or_default();
        let code = code.get(..MAX_SITE_LEN).unwrap_or(code);
        if !now.has(offset) || !now.has(offset + code.len().saturating_sub(1)) {
            continue;
        }
        // An instruction is replaced by one of the same length.
        let len_before = before.and_then(|before| patching.explains(kind, *at, before.bytes.get(offset..)?));
        let explained = patching.explains(kind, *at, code);
        let explained =
            explained.filter(|len| !kind.keeps_length() || len_before.is_none_or(|before| before == *len));
        let range = offset..offset + explained.unwrap_or(SHOWN_AT_SITE.min(code.len()));
        if explained.is_none() {
            differences.push(difference(now, before, range.clone(), Some(kind)));
        }
        judged.push(range);
    }
    judged.sort_by_key(|range| range.start);
    if let Some(before) = before {
        let changed = changed_runs(now, before, &judged);
        differences.extend(changed.into_iter().map(|range| difference(now, Some(before), range, None)));
    }
    differences.sort_by_key(|difference| difference.at);
    differences
}

fn difference<'a>(
    now: &'a TextImage,
    before: Option<&'a TextImage>,
    range: Range<usize>,
    kind: Option<&'a Kind>,
) -> Difference<'a> {
    Difference {
        at: Gva(now.start.0.wrapping_add(range.start as u64)),
        kind,
        before: before.and_then(|before| before.bytes.get(range.clone())),
        after: now.bytes.get(range).unwrap_or_default(),
    }
}

/// Runs of bytes that differ outside of `judged`, which is sorted by its start.
fn changed_runs(now: &TextImage, before: &TextImage, judged: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let pages = now.bytes.chunks(PAGE_SIZE).zip(before.bytes.chunks(PAGE_SIZE)).enumerate();
    for (number, (after, earlier)) in pages.filter(|(_, (after, earlier))| after != earlier) {
        let first = number * PAGE_SIZE;
        for offset in
            after.iter().zip(earlier).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| first + at)
        {
            if is_judged(judged, offset) || !now.has(offset) || !before.has(offset) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if offset - run.end <= MAX_GAP && !judged_between(judged, run.end, offset) => {
                    run.end = offset + 1;
                }
                _ => runs.push(offset..offset + 1),
            }
        }
    }
    runs
}

fn is_judged(judged: &[Range<usize>], offset: usize) -> bool {
    judged_between(judged, offset, offset + 1)
}

/// Whether a judged range touches `from..to`.
fn judged_between(judged: &[Range<usize>], from: usize, to: usize) -> bool {
    let after = judged.partition_point(|range| range.start < to);
    // Sites do not overlap, but an optimised kprobe may reach over its neighbours: look back a few.
    judged.get(after.saturating_sub(4)..after).unwrap_or_default().iter().any(|range| range.end > from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 0xffff_ffff_8100_0000;
    const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];

    fn image(bytes: &[u8]) -> TextImage {
        TextImage { start: Gva(START), bytes: bytes.to_vec(), unread: Vec::new(), faults: Vec::new() }
    }

    fn text(changes: &[(usize, &[u8])]) -> TextImage {
        let mut bytes = vec![0x90; 3 * PAGE_SIZE];
        for (offset, change) in changes {
            bytes[*offset..][..change.len()].copy_from_slice(change);
        }
        image(&bytes)
    }

    /// Offsets, lengths and whether at a site.
    fn differences(
        now: &TextImage,
        before: Option<&TextImage>,
        sites: &[(usize, Kind)],
    ) -> Vec<(u64, usize, bool)> {
        let sites = sites.iter().map(|(offset, kind)| (Gva(START + *offset as u64), kind.clone())).collect();
        let patching = Patching::of(sites);
        let found = compare(now, before, &patching, &[]);
        found.iter().map(|found| (found.at.0 - START, found.after.len(), found.kind.is_some())).collect()
    }

    #[test]
    fn equal_text_has_no_difference() {
        assert_eq!(differences(&text(&[]), Some(&text(&[])), &[]), []);
        assert_eq!(differences(&text(&[]), None, &[]), []);
    }

    #[test]
    fn one_changed_byte_is_found_wherever_it_is() {
        for offset in [0, 1, PAGE_SIZE - 1, PAGE_SIZE, 3 * PAGE_SIZE - 1] {
            let now = text(&[(offset, &[0x91])]);
            assert_eq!(differences(&now, Some(&text(&[])), &[]), [(offset as u64, 1, false)]);
        }
    }

    #[test]
    fn near_changes_are_one_and_far_ones_are_two() {
        let now = text(&[(10, &[1, 0x90, 2]), (13 + MAX_GAP, &[3]), (200, &[4])]);
        let expected = [(10, 4 + MAX_GAP, false), (200, 1, false)];
        assert_eq!(differences(&now, Some(&text(&[])), &[]), expected);
    }

    #[test]
    fn a_site_may_change_within_its_rule_and_not_otherwise() {
        let sites = [(16, Kind::JumpLabel { target: Gva(START + 0x100) }), (64, Kind::Fentry)];
        let before = text(&[(16, &NOP5), (64, &NOP5)]);
        let jumps = text(&[(16, &[0xe9, 0xeb, 0, 0, 0]), (64, &NOP5)]);
        assert_eq!(differences(&jumps, Some(&before), &sites), [], "jmp rel32 to 0x100");
        let elsewhere = text(&[(16, &[0xe9, 0xec, 0, 0, 0]), (64, &NOP5)]);
        assert_eq!(differences(&elsewhere, Some(&before), &sites), [(16, 5, true)]);
        let hooked = text(&[(16, &NOP5), (64, &[0xe8, 1, 2, 3, 4])]);
        assert_eq!(differences(&hooked, Some(&before), &sites), [(64, 5, true)]);
        assert_eq!(differences(&hooked, None, &sites), [(64, 5, true)], "needs no baseline");
    }

    #[test]
    fn a_site_keeps_its_length() {
        let sites = [(16, Kind::JumpLabel { target: Gva(START + 0x100) })];
        let before = text(&[(16, &[0x66, 0x90])]);
        let short = text(&[(16, &[0xeb, 0x10])]);
        assert_eq!(differences(&short, Some(&before), &sites), [(16, 5, true)], "not the target");
        let long = text(&[(16, &[0xe9, 0xeb, 0, 0, 0])]);
        assert_eq!(differences(&long, Some(&before), &sites), [(16, 5, true)], "over the next instructions");
    }

    #[test]
    fn a_byte_next_to_a_site_is_not_explained_by_it() {
        let sites = [(64, Kind::Fentry)];
        let before = text(&[(64, &NOP5)]);
        let now = text(&[(63, &[0x91]), (64, &NOP5), (69, &[0x91])]);
        assert_eq!(differences(&now, Some(&before), &sites), [(63, 1, false), (69, 1, false)]);
    }

    #[test]
    fn what_could_not_be_read_is_no_difference() {
        let sites = [(PAGE_SIZE + 8, Kind::Fentry)];
        let mut now = text(&[(PAGE_SIZE + 100, &[1])]);
        now.unread.push(PAGE_SIZE..2 * PAGE_SIZE);
        assert_eq!(differences(&now, Some(&text(&[])), &sites), []);
    }

    proptest! {
        #[test]
        fn every_changed_byte_outside_of_sites_is_covered_once(
            changes in prop::collection::btree_map(0usize..3 * PAGE_SIZE, 1u8..255, 0..40),
        ) {
            let before = text(&[]);
            let mut now = text(&[]);
            for (offset, change) in &changes {
                now.bytes[*offset] ^= change;
            }
            let found = differences(&now, Some(&before), &[]);
            for offset in changes.keys() {
                let covers = |(at, len, _): &&(u64, usize, bool)| (*at..*at + *len as u64).contains(&(*offset as u64));
                prop_assert_eq!(found.iter().filter(covers).count(), 1);
            }
            prop_assert_eq!(found.is_empty(), changes.is_empty());
        }
    }
}
