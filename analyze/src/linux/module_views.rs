//! Where the kernel has a module besides the list of modules: sysfs, and the tree that maps addresses to modules.

use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::list::List;
use super::walk::{Seen, Walk};
use crate::guest::Guest;

/// Modules at most, built-in ones with parameters included.
const MAX_MODULES: usize = 1 << 16;
/// Nodes of the tree at most: each of a module's regions is one.
const MAX_NODES: usize = 1 << 20;

/// Members of `struct mod_tree_root` and `struct mod_tree_node` (`include/linux/module.h`), `struct latch_tree_root`
/// (`rbtree_latch.h`) and `struct rb_node`.
struct TreeLayout {
    /// Two copies of the tree, each an `rb_root`.
    trees: Field,
    /// Its lowest bit says which of them is not being changed.
    sequence: Option<Field>,
    /// The two `rb_node`s in a `mod_tree_node`.
    links: Field,
    module: Field,
    left: Field,
    right: Field,
}

impl Guest<'_> {
    /// Addresses of the modules in sysfs (`module_kset`): every module from shortly before it is live until shortly after.
    ///
    /// # Errors
    /// What this kernel does not have or describe.
    pub(crate) fn modules_in_sysfs(&self) -> Result<Walk<Gva>, Missing> {
        let kset = self.symbol("module_kset")?;
        let list = Structure::named(self.btf(), "kset")?.field("list")?;
        let object = Structure::named(self.btf(), "module_kobject")?;
        let link = object.field("kobj.entry")?.offset;
        let module = object.field("mod")?;
        let mut walk = Walk::default();
        let head = self.space().read_u64(kset).and_then(|kset| list.of(Gva(kset)));
        let Some(head) = walk.try_or_note(head) else { return Ok(walk) };
        let list = List { what: "module_kset", head, link, limit: MAX_MODULES };
        for object in walk.absorb(list.walk(self.space())) {
            let module = module.pointer_or_null(self.space(), object);
            // Built-in modules have an object and no `struct module`.
            let module = walk.try_or_note(module).flatten();
            walk.items.extend(module);
        }
        Ok(walk)
    }

    /// Addresses of the modules in `mod_tree`, by which the kernel finds the module of an address. `None` where the kernel
    /// searches the list instead (without `CONFIG_MODULES_TREE_LOOKUP`).
    ///
    /// # Errors
    /// What this kernel does not describe.
    pub(crate) fn modules_in_tree(&self) -> Result<Option<Walk<Gva>>, Missing> {
        let Ok(root) = self.symbol("mod_tree") else { return Ok(None) };
        let Ok(layout) = TreeLayout::resolve(self) else { return Ok(None) };
        Ok(Some(layout.walk(self.space(), root)))
    }
}

impl TreeLayout {
    fn resolve(guest: &Guest<'_>) -> Result<Self, Missing> {
        let root = Structure::named(guest.btf(), "mod_tree_root")?;
        let node = Structure::named(guest.btf(), "mod_tree_node")?;
        let rb = Structure::named(guest.btf(), "rb_node")?;
        let sequences = ["root.seq.seqcount.sequence", "root.seq.sequence"];
        Ok(Self {
            trees: root.field("root.tree")?,
            sequence: sequences.into_iter().find_map(|path| root.optional(path)),
            links: node.field("node.node")?,
            module: node.field("mod")?,
            left: rb.field("rb_left")?,
            right: rb.field("rb_right")?,
        })
    }

