//! `struct maple_tree`: ranges of indices and a pointer for each (`include/linux/maple_tree.h`, `lib/maple_tree.c`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::walk::{Seen, Walk};

/// Nodes at most. A leaf of a process' tree holds 5 VMAs or more: room for a million of them.
const MAX_NODES: usize = 1 << 18;
/// Entries at most.
const MAX_ENTRIES: usize = 1 << 20;
/// Levels at most (`MAPLE_HEIGHT_MAX`).
const MAX_DEPTH: u32 = 31;
/// Bytes of a node, and their alignment.
const NODE_BYTES: usize = 256;

/// Members of `struct maple_range_64` and `struct maple_arange_64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapleLayout {
    /// Leaves, and inner nodes of trees that do not track gaps.
    pub range: NodeLayout,
    /// Inner nodes of trees that track gaps, as those of VMAs do.
    pub gap_range: NodeLayout,
}

/// Arrays of one kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLayout {
    /// Last index of each slot but the last.
    pub pivots: Field,
    /// How many pivots there are.
    pub pivot_count: usize,
    /// Pointers to nodes or, in a leaf, what is stored.
    pub slots: Field,
}

/// A reference to a node: its address with its type in bits 6..3.
#[derive(Clone, Copy)]
struct NodeRef(u64);

impl NodeRef {
    const fn address(self) -> Gva {
        Gva(self.0 & !(NODE_BYTES as u64 - 1))
    }
}

/// `enum maple_type`. Dense nodes (0) are not used on 64-bit machines.
const LEAF_64: u64 = 1;
const RANGE_64: u64 = 2;
const ARANGE_64: u64 = 3;

impl MapleLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let node = |name| {
            let node = Structure::named(btf, name)?;
            let (pivots, pivot_count, _) = node.array("pivot")?;
            let pivot_count = usize::try_from(pivot_count).unwrap_or(NODE_BYTES).min(NODE_BYTES / 8);
            Ok(NodeLayout { pivots, pivot_count, slots: node.field("slot")? })
        };
        Ok(Self { range: node("maple_range_64")?, gap_range: node("maple_arange_64")? })
    }

    /// Every pointer in the tree whose root (`ma_root`) is `root`, in the order of its ranges.
    pub fn walk(&self, memory: &dyn VirtualMemory, root: u64) -> Walk<Gva> {
        let mut walk = Walk::default();
        if is_node(root) {
            let mut seen = Seen::new("maple tree nodes", MAX_NODES);
            self.walk_node(memory, NodeRef(root), u64::MAX, MAX_DEPTH, &mut seen, &mut walk);
        } else if let Some(pointer) = stored(root) {
            walk.items.push(pointer);
        }
        walk
    }

    /// `last`: the last index that the node covers.
    fn walk_node(
        &self,
        memory: &dyn VirtualMemory,
        node: NodeRef,
        last: u64,
        depth_left: u32,
        seen: &mut Seen,
        walk: &mut Walk<Gva>,
    ) {
        let Some(depth_left) = depth_left.checked_sub(1) else {
            let limit = u64::from(MAX_DEPTH);
            return walk.fault(Fault::Limit { what: "maple tree depth", limit, at: node.0 });
        };
        let mut bytes = [0; NODE_BYTES];
        let read = seen.enter(node.address()).and_then(|()| memory.read(node.address(), &mut bytes));
        if walk.try_or_note(read).is_none() {
            return;
        }
        let (layout, leaf) = match (node.0 >> 3) & 0xf {
            LEAF_64 => (&self.range, true),
            RANGE_64 => (&self.range, false),
            ARANGE_64 => (&self.gap_range, false),
            _ => return walk.fault(Fault::Malformed { what: "maple node type", at: node.0 }),
        };
        for (slot, slot_last) in layout.slots(&bytes, last) {
            if walk.items.len() >= MAX_ENTRIES {
                let limit = MAX_ENTRIES as u64;
                return walk.fault(Fault::Limit { what: "maple tree entries", limit, at: node.0 });
            } else if leaf {
                walk.items.extend(stored(slot));
            } else if slot != 0 {
                self.walk_node(memory, NodeRef(slot), slot_last, depth_left, seen, walk);
            }
        }
    }
}

impl NodeLayout {
    /// The slots in use and the last index of each. The slots end where the node's range does: at the pivot that
    /// reaches `last`, or at the first unused (zero) pivot, which stands for it.
    fn slots(&self, bytes: &[u8; NODE_BYTES], last: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut ended = false;
        (0..=self.pivot_count).map_while(move |slot| {
            if ended {
                return None;
            }
            let pivot = if slot < self.pivot_count { word(bytes, self.pivots.offset, slot)? } else { last };
            let unused = pivot == 0 && slot > 0;
            ended = unused || pivot >= last;
            Some((word(bytes, self.slots.offset, slot)?, if unused { last } else { pivot.min(last) }))
        })
    }
}

