//! `struct xarray`: a sparse array of pointers, and the radix tree and IDR built on it (`include/linux/xarray.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::walk::{Seen, Walk};

/// Nodes at most: those of an IDR of all `PID_MAX_LIMIT` (4 Mi) numbers, and as many again.
const MAX_NODES: usize = 1 << 17;
/// Entries at most.
const MAX_ENTRIES: usize = 1 << 20;
/// Slots of a node at most (`XA_CHUNK_SIZE` is 64).
const MAX_SLOTS: u64 = 256;
/// Bytes of a slot.
const SLOT_BYTES: u64 = 8;

/// Members of `struct xa_node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XarrayLayout {
    /// Bits of the index below those that select a slot.
    pub shift: Field,
    /// The slots.
    pub slots: Field,
    /// How many slots there are.
    pub slot_count: u64,
}

/// What a slot or the head of an array holds.
enum Entry {
    /// Nothing, or a mark that stands for nothing (retry, zero and sibling entries).
    Empty,
    Node(Gva),
    Pointer(Gva),
}

impl Entry {
    /// Internal entries have bit 1 set and bit 0 clear: nodes when they are above 4096, marks otherwise.
    const fn decode(raw: u64) -> Self {
        match raw {
            0 => Self::Empty,
            _ if raw & 3 != 2 => Self::Pointer(Gva(raw)),
            _ if raw > 4096 => Self::Node(Gva(raw - 2)),
            _ => Self::Empty,
        }
    }
}

impl XarrayLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let node = Structure::named(btf, "xa_node")?;
        let (slots, slot_count, _) = node.array("slots")?;
        Ok(Self { shift: node.field("shift")?, slots, slot_count: slot_count.min(MAX_SLOTS) })
    }

    /// Every index and pointer of the array whose head (`xa_head`) is `head`, in ascending order.
    pub fn walk(&self, memory: &dyn VirtualMemory, head: u64) -> Walk<(u64, Gva)> {
        let mut walk = Walk::default();
        let mut seen = Seen::new("xarray nodes", MAX_NODES);
        match Entry::decode(head) {
            Entry::Empty => {}
            Entry::Pointer(pointer) => walk.items.push((0, pointer)),
            Entry::Node(node) => self.walk_node(memory, node, 0, 64, &mut seen, &mut walk),
        }
        walk
    }

    /// `prefix`: the index of the node's first slot. `above`: the shift of the parent; the depth is bounded because it
    /// must fall on the way down.
    fn walk_node(
        &self,
        memory: &dyn VirtualMemory,
        node: Gva,
        prefix: u64,
        above: u64,
        seen: &mut Seen,
        walk: &mut Walk<(u64, Gva)>,
    ) {
        let entered = seen.enter(node).and_then(|()| self.shift.read(memory, node)).and_then(|shift| {
            if shift < above {
                Ok(shift)
            } else {
                Err(Fault::Malformed { what: "xa_node.shift", at: node.0 })
            }
        });
        let Some(shift) = walk.try_or_note(entered) else { return };
        for slot in 0..self.slot_count {
            if walk.items.len() >= MAX_ENTRIES {
                let limit = MAX_ENTRIES as u64;
                return walk.fault(Fault::Limit { what: "xarray entries", limit, at: node.0 });
            }
            let entry = self
                .slots
                .of(node)
                .and_then(|slots| slots.checked_add(slot * SLOT_BYTES).ok_or(Fault::Overflow { at: node.0 }))
                .and_then(|at| memory.read_u64(at));
            let index = slot.checked_shl(shift as u32).unwrap_or(0) | prefix;
            match walk.try_or_note(entry).map(Entry::decode) {
                Some(Entry::Pointer(pointer)) => walk.items.push((index, pointer)),
                Some(Entry::Node(child)) if shift > 0 => {
                    self.walk_node(memory, child, index, shift, seen, walk);
                }
                Some(Entry::Node(child)) => {
                    walk.fault(Fault::Malformed { what: "xa_node below the last level", at: child.0 });
                }
                Some(Entry::Empty) | None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Sparse;

    const LAYOUT: XarrayLayout = XarrayLayout {
        shift: Field { offset: 0, size: 1 },
        slots: Field { offset: 8, size: 512 },
        slot_count: 64,
    };

    fn node(memory: &mut Sparse, at: u64, shift: u8, slots: &[(u64, u64)]) {
        memory.write(at, &[0; 8 + 512]);
        memory.write(at, &[shift]);
        for (slot, value) in slots {
            memory.write_u64(at + 8 + slot * 8, *value);
        }
    }

    #[test]
    fn indices_follow_from_the_slots_of_two_levels() {
        let mut memory = Sparse::default();
        node(&mut memory, 0x1_0000, 6, &[(0, 0x2_0002), (3, 0x3_0002)]);
        node(&mut memory, 0x2_0000, 0, &[(0, 0x402), (1, 0x8000), (63, 0x9000)]);
        node(&mut memory, 0x3_0000, 0, &[(5, 0xa000)]);
        let walk = LAYOUT.walk(&memory, 0x1_0002);
        assert_eq!(walk.items, [(1, Gva(0x8000)), (63, Gva(0x9000)), (197, Gva(0xa000))]);
        assert!(walk.complete);
        assert_eq!(LAYOUT.walk(&memory, 0).items, []);
        assert_eq!(LAYOUT.walk(&memory, 0x8000).items, [(0, Gva(0x8000))]);
    }

    #[test]
    fn loops_and_levels_that_do_not_fall_are_faults() {
        let mut memory = Sparse::default();
        node(&mut memory, 0x1_0000, 6, &[(0, 0x1_0002), (1, 0x2_0002), (2, 0x3_0002), (4, 0xdead_0002)]);
        node(&mut memory, 0x2_0000, 6, &[]);
        node(&mut memory, 0x3_0000, 0, &[(0, 0x2_0002), (7, 0x8000)]);
        let walk = LAYOUT.walk(&memory, 0x1_0002);
        assert_eq!(walk.items, [(128 + 7, Gva(0x8000))]);
        assert_eq!(walk.faults.len(), 4);
        assert!(!walk.complete);
    }

    proptest! {
        #[test]
        fn any_nodes_end(
            nodes in prop::collection::vec((0u8..66, prop::collection::vec((0u64..64, 0u64..8), 0..8)), 8),
        ) {
            let mut memory = Sparse::default();
            for (number, (shift, slots)) in nodes.iter().enumerate() {
                let slots: Vec<_> = slots.iter().map(|(slot, to)| (*slot, (to + 1) * 0x1_0000 + 2)).collect();
                node(&mut memory, (number as u64 + 1) * 0x1_0000, *shift, &slots);
            }
            let walk = LAYOUT.walk(&memory, 0x1_0002);
            prop_assert_eq!(walk.complete, walk.faults.is_empty());
        }
    }
}
