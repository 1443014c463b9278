//! Where the guest's RAM is: the part of `info mtree -f` that says which guest addresses show which bytes of which
//! memory backend.
//!
//! A backend file of a guest over 2–3 GiB is not flat: what does not fit below the PCI hole goes above 4 GiB. And a
//! guest can have several backends (NUMA nodes, DIMMs). QEMU renders what its CPUs see into flat views
//! (`flatview_print` in its `softmmu/memory.c`); ours is the one of the address space `memory`:
//!
//! ```text
//! FlatView #1
//!  AS "memory", root: system
//!  Root memory region: system
//!   0000000000000000-000000007fffffff (prio 0, ram): mem0
//!   00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
//!   0000000100000000-000000017fffffff (prio 0, ram): mem0 @0000000080000000 KVM
//! ```
//! RAM shows as `rom` too, where the chipset write-protects it (the BIOS shadow below 1 MiB), hence the name
//! decides, not the kind. What lies under a device (the VGA window) is not what the guest sees and is left out.

use varve_formats::Gpa;

/// Most ranges of one view that are looked at; a PC has some dozens.
const MAX_RANGES: usize = 16_384;

/// Guest physical addresses that show bytes of a memory region of QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryRange {
    /// First guest physical address.
    pub(super) start: Gpa,
    /// Length in bytes.
    pub(super) len: u64,
    /// Name of the region; for RAM, the id of its backend.
    pub(super) region: String,
    /// Where the range begins in the region, in bytes.
    pub(super) offset: u64,
}

/// The ranges of the address space `memory`, devices among them, or what is wrong with the text.
pub(super) fn parse(printed: &str) -> Result<Vec<MemoryRange>, String> {
    let view = printed
        .split("FlatView #")
        .find(|view| view.lines().any(|line| line.trim_start().starts_with("AS \"memory\",")))
        .ok_or("no flat view of the address space \"memory\"")?;
    let mut ranges = Vec::new();
    for line in view.lines().filter(|line| line.contains("(prio ")) {
        if ranges.len() == MAX_RANGES {
            return Err(format!("more than {MAX_RANGES} ranges"));
        }
        ranges.push(range(line).ok_or_else(|| format!("cannot read {line:?}"))?);
    }
    Ok(ranges)
}

fn range(line: &str) -> Option<MemoryRange> {
    let (bounds, rest) = line.trim().split_once(" (prio ")?;
    let (first, last) = bounds.split_once('-')?;
    let (first, last) = (hex(first)?, hex(last)?);
    let (_, rest) = rest.split_once("): ")?;
    let mut words = rest.split_whitespace();
    let region = words.next()?;
    let offset = words.find_map(|word| word.strip_prefix('@')).map_or(Some(0), hex)?;
    Some(MemoryRange {
        start: Gpa(first),
        len: last.checked_sub(first)?.checked_add(1)?,
        // Machine types before 4.0 name a backend by its full path.
        region: region.strip_prefix("/objects/").unwrap_or(region).to_owned(),
        offset,
    })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of guest memory that show `region`, neighbours joined: start, length, offset.
    fn shown(printed: &str, region: &str) -> Vec<(u64, u64, u64)> {
        let mut shown: Vec<(u64, u64, u64)> = Vec::new();
        for range in parse(printed).unwrap().into_iter().filter(|range| range.region == region) {
            match shown.last_mut() {
                Some((start, len, _)) if *start + *len == range.start.0 => *len += range.len,
                _ => shown.push((range.start.0, range.len, range.offset)),
            }
        }
        shown
    }

    #[test]
    fn a_small_guest_is_flat() {
        assert_eq!(shown(include_str!("testdata/mtree-q35.txt"), "ram"), [(0, 0x1000_0000, 0)]);
    }

    #[test]
    fn a_guest_of_4_gib_has_a_hole() {
        let printed = include_str!("testdata/mtree-hole.txt").replace('\n', "\r\n");
        assert_eq!(shown(&printed, "mem0"), [(0, 0x8000_0000, 0), (0x1_0000_0000, 0x8000_0000, 0x8000_0000)]);
    }

    #[test]
    fn numa_nodes_and_dimms_are_backends_of_their_own() {
        let printed = include_str!("testdata/mtree-numa-dimm.txt");
        let below_vga = (0, 0xa_0000, 0);
        assert_eq!(shown(printed, "n0"), [below_vga, (0xc_0000, 0x3ff4_0000, 0xc_0000)]);
        assert_eq!(
            shown(printed, "n1"),
            [(0x4000_0000, 0x8000_0000, 0), (0x1_0000_0000, 0x8000_0000, 0x8000_0000)]
        );
        assert_eq!(shown(printed, "d0"), [(0x1_8000_0000, 0x1000_0000, 0)]);
    }

    #[test]
    fn a_path_names_a_backend_and_an_accelerator_may_follow() {
        let line = "  0000000100000000-000000017fffffff (prio 0, nv-ram): /objects/m @0000000080000000 KVM";
        let range = range(line).unwrap();
        assert_eq!((range.region.as_str(), range.offset, range.len), ("m", 0x8000_0000, 0x8000_0000));
    }

    #[test]
    fn text_that_is_something_else_is_refused() {
        assert_eq!(
            parse("unknown command: 'info mtree -f'").unwrap_err(),
            "no flat view of the address space \"memory\""
        );
        let view = |line: &str| format!("FlatView #0\n AS \"memory\", root: system\n  {line}\n");
        for line in [
            "1-0 (prio 0, ram): m",
            "0-ffffffffffffffff (prio 0, ram): m",
            "0-f (prio 0, ram): m @x",
            "0-f (prio",
        ] {
            assert!(parse(&view(line)).is_err() || parse(&view(line)).unwrap().is_empty(), "{line}");
        }
        let many = view("0-f (prio 0, ram): m\n") + &"  0-f (prio 0, ram): m\n".repeat(MAX_RANGES);
        assert!(parse(&many).unwrap_err().starts_with("more than"));
    }
}