fn word(bytes: &[u8; NODE_BYTES], offset: u64, index: usize) -> Option<u64> {
    let start = usize::try_from(offset).ok()?.checked_add(index * 8)?;
    bytes.get(start..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// Whether the root refers to a node: internal entries have bit 1 set and bit 0 clear, and small ones are marks.
const fn is_node(root: u64) -> bool {
    root & 3 == 2 && root > 4096
}

/// What a leaf's slot holds. Small values ending in `10` are marks and stand for nothing.
const fn stored(slot: u64) -> Option<Gva> {
    if slot == 0 || (slot & 3 == 2 && slot <= 4096) { None } else { Some(Gva(slot)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Sparse;

    /// As on x86-64: 15 pivots and 16 slots, or 9 and 10.
    const LAYOUT: MapleLayout = MapleLayout {
        range: NodeLayout {
            pivots: Field { offset: 8, size: 120 },
            pivot_count: 15,
            slots: Field { offset: 128, size: 128 },
        },
        gap_range: NodeLayout {
            pivots: Field { offset: 8, size: 72 },
            pivot_count: 9,
            slots: Field { offset: 80, size: 80 },
        },
    };

    fn node(memory: &mut Sparse, at: u64, slots_at: u64, pivots: &[u64], slots: &[u64]) {
        memory.write(at, &[0; 256]);
        for (index, pivot) in pivots.iter().enumerate() {
            memory.write_u64(at + 8 + index as u64 * 8, *pivot);
        }
        for (index, slot) in slots.iter().enumerate() {
            memory.write_u64(at + slots_at + index as u64 * 8, *slot);
        }
    }

    fn leaf(memory: &mut Sparse, at: u64, pivots: &[u64], slots: &[u64]) -> u64 {
        node(memory, at, 128, pivots, slots);
        at | LEAF_64 << 3 | 4
    }

    #[test]
    fn two_levels_with_holes_and_metadata() {
        let mut memory = Sparse::default();
        let left = leaf(&mut memory, 0x1_0000, &[0xfff, 0x1fff, 0x4fff], &[0, 0xa000, 0xb000]);
        // The last slot of a leaf that is not full holds metadata and no entry.
        memory.write_u64(0x1_0000 + 128 + 15 * 8, 0x0202);
        let right = leaf(&mut memory, 0x2_0000, &[0x5fff, 0x6fff, 0], &[0xc000, 0x402, 0xd000]);
        node(&mut memory, 0x3_0000, 80, &[0x4fff, u64::MAX], &[left, right]);
        let walk = LAYOUT.walk(&memory, 0x3_0000 | ARANGE_64 << 3 | 2);
        assert_eq!(walk.items, [Gva(0xa000), Gva(0xb000), Gva(0xc000), Gva(0xd000)]);
        assert!(walk.complete);
    }

    #[test]
    fn a_full_leaf_has_sixteen_entries() {
        let mut memory = Sparse::default();
        let pivots: Vec<u64> = (1..=15).map(|pivot| pivot * 0x1000 - 1).collect();
        let slots: Vec<u64> = (1..=16).map(|slot| slot * 0x10000).collect();
        leaf(&mut memory, 0x1_0000, &pivots, &slots);
        assert_eq!(LAYOUT.walk(&memory, 0x1_0000 | LEAF_64 << 3 | 2).items.len(), 16);
    }

    #[test]
    fn a_tree_of_one_entry_or_none_has_no_node() {
        assert_eq!(
            LAYOUT.walk(&Sparse::default(), 0xffff_8880_0000_1000).items,
            [Gva(0xffff_8880_0000_1000)]
        );
        assert_eq!(LAYOUT.walk(&Sparse::default(), 0), Walk::default());
    }

    #[test]
    fn loops_wild_pointers_and_unknown_types_are_faults() {
        let mut memory = Sparse::default();
        let root = 0x3_0000 | RANGE_64 << 3;
        let ok = leaf(&mut memory, 0x1_0000, &[u64::MAX], &[0xa000]);
        node(&mut memory, 0x3_0000, 128, &[1, 2, 3, 4], &[root, 0xdead_0000_0000_0018, ok, 0x1_0000]);
        let walk = LAYOUT.walk(&memory, root | 2);
        assert_eq!(walk.items, [Gva(0xa000)]);
        assert_eq!((walk.faults.len(), walk.complete), (3, false));
    }

    proptest! {
        #[test]
        fn any_nodes_end(nodes in prop::collection::vec(prop::collection::vec(any::<(u8, u8)>(), 0..31), 8)) {
            let mut memory = Sparse::default();
            for (number, words) in nodes.iter().enumerate() {
                let at = (number as u64 + 1) * 0x100;
                memory.write(at, &[0; 256]);
                for (index, (to, kind)) in words.iter().enumerate() {
                    let target = u64::from(to % 9) << 8 | u64::from(kind % 5) << 3;
                    memory.write_u64(at + 8 + index as u64 * 8, target);
                }
            }
            let walk = LAYOUT.walk(&memory, 0x1_0000 | 0x1a);
            prop_assert_eq!(walk.complete, walk.faults.is_empty());
            let walk = LAYOUT.walk(&memory, 0x11a);
            prop_assert_eq!(walk.complete, walk.faults.is_empty());
        }
    }
}