    fn walk(&self, memory: &dyn VirtualMemory, root: Gva) -> Walk<Gva> {
        let mut walk = Walk::default();
        let sequence = self.sequence.map_or(Ok(0), |field| field.read(memory, root));
        let Some(copy) = walk.try_or_note(sequence).map(|sequence| sequence & 1) else { return walk };
        let mut seen = Seen::new("mod_tree", MAX_NODES);
        let first =
            self.trees.of(root).and_then(|trees| memory.read_u64(Gva(trees.0.wrapping_add(copy * 8))));
        let mut pending = Vec::from_iter(walk.try_or_note(first));
        while let Some(node) = pending.pop() {
            if node == 0 {
                continue;
            }
            let found = seen.enter(Gva(node)).and_then(|()| self.node(memory, Gva(node), copy, &mut pending));
            let full = matches!(found, Err(Fault::Limit { .. }));
            walk.push(found);
            if full {
                break;
            }
        }
        walk.items.sort_unstable();
        walk.items.dedup();
        walk
    }

    /// The module of a node, and its children.
    fn node(
        &self,
        memory: &dyn VirtualMemory,
        node: Gva,
        copy: u64,
        pending: &mut Vec<u64>,
    ) -> Result<Gva, Fault> {
        let into = self.links.offset.saturating_add(copy * self.links.size / 2);
        let owner = node.checked_sub(into).ok_or(Fault::Overflow { at: node.0 })?;
        pending.push(self.right.read(memory, node)?);
        pending.push(self.left.read(memory, node)?);
        self.module.pointer(memory, owner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Sparse, field};

    /// `mod_tree_node { mod, node[2] of { parent, right, left } }`.
    const LAYOUT: TreeLayout = TreeLayout {
        trees: field(8, 16),
        sequence: Some(field(0, 4)),
        links: field(8, 48),
        module: field(0, 8),
        left: field(16, 8),
        right: field(8, 8),
    };

    /// A node at `at` of both copies, with its children's nodes.
    fn node(memory: &mut Sparse, at: u64, module: u64, left: u64, right: u64) {
        memory.write_u64(at, module);
        for copy in 0..2 {
            let link = |child: u64| if child == 0 { 0 } else { child + 8 + copy * 24 };
            memory.write_u64(at + 8 + copy * 24 + 8, link(right));
            memory.write_u64(at + 8 + copy * 24 + 16, link(left));
        }
    }

    fn tree() -> Sparse {
        let mut memory = Sparse::default();
        memory.write_u32(0x1000, 0);
        memory.write_u64(0x1008, 0x2008);
        memory.write_u64(0x1010, 0x2008 + 24);
        node(&mut memory, 0x2000, 0xa000, 0x3000, 0x4000);
        node(&mut memory, 0x3000, 0xb000, 0, 0);
        node(&mut memory, 0x4000, 0xa000, 0, 0);
        memory
    }

    #[test]
    fn each_module_of_either_copy_is_found_once() {
        let mut memory = tree();
        for sequence in [0, 7] {
            memory.write_u32(0x1000, sequence);
            let walk = LAYOUT.walk(&memory, Gva(0x1000));
            assert_eq!(walk.items, [Gva(0xa000), Gva(0xb000)]);
            assert!(walk.complete);
        }
    }

    #[test]
    fn a_tree_that_loops_ends() {
        let mut memory = tree();
        node(&mut memory, 0x4000, 0xc000, 0x2000, 0);
        let walk = LAYOUT.walk(&memory, Gva(0x1000));
        assert_eq!(walk.items, [Gva(0xa000), Gva(0xb000), Gva(0xc000)]);
        assert_eq!(walk.faults, [Fault::Malformed { what: "mod_tree", at: 0x2008 }]);
    }

    proptest! {
        #[test]
        fn any_links_end(children in prop::collection::vec((0u64..9, 0u64..9), 8)) {
            let mut memory = tree();
            let at = |child: u64| if child == 0 { 0 } else { 0x1000 + child * 0x1000 };
            for (number, (left, right)) in children.iter().enumerate() {
                node(&mut memory, at(number as u64 + 1), 0xa000, at(*left), at(*right));
            }
            let walk = LAYOUT.walk(&memory, Gva(0x1000));
            prop_assert_eq!(walk.complete, walk.faults.is_empty());
        }
    }
}
