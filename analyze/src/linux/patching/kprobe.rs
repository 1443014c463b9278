//! Kernel probes: `struct kprobe` (`include/linux/kprobes.h`, `kernel/kprobes.c`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::site::Kprobe;
use crate::guest::Guest;
use crate::linux::hlist::HashTable;
use crate::linux::layout::{Field, Missing, Structure};
use crate::linux::walk::Walk;

/// `KPROBE_TABLE_SIZE`.
const BUCKETS: u64 = 1 << 6;
/// Probes at most.
const MAX_PROBES: usize = 1 << 20;
/// `KPROBE_FLAG_FTRACE`: the probe is a tracer at a function's entry and changes nothing itself.
const FLAG_FTRACE: u64 = 8;

/// Members of `struct kprobe` and `struct optimized_kprobe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KprobeLayout {
    hlist: Field,
    addr: Field,
    opcode: Field,
    flags: Field,
    pre_handler: Field,
    /// Where the kernel optimises probes into jumps.
    optimized: Option<OptimizedLayout>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OptimizedLayout {
    kp: Field,
    copied_insn: Field,
    insn: Field,
}

/// The registered probes with the addresses they are at, by address. Empty where the kernel has no probes.
pub(super) fn probes(guest: &Guest<'_>) -> Result<Walk<(Gva, Kprobe)>, Missing> {
    let Ok(table) = guest.symbol("kprobe_table") else { return Ok(Walk::default()) };
    let layout = KprobeLayout::resolve(guest.btf())?;
    let aggregate = guest.symbol("aggr_pre_handler").ok();
    let mut walk = layout.read(guest.space(), table, aggregate);
    walk.items.sort_by_key(|(at, _)| *at);
    Ok(walk)
}

impl KprobeLayout {
    fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let kprobe = Structure::named(btf, "kprobe")?;
        let optimized = Structure::named(btf, "optimized_kprobe").ok();
        let optimized = optimized.map(|optimized| {
            Ok(OptimizedLayout {
                kp: optimized.field("kp")?,
                copied_insn: optimized.field("optinsn.copied_insn")?,
                insn: optimized.field("optinsn.insn")?,
            })
        });
        Ok(Self {
            hlist: kprobe.field("hlist")?,
            addr: kprobe.field("addr")?,
            opcode: kprobe.field("opcode")?,
            flags: kprobe.field("flags")?,
            pre_handler: kprobe.field("pre_handler")?,
            optimized: optimized.transpose()?,
        })
    }

    fn read(&self, memory: &dyn VirtualMemory, heads: Gva, aggregate: Option<Gva>) -> Walk<(Gva, Kprobe)> {
        let what = "kprobe_table";
        let table = HashTable { what, heads, buckets: BUCKETS, link: self.hlist.offset, limit: MAX_PROBES };
        let mut walk = Walk::default();
        for probe in walk.absorb(table.walk(memory)) {
            let changes_text = self.flags.read(memory, probe).map(|flags| flags & FLAG_FTRACE == 0);
            if walk.try_or_note(changes_text) == Some(true) {
                let probe = self.probe(memory, probe, aggregate);
                walk.push(probe);
            }
        }
        walk
    }

    fn probe(
        &self,
        memory: &dyn VirtualMemory,
        probe: Gva,
        aggregate: Option<Gva>,
    ) -> Result<(Gva, Kprobe), Fault> {
        // Only aggregated probes are embedded in a `struct optimized_kprobe` (`alloc_aggr_kprobe`).
        let is_aggregate =
            aggregate.is_some() && self.pre_handler.pointer_or_null(memory, probe)? == aggregate;
        let detour = match self.optimized.filter(|_| is_aggregate) {
            Some(layout) => layout.detour(memory, probe)?,
            None => None,
        };
        let opcode = memory.read_u8(self.opcode.of(probe)?)?;
        Ok((self.addr.pointer(memory, probe)?, Kprobe { opcode, detour }))
    }
}

impl OptimizedLayout {
    /// Where an optimised probe jumps to, and the bytes behind its breakpoint that the jump replaced.
    fn detour(&self, memory: &dyn VirtualMemory, probe: Gva) -> Result<Option<(Gva, [u8; 4])>, Fault> {
        let whole = probe.checked_sub(self.kp.offset).ok_or(Fault::Overflow { at: probe.0 })?;
        let Some(detour) = self.insn.pointer_or_null(memory, whole)? else { return Ok(None) };
        let mut copied = [0; 4];
        memory.read(self.copied_insn.of(whole)?, &mut copied)?;
        // `copied_insn` is filled when the probe is first optimised.
        Ok((copied != [0; 4]).then_some((detour, copied)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sparse, field};

    const TABLE: u64 = 0x1000;
    const AGGREGATE: Gva = Gva(0xffff_ffff_8100_2000);

    const LAYOUT: KprobeLayout = KprobeLayout {
        hlist: field(0, 16),
        addr: field(16, 8),
        opcode: field(24, 1),
        flags: field(28, 4),
        pre_handler: field(32, 8),
        optimized: Some(OptimizedLayout { kp: field(0, 40), copied_insn: field(40, 4), insn: field(48, 8) }),
    };

    fn probe(memory: &mut Sparse, at: u64, next: u64, flags: u32, handler: u64, detour: u64) {
        memory.write_u64(at, next);
        memory.write_u64(at + 16, 0xffff_ffff_8100_0000 + at);
        memory.write(at + 24, &[0x55]);
        memory.write_u32(at + 28, flags);
        memory.write_u64(at + 32, handler);
        memory.write(at + 40, &[1, 2, 3, 4]);
        memory.write_u64(at + 48, detour);
    }

    fn read(memory: &Sparse) -> Walk<(Gva, Kprobe)> {
        LAYOUT.read(memory, Gva(TABLE), Some(AGGREGATE))
    }

    #[test]
    fn plain_optimised_and_ftrace_probes_are_told_apart() {
        let mut memory = Sparse::default();
        memory.write(TABLE, &[0; 64 * 8]);
        memory.write_u64(TABLE + 8, 0x4000);
        memory.write_u64(TABLE + 16, 0x6000);
        probe(&mut memory, 0x4000, 0x5000, 0, 0x1234, 0xbad);
        probe(&mut memory, 0x5000, 0, 4, AGGREGATE.0, 0xffff_ffff_c000_0000);
        probe(&mut memory, 0x6000, 0, 8, 0, 0);
        let plain = Kprobe { opcode: 0x55, detour: None };
        let optimised = Kprobe { opcode: 0x55, detour: Some((Gva(0xffff_ffff_c000_0000), [1, 2, 3, 4])) };
        let walk = read(&memory);
        assert_eq!(
            walk.items,
            [(Gva(0xffff_ffff_8100_4000), plain), (Gva(0xffff_ffff_8100_5000), optimised)]
        );
        assert!(walk.complete);
    }

    #[test]
    fn a_chain_that_loops_ends() {
        let mut memory = Sparse::default();
        memory.write(TABLE, &[0; 64 * 8]);
        memory.write_u64(TABLE, 0x4000);
        probe(&mut memory, 0x4000, 0x4000, 0, 0, 0);
        let walk = read(&memory);
        assert_eq!(walk.items.len(), 1);
        assert_eq!(walk.faults, [Fault::Malformed { what: "kprobe_table", at: 0x4000 }]);
    }
}
