//! Function tracing: where functions may call a tracer, and which tracers are registered (`kernel/trace/ftrace.c`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use crate::guest::Guest;
use crate::linux::hlist::HashTable;
use crate::linux::layout::{Field, Missing, Structure};
use crate::linux::list::List;
use crate::linux::walk::{Seen, Walk};

/// Groups of records at most: one or a few for the kernel and for each module.
const MAX_PAGES: usize = 1 << 16;
/// Bytes of records in one group at most. Groups are 2^order pages; the page allocator ends at order 10.
const MAX_PAGE_BYTES: u64 = 4 << 20;
/// Tracers at most.
const MAX_OPS: usize = 1 << 16;
/// Buckets of the table of direct calls at most (`FTRACE_HASH_MAX_BITS` is 12), and entries in all of them.
const MAX_BUCKETS: u64 = 1 << 16;
const MAX_DIRECT: usize = 1 << 20;

/// Members of the structures of `ftrace.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FtraceLayout {
    page_next: Field,
    page_records: Field,
    page_index: Field,
    record_size: u64,
    record_ip: Field,
    ops_next: Field,
    ops_func: Field,
    ops_saved_func: Option<Field>,
    ops_trampoline: Field,
    ops_trampoline_size: Field,
    ops_list: Field,
    /// 6.3 on; before, direct calls are only in the table.
    ops_direct_call: Option<Field>,
}

/// The table of direct calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DirectLayout {
    size_bits: Field,
    buckets: Field,
    hlist: Field,
    ip: Field,
    direct: Field,
}

/// A registered tracer (`struct ftrace_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ops {
    /// What it wants called, and what it wanted before filters were put in front.
    pub(super) functions: [Option<Gva>; 2],
    /// What function entries call for it alone, and the trampoline of a direct call.
    pub(super) trampolines: [Option<Gva>; 2],
    /// Bytes of its own trampoline; 0 when it is part of the kernel image.
    pub(super) trampoline_len: u64,
}

