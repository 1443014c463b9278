//! `struct hlist_head`: a list with one pointer as its head, in hash tables (`include/linux/types.h`).

use varve_formats::{Fault, Gva, VirtualMemory};

use super::walk::{Seen, Walk};

/// Bytes of a head.
const HEAD_BYTES: u64 = 8;

/// One or more lists of the same objects: the buckets of a hash table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashTable {
    /// Name, for faults.
    pub(crate) what: &'static str,
    /// Address of the first head.
    pub(crate) heads: Gva,
    /// How many heads there are.
    pub(crate) buckets: u64,
    /// Offset of the `hlist_node` within an object, in bytes.
    pub(crate) link: u64,
    /// Objects at most.
    pub(crate) limit: usize,
}

impl HashTable {
    /// The objects, bucket by bucket. A bucket that breaks off costs what is behind it there, and no other bucket.
    pub(crate) fn walk(&self, memory: &dyn VirtualMemory) -> Walk<Gva> {
        let mut walk = Walk::default();
        let mut seen = Seen::new(self.what, self.limit);
        for bucket in 0..self.buckets {
            let Some(head) = self.heads.checked_add(bucket.saturating_mul(HEAD_BYTES)) else {
                walk.fault(Fault::Overflow { at: self.heads.0 });
                break;
            };
            let end = follow(memory, head, self.link, &mut seen, &mut walk.items);
            let full = matches!(end, Err(Fault::Limit { .. }));
            walk.try_or_note(end);
            if full {
                break;
            }
        }
        walk
    }
}

/// Appends the objects of the list at `head`, whose `hlist_node` is `link` bytes into each. A node that `seen` knows, from
/// this list or another one, is an error.
pub(crate) fn follow(
    memory: &dyn VirtualMemory,
    head: Gva,
    link: u64,
    seen: &mut Seen,
    objects: &mut Vec<Gva>,
) -> Result<(), Fault> {
    let mut node = Gva(memory.read_u64(head)?);
    while node.0 != 0 {
        seen.enter(node)?;
        let next = Gva(memory.read_u64(node)?);
        objects.push(node.checked_sub(link).ok_or(Fault::Overflow { at: node.0 })?);
        node = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Sparse;

    const TABLE: HashTable =
        HashTable { what: "test table", heads: Gva(0x1000), buckets: 2, link: 0x10, limit: 8 };

    fn table(links: &[(u64, u64)]) -> Sparse {
        let mut memory = Sparse::default();
        memory.write(0x1000, &[0; 16]);
        for (at, next) in links {
            memory.write_u64(*at, *next);
        }
        memory
    }

    #[test]
    fn all_buckets_are_walked() {
        let memory = table(&[(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0), (0x1008, 0x4000), (0x4000, 0)]);
        let walk = TABLE.walk(&memory);
        assert_eq!(walk.items, [Gva(0x1ff0), Gva(0x2ff0), Gva(0x3ff0)]);
        assert!(walk.complete);
    }

    #[test]
    fn a_broken_bucket_does_not_hide_the_others() {
        let looping = table(&[(0x1000, 0x2000), (0x2000, 0x2000), (0x1008, 0x4000), (0x4000, 0)]);
        let walk = TABLE.walk(&looping);
        assert_eq!(walk.items, [Gva(0x1ff0), Gva(0x3ff0)]);
        assert_eq!(walk.faults, [Fault::Malformed { what: "test table", at: 0x2000 }]);
        let wild = table(&[(0x1000, 0xdead), (0x1008, 0x4000), (0x4000, 0)]);
        assert_eq!(TABLE.walk(&wild).items, [Gva(0x3ff0)]);
    }

    proptest! {
        #[test]
        fn any_links_end(links in prop::collection::vec((0u64..20, 0u64..20), 0..40)) {
            let links: Vec<_> = links.iter().map(|(at, to)| (0x1000 + at * 8, if *to == 0 { 0 } else { 0x1000 + to * 8 })).collect();
            let walk = TABLE.walk(&table(&links));
            prop_assert!(walk.items.len() <= TABLE.limit);
            prop_assert_eq!(walk.complete, walk.faults.is_empty());
        }
    }
}
