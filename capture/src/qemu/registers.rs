//! The registers in what the human monitor prints for `info registers -a` (QEMU's `x86_cpu_dump_state`).
//!
//! That is text for people: each vCPU begins with `CPU#n`; general and control registers are `NAME=hex`, `RIP` or
//! `EIP` by mode; segment registers `GS =selector base limit flags`; descriptor tables `IDT=base limit`. There is
//! no `MSR_LSTAR` in it.

use varve_formats::{TableRegister, Vcpu};

/// Most vCPUs taken; QEMU's own limit for a PC is 4,096.
const MAX_VCPUS: usize = 4096;

/// The vCPUs in `printed`. One of which an essential register is missing is left out.
pub(super) fn parse(printed: &str) -> Vec<Vcpu> {
    printed.split("CPU#").skip(1).take(MAX_VCPUS).filter_map(vcpu).collect()
}

fn vcpu(block: &str) -> Option<Vcpu> {
    let mut lines = block.lines();
    let index = lines.next()?.trim().parse().ok()?;
    let mut found = Found::default();
    lines.for_each(|line| found.read(line));
    Some(Vcpu {
        index,
        rip: found.rip?,
        rsp: found.rsp?,
        rflags: found.rflags?,
        cr0: found.cr0?,
        cr3: found.cr3?,
        cr4: found.cr4?,
        efer: found.efer,
        gs_base: found.gs_base,
        idtr: found.idtr,
        gdtr: found.gdtr,
        lstar: None,
    })
}

#[derive(Default)]
struct Found {
    rip: Option<u64>,
    rsp: Option<u64>,
    rflags: Option<u64>,
    cr0: Option<u64>,
    cr3: Option<u64>,
    cr4: Option<u64>,
    efer: Option<u64>,
    gs_base: Option<u64>,
    idtr: Option<TableRegister>,
    gdtr: Option<TableRegister>,
}

impl Found {
    fn read(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("GS =") {
            self.gs_base = rest.split_whitespace().nth(1).and_then(hex);
        } else if let Some(rest) = line.strip_prefix("IDT=") {
            self.idtr = table_register(rest);
        } else if let Some(rest) = line.strip_prefix("GDT=") {
            self.gdtr = table_register(rest);
        } else {
            for (name, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
                self.set(name, value);
            }
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        let register = match name {
            "RIP" | "EIP" => &mut self.rip,
            "RSP" | "ESP" => &mut self.rsp,
            "RFL" | "EFL" => &mut self.rflags,
            "CR0" => &mut self.cr0,
            "CR3" => &mut self.cr3,
            "CR4" => &mut self.cr4,
            "EFER" => &mut self.efer,
            _ => return,
        };
        *register = hex(value);
    }
}

fn table_register(rest: &str) -> Option<TableRegister> {
    let mut words = rest.split_whitespace();
    let base = hex(words.next()?)?;
    let limit = u16::try_from(hex(words.next()?)?).ok()?;
    Some(TableRegister { base, limit })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_guest_with_two_vcpus() {
        let printed = include_str!("testdata/registers-long-mode.txt");
        let vcpus = parse(&printed.replace('\n', "\r\n"));
        assert_eq!(vcpus.len(), 2);
        assert_eq!(
            vcpus[0],
            Vcpu {
                index: 0,
                rip: 0xffff_ffff_8dcb_c56f,
                rsp: 0xffff_ffff_8ec0_3e88,
                rflags: 0x206,
                cr0: 0x8005_0033,
                cr3: 0x0f51_a000,
                cr4: 0x75_0ef0,
                efer: Some(0xd01),
                gs_base: Some(0xffff_8e9c_8d60_0000),
                idtr: Some(TableRegister { base: 0xffff_fe00_0000_0000, limit: 0xfff }),
                gdtr: Some(TableRegister { base: 0xffff_fe76_d8c8_f000, limit: 0x7f }),
                lstar: None,
            }
        );
        assert_eq!(vcpus[1].index, 1);
    }

    #[test]
    fn a_vcpu_in_real_mode() {
        let vcpus = parse(include_str!("testdata/registers-real-mode.txt"));
        let [vcpu] = &vcpus[..] else { panic!("{vcpus:?}") };
        assert_eq!((vcpu.cr3, vcpu.efer), (0, Some(0)));
        assert_eq!(vcpu.idtr, Some(TableRegister { base: 0, limit: 0x3ff }));
    }

    #[test]
    fn what_is_not_there_is_not_invented() {
        assert_eq!(parse(""), []);
        assert_eq!(parse("CPU#"), []);
        assert_eq!(parse("CPU#0\nRIP=zz RSP=1 RFL=2\nCR0=1 CR2=0 CR3=0 CR4=0\n"), []);
        assert_eq!(parse("unknown command: 'info registers -a'\r\n"), []);
        let [vcpu] = parse("CPU#7\nRIP=1 RSP=2 RFL=3\nCR0=4 CR3=5 CR4=6\nIDT= 1 fffff\nGS =0\n")[..] else {
            panic!()
        };
        assert_eq!(
            vcpu,
            Vcpu { index: 7, rip: 1, rsp: 2, rflags: 3, cr0: 4, cr3: 5, cr4: 6, ..Vcpu::default() }
        );
    }
}