impl FtraceLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let page = Structure::named(btf, "ftrace_page")?;
        let record = Structure::named(btf, "dyn_ftrace")?;
        let ops = Structure::named(btf, "ftrace_ops")?;
        Ok(Self {
            page_next: page.field("next")?,
            page_records: page.field("records")?,
            page_index: page.field("index")?,
            record_size: record.size()?,
            record_ip: record.field("ip")?,
            ops_next: ops.field("next")?,
            ops_func: ops.field("func")?,
            ops_saved_func: ops.optional("saved_func"),
            ops_trampoline: ops.field("trampoline")?,
            ops_trampoline_size: ops.field("trampoline_size")?,
            ops_list: ops.field("list")?,
            ops_direct_call: ops.optional("direct_call"),
        })
    }

    /// Every function entry that can be traced, in the kernel and in modules (`ftrace_pages_start`).
    pub(super) fn entries(&self, guest: &Guest<'_>) -> Result<Walk<Gva>, Missing> {
        let first = guest.symbol("ftrace_pages_start")?;
        let memory = guest.space();
        let mut walk = Walk::default();
        let mut seen = Seen::new("ftrace_pages", MAX_PAGES);
        let mut next = memory.read_u64(first).map(Gva);
        while let Some(page) = walk.try_or_note(next).filter(|page| page.0 != 0) {
            let records = seen.enter(page).and_then(|()| self.page(memory, page, &mut walk.items));
            if walk.try_or_note(records).is_none() {
                break;
            }
            next = self.page_next.pointer(memory, page);
        }
        Ok(walk)
    }

    fn page(&self, memory: &dyn VirtualMemory, page: Gva, entries: &mut Vec<Gva>) -> Result<(), Fault> {
        let table = super::table::Table {
            what: "ftrace records",
            start: self.page_records.pointer(memory, page)?,
            len: self.page_index.read(memory, page)?.saturating_mul(self.record_size),
        };
        if table.len > MAX_PAGE_BYTES {
            return Err(Fault::Limit { what: table.what, limit: MAX_PAGE_BYTES, at: page.0 });
        }
        let ip = usize::try_from(self.record_ip.offset).unwrap_or(usize::MAX);
        entries.extend(table.each(memory, self.record_size, |_, record| {
            record.get(ip..)?.first_chunk::<8>().map(|bytes| Gva(u64::from_le_bytes(*bytes)))
        })?);
        Ok(())
    }

    /// Every registered tracer: `ftrace_ops_list`, `ftrace_ops_trampoline_list` (what still has a trampoline of its own)
    /// and `removed_ops` (what is being unregistered).
    pub(super) fn ops(&self, guest: &Guest<'_>) -> Result<Walk<Ops>, Missing> {
        let memory = guest.space();
        let mut places = Walk::default();
        let mut seen = Seen::new("ftrace_ops_list", MAX_OPS);
        let end = guest.symbol("ftrace_list_end")?;
        let mut next = memory.read_u64(guest.symbol("ftrace_ops_list")?).map(Gva);
        while let Some(ops) = places.try_or_note(next).filter(|ops| *ops != end && ops.0 != 0) {
            if places.try_or_note(seen.enter(ops)).is_none() {
                break;
            }
            places.items.push(ops);
            next = self.ops_next.pointer(memory, ops);
        }
        if let Ok(head) = guest.symbol("ftrace_ops_trampoline_list") {
            let what = "ftrace_ops_trampoline_list";
            let list = List { what, head, link: self.ops_list.offset, limit: MAX_OPS };
            let listed = places.absorb(list.walk(memory));
            places.items.extend(listed);
        }
        if let Ok(removed) = guest.symbol("removed_ops") {
            let removed = places.try_or_note(memory.read_u64(removed));
            places.items.extend(removed.filter(|ops| *ops != 0).map(Gva));
        }
        Ok(Walk::read_each(places, |ops| self.read_ops(memory, ops)))
    }

    fn read_ops(&self, memory: &dyn VirtualMemory, ops: Gva) -> Result<Ops, Fault> {
        let optional = |field: Option<Field>| match field {
            Some(field) => field.pointer_or_null(memory, ops),
            None => Ok(None),
        };
        Ok(Ops {
            functions: [self.ops_func.pointer_or_null(memory, ops)?, optional(self.ops_saved_func)?],
            trampolines: [self.ops_trampoline.pointer_or_null(memory, ops)?, optional(self.ops_direct_call)?],
            trampoline_len: self.ops_trampoline_size.read(memory, ops)?,
        })
    }
}

/// `direct_functions`: for some function entries the one trampoline that they call. Empty where the kernel has no direct
/// calls.
pub(super) fn direct_calls(guest: &Guest<'_>) -> Result<Walk<(Gva, Gva)>, Missing> {
    let Ok(table) = guest.symbol("direct_functions") else { return Ok(Walk::default()) };
    let layout = DirectLayout::resolve(guest.btf())?;
    Ok(layout.read(guest.space(), table))
}

