//! `struct list_head`: circular, doubly linked, anchored in a head that is no entry (`include/linux/types.h`).

use varve_formats::{Fault, Gva, VirtualMemory};

use super::walk::{Seen, Walk};

/// Offset of `list_head.prev`; `next` is at 0.
const PREV: u64 = 8;

/// Where to find the objects of a list, and how many there can be.
#[derive(Clone, Copy, Debug)]
pub struct List {
    /// Name of the list, for faults.
    pub what: &'static str,
    /// Address of the head.
    pub head: Gva,
    /// Offset of the `list_head` within an object, in bytes.
    pub link: u64,
    /// Objects at most.
    pub limit: usize,
}

impl List {
    /// The objects (`container_of`), in list order. When the chain of `next` breaks, what the chain of `prev` still
    /// reaches from the other end follows; the walk is then not complete.
    pub fn walk(&self, memory: &dyn VirtualMemory) -> Walk<Gva> {
        let mut walk = Walk::default();
        let mut seen = Seen::new(self.what, self.limit);
        if let Err(fault) = self.follow(memory, 0, &mut seen, &mut walk.items) {
            walk.fault(fault);
            let from_behind = walk.items.len();
            // The second chain ends where it meets the first one: expected, and no further fault.
            let _ = self.follow(memory, PREV, &mut seen, &mut walk.items);
            if let Some(rest) = walk.items.get_mut(from_behind..) {
                rest.reverse();
            }
        }
        walk
    }

    fn follow(
        &self,
        memory: &dyn VirtualMemory,
        direction: u64,
        seen: &mut Seen,
        items: &mut Vec<Gva>,
    ) -> Result<(), Fault> {
        let mut node = self.head;
        loop {
            let slot = node.checked_add(direction).ok_or(Fault::Overflow { at: node.0 })?;
            node = Gva(memory.read_u64(slot)?);
            if node == self.head {
                return Ok(());
            }
            seen.enter(node)?;
            let object = node.checked_sub(self.link).ok_or(Fault::Overflow { at: node.0 })?;
            // A node whose own links cannot be read is a wild pointer and no object.
            memory.read_u64(node)?;
            items.push(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Sparse;

    const HEAD: u64 = 0x1000;
    const LIST: List = List { what: "test list", head: Gva(HEAD), link: 0x10, limit: 100 };

    /// Links `nodes` behind the head, both ways.
    fn linked(nodes: &[u64]) -> Sparse {
        let mut memory = Sparse::default();
        let ring: Vec<u64> = std::iter::once(HEAD).chain(nodes.iter().copied()).collect();
        for (position, node) in ring.iter().enumerate() {
            memory.write_u64(*node, ring[(position + 1) % ring.len()]);
            memory.write_u64(node + 8, ring[(position + ring.len() - 1) % ring.len()]);
        }
        memory
    }

    #[test]
    fn a_sound_list_gives_its_objects_in_order() {
        let walk = LIST.walk(&linked(&[0x3000, 0x2000, 0x4000]));
        assert_eq!(walk.items, [Gva(0x2ff0), Gva(0x1ff0), Gva(0x3ff0)]);
        assert!(walk.complete && walk.faults.is_empty());
        assert_eq!(LIST.walk(&linked(&[])), Walk::default());
    }

    #[test]
    fn behind_a_wild_pointer_the_other_end_is_still_seen() {
        let mut memory = linked(&[0x2000, 0x3000, 0x4000, 0x5000]);
        memory.write_u64(0x3000, 0xdead_0000_0000_0100);
        let walk = LIST.walk(&memory);
        assert_eq!(walk.items, [Gva(0x1ff0), Gva(0x2ff0), Gva(0x3ff0), Gva(0x4ff0)]);
        assert!(!walk.complete);
        assert!(matches!(walk.faults[..], [Fault::NotPresent { at: Gva(0xdead_0000_0000_0100), .. }]));
    }

    #[test]
    fn a_loop_that_does_not_pass_the_head_ends_as_malformed() {
        let mut memory = linked(&[0x2000, 0x3000, 0x4000]);
        memory.write_u64(0x4000, 0x3000);
        let walk = LIST.walk(&memory);
        assert_eq!(walk.items, [Gva(0x1ff0), Gva(0x2ff0), Gva(0x3ff0)]);
        assert_eq!(walk.faults, [Fault::Malformed { what: "test list", at: 0x3000 }]);
    }

    #[test]
    fn an_endless_list_ends_at_the_limit() {
        let nodes: Vec<u64> = (1..=200).map(|node| HEAD + node * 0x1000).collect();
        let walk = LIST.walk(&linked(&nodes));
        assert_eq!(walk.items.len(), 100);
        assert!(matches!(walk.faults[..], [Fault::Limit { limit: 100, .. }]));
    }

    #[test]
    fn a_head_that_cannot_be_read_is_a_fault_and_not_an_empty_list() {
        let walk = LIST.walk(&Sparse::default());
        assert!(walk.items.is_empty() && !walk.complete);
    }

    #[test]
    fn objects_that_would_begin_below_zero_overflow() {
        let mut memory = linked(&[]);
        memory.write_u64(HEAD, 0x8);
        assert_eq!(LIST.walk(&memory).faults, [Fault::Overflow { at: 8 }]);
    }

    proptest! {
        #[test]
        fn any_links_end_without_repeating_an_object(
            links in prop::collection::vec((0u64..16, 0u64..16), 16),
        ) {
            let mut memory = Sparse::default();
            for (node, (next, prev)) in links.iter().enumerate() {
                let at = HEAD + node as u64 * 0x100;
                memory.write_u64(at, HEAD + next * 0x100);
                memory.write_u64(at + 8, HEAD + prev * 0x100);
            }
            let walk = LIST.walk(&memory);
            let mut distinct = walk.items.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), walk.items.len());
            prop_assert_eq!(walk.complete, walk.faults.is_empty());
        }
    }
}