impl DirectLayout {
    fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let hash = Structure::named(btf, "ftrace_hash")?;
        let entry = Structure::named(btf, "ftrace_func_entry")?;
        Ok(Self {
            size_bits: hash.field("size_bits")?,
            buckets: hash.field("buckets")?,
            hlist: entry.field("hlist")?,
            ip: entry.field("ip")?,
            direct: entry.field("direct")?,
        })
    }

    fn read(&self, memory: &dyn VirtualMemory, table: Gva) -> Walk<(Gva, Gva)> {
        let mut walk = Walk::default();
        let entries = self.entries(memory, table).map(|table| table.walk(memory));
        let entries = walk.try_or_note(entries).unwrap_or_default();
        for entry in walk.absorb(entries) {
            let call =
                self.ip.pointer(memory, entry).and_then(|ip| Ok((ip, self.direct.pointer(memory, entry)?)));
            walk.push(call);
        }
        walk
    }

    fn entries(&self, memory: &dyn VirtualMemory, table: Gva) -> Result<HashTable, Fault> {
        let hash = Gva(memory.read_u64(table)?);
        let heads = self.buckets.pointer(memory, hash)?;
        let size_bits = u32::try_from(self.size_bits.read(memory, hash)?).unwrap_or(u32::MAX);
        let what = "direct_functions";
        let limit = Fault::Limit { what, limit: MAX_BUCKETS, at: hash.0 };
        let buckets = 1u64.checked_shl(size_bits).filter(|count| *count <= MAX_BUCKETS).ok_or(limit)?;
        Ok(HashTable { what, heads, buckets, link: self.hlist.offset, limit: MAX_DIRECT })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sparse, field};

    const DIRECT: DirectLayout = DirectLayout {
        size_bits: field(0, 8),
        buckets: field(8, 8),
        hlist: field(0, 16),
        ip: field(16, 8),
        direct: field(24, 8),
    };

    /// A table of two buckets at 0x2000, pointed to from 0x1000.
    fn table(entries: &[(u64, u64, u64, u64)], heads: [u64; 2]) -> Sparse {
        let mut memory = Sparse::default();
        memory.write_u64(0x1000, 0x2000);
        memory.write_u64(0x2000, 1);
        memory.write_u64(0x2008, 0x3000);
        memory.write_u64(0x3000, heads[0]);
        memory.write_u64(0x3008, heads[1]);
        for (at, next, ip, direct) in entries {
            memory.write_u64(*at, *next);
            memory.write_u64(at + 16, *ip);
            memory.write_u64(at + 24, *direct);
        }
        memory
    }

    #[test]
    fn direct_calls_of_all_buckets_are_read() {
        let memory =
            table(&[(0x4000, 0x5000, 1, 10), (0x5000, 0, 2, 20), (0x6000, 0, 3, 30)], [0x4000, 0x6000]);
        let walk = DIRECT.read(&memory, Gva(0x1000));
        assert_eq!(walk.items, [(Gva(1), Gva(10)), (Gva(2), Gva(20)), (Gva(3), Gva(30))]);
        assert!(walk.complete);
    }

    #[test]
    fn a_looping_bucket_and_a_wild_size_end_as_faults() {
        let looping = table(&[(0x4000, 0x4000, 1, 10)], [0x4000, 0]);
        let walk = DIRECT.read(&looping, Gva(0x1000));
        assert_eq!(walk.faults, [Fault::Malformed { what: "direct_functions", at: 0x4000 }]);
        let mut wild = table(&[], [0, 0]);
        for bits in [17, 63, 64, u64::MAX] {
            wild.write_u64(0x2000, bits);
            assert!(matches!(DIRECT.read(&wild, Gva(0x1000)).faults[..], [Fault::Limit { .. }]));
        }
    }

    #[test]
    fn wild_record_groups_are_faults() {
        let layout = FtraceLayout {
            page_next: field(0, 8),
            page_records: field(8, 8),
            page_index: field(16, 4),
            record_size: 16,
            record_ip: field(0, 8),
            ops_next: field(8, 8),
            ops_func: field(0, 8),
            ops_saved_func: None,
            ops_trampoline: field(16, 8),
            ops_trampoline_size: field(40, 8),
            ops_list: field(24, 16),
            ops_direct_call: None,
        };
        let mut memory = Sparse::default();
        memory.write_u64(0x1008, 0x2000);
        memory.write_u32(0x1010, 2);
        memory.write(0x2000, &[0x11; 32]);
        let mut entries = Vec::new();
        assert_eq!(layout.page(&memory, Gva(0x1000), &mut entries), Ok(()));
        assert_eq!(entries, [Gva(0x1111_1111_1111_1111); 2]);
        memory.write_u32(0x1010, u32::MAX);
        assert!(matches!(layout.page(&memory, Gva(0x1000), &mut entries), Err(Fault::Limit { .. })));
    }
}
