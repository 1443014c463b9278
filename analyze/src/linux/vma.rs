//! `struct vm_area_struct`: a range of a process' memory (`include/linux/mm_types.h`).

use std::fmt;

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::mm::MmLayout;
use super::string::GuestString;
use super::walk::Walk;
use crate::guest::Guest;

/// Bytes of a name that the kernel or a program (`PR_SET_VMA_ANON_NAME`, 80 bytes) gave a range.
const MAX_NAME_BYTES: usize = 256;

/// Members of `struct vm_area_struct` and of what names a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmaLayout {
    /// First address.
    pub start: Field,
    /// First address behind.
    pub end: Field,
    /// `VM_*`.
    pub flags: Field,
    /// Offset of the range in its file, in pages.
    pub page_offset: Field,
    /// The mapped file, or null.
    pub file: Field,
    /// `struct vm_operations_struct`, or null.
    pub ops: Field,
    /// Belongs to the operations; of a special mapping, its `struct vm_special_mapping`.
    pub private_data: Field,
    /// The address space, or null for the gate.
    pub mm: Field,
    /// `struct anon_vma_name`, or null (5.17 on, where configured).
    pub anon_name: Option<Field>,
    /// Whether ranges with a file can have such a name, too. In 6.1 and before, the member shares its place with one that
    /// only those use.
    pub anon_name_with_file: bool,
    /// The characters of `struct anon_vma_name`.
    pub anon_name_text: Option<Field>,
    /// `vm_operations_struct.name`.
    pub ops_name: Field,
    /// `vm_special_mapping.name`.
    pub special_name: Field,
}

/// What may be done in a range: `VM_*` (`include/linux/mm.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VmFlags(pub u64);

impl VmFlags {
    const READ: u64 = 0x1;
    const WRITE: u64 = 0x2;
    const EXEC: u64 = 0x4;
    /// Changes reach the file: what `/proc/PID/maps` shows as `s`.
    const MAY_SHARE: u64 = 0x80;

    /// Whether it may be executed.
    pub const fn is_executable(self) -> bool {
        self.0 & Self::EXEC != 0
    }

    /// Whether it may be written.
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }
}

impl fmt::Display for VmFlags {
    /// As in `/proc/PID/maps`: `r-xp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |bit, set, clear| if self.0 & bit != 0 { set } else { clear };
        let letters = [
            letter(Self::READ, "r", "-"),
            letter(Self::WRITE, "w", "-"),
            letter(Self::EXEC, "x", "-"),
            letter(Self::MAY_SHARE, "s", "p"),
        ];
        f.write_str(&letters.concat())
    }
}

/// One range, as a line of `/proc/PID/maps` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Address of its `vm_area_struct`.
    pub address: Gva,
    /// First address.
    pub start: Gva,
    /// First address behind.
    pub end: Gva,
    /// What may be done there.
    pub flags: VmFlags,
    /// Offset in the file, in bytes; 0 without one.
    pub offset: u64,
    /// Device of the file: major and minor number; 0 without one. `None` when it cannot be read.
    pub device: Option<(u32, u32)>,
    /// Number of the file's inode; 0 without one. `None` when it cannot be read.
    pub inode: Option<u64>,
    /// Path of the file, or the kernel's name for the range (`[heap]`, `[stack]`, `[vdso]`, …); empty when it has
    /// none. `None` when it cannot be read.
    pub path: Option<GuestString>,
}

impl VmaLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let vma = Structure::named(btf, "vm_area_struct")?;
        let anon_name_text =
            Structure::named(btf, "anon_vma_name").ok().and_then(|name| name.optional("name"));
        let anon_name = vma.optional("anon_name");
        let shared = vma.optional("shared");
        let overlaps = |(name, shared): (Field, Field)| {
            (shared.offset..shared.offset.saturating_add(shared.size)).contains(&name.offset)
        };
        Ok(Self {
            start: vma.field("vm_start")?,
            end: vma.field("vm_end")?,
            flags: vma.field("vm_flags")?,
            page_offset: vma.field("vm_pgoff")?,
            file: vma.field("vm_file")?,
            ops: vma.field("vm_ops")?,
            private_data: vma.field("vm_private_data")?,
            mm: vma.field("vm_mm")?,
            anon_name,
            anon_name_with_file: !anon_name.zip(shared).is_some_and(overlaps),
            anon_name_text,
            ops_name: Structure::named(btf, "vm_operations_struct")?.field("name")?,
            special_name: Structure::named(btf, "vm_special_mapping")?.field("name")?,
        })
    }
}

/// What the names of ranges without a file depend on.
struct Process<'a> {
    layout: &'a VmaLayout,
    heap: (Gva, Gva),
    stack: Gva,
}

impl Guest<'_> {
    /// The ranges of an address space, as `/proc/PID/maps` lists them: the vsyscall page, where the kernel has one, at
    /// the end.
    ///
    /// # Errors
    /// What this kernel does not describe.
    pub fn vmas(&self, mm: Gva) -> Result<Walk<Vma>, Missing> {
        let layout = self.layouts().vma.as_ref().map_err(Clone::clone)?;
        let mm_layout = self.layouts().mm.as_ref().map_err(Clone::clone)?;
        let mut walk = Walk::default();
        let process = self.naming(mm, layout, mm_layout);
        let Some(process) = walk.try_or_note(process) else { return Ok(walk) };
        for address in walk.absorb(self.vma_addresses(mm_layout, mm)) {
            let vma = self.vma_at(address, &process, &mut walk);
            walk.push(vma);
        }
        if let Some(gate) = self.gate_vma(mm_layout, mm) {
            let vma = gate.and_then(|address| self.vma_at(address, &process, &mut walk));
            walk.push(vma);
        }
        Ok(walk)
    }

    fn naming<'a>(&self, mm: Gva, layout: &'a VmaLayout, of: &MmLayout) -> Result<Process<'a>, Fault> {
        let pointer = |field: Field| field.pointer(self.space(), mm);
        let heap = (pointer(of.start_brk)?, pointer(of.brk)?);
        Ok(Process { layout, heap, stack: pointer(of.start_stack)? })
    }

    /// The `vm_area_struct` of the vsyscall page, when the process has one. Corresponds to `get_gate_vma`
    /// (`arch/x86/entry/vsyscall/vsyscall_64.c`).
    fn gate_vma(&self, layout: &MmLayout, mm: Gva) -> Option<Result<Gva, Fault>> {
        /// `vsyscall_mode == NONE`. The enumeration is `EMULATE, XONLY, NONE`.
        const NONE: u32 = 2;
        /// `MM_CONTEXT_HAS_VSYSCALL`: the mask of bit 1 or, in later kernels, its number.
        const HAS_VSYSCALL: u64 = 1 << 1;
        match layout.context_flags.map(|flags| flags.read(self.space(), mm)) {
            Some(Ok(flags)) if flags & HAS_VSYSCALL == 0 => return None,
            Some(Err(fault)) => return Some(Err(fault)),
            _ => {}
        }
        let (gate, mode) = (self.symbol("gate_vma").ok()?, self.symbol("vsyscall_mode").ok()?);
        match self.space().read_u32(mode) {
            Ok(NONE) => None,
            Ok(_) => Some(Ok(gate)),
            Err(fault) => Some(Err(fault)),
        }
    }

    fn vma_at(&self, address: Gva, process: &Process<'_>, walk: &mut Walk<Vma>) -> Result<Vma, Fault> {
        let (layout, memory) = (process.layout, self.space());
        let start = layout.start.pointer(memory, address)?;
        let end = layout.end.pointer(memory, address)?;
        let flags = VmFlags(layout.flags.read(memory, address)?);
        let file = layout.file.pointer_or_null(memory, address)?;
        let named = file.is_none() || layout.anon_name_with_file;
        let anon_name = if named { self.anon_name(address, layout) } else { Ok(None) };
        let mut vma =
            Vma { address, start, end, flags, offset: 0, device: Some((0, 0)), inode: Some(0), path: None };
        let path = match file {
            Some(file) => {
                vma.offset = layout.page_offset.read(memory, address)?.wrapping_shl(12);
                let identity = walk.try_or_note(self.file_identity(file));
                vma.device = identity.map(|identity| identity.device);
                vma.inode = identity.map(|identity| identity.inode);
                anon_name.and_then(|name| match name {
                    Some(name) => Ok(bracketed("anon_shmem", &name)),
                    None => self.file_path(file),
                })
            }
            None => self.name_without_file(&vma, process, anon_name),
        };
        vma.path = walk.try_or_note(path);
        Ok(vma)
    }

    /// The name of a range that maps no file. Corresponds to `get_vma_name` (`fs/proc/task_mmu.c`).
    fn name_without_file(
        &self,
        vma: &Vma,
        process: &Process<'_>,
        anon_name: Result<Option<GuestString>, Fault>,
    ) -> Result<GuestString, Fault> {
        if let Some(name) = self.operations_name(vma.address, process.layout)? {
            return Ok(name);
        }
        if process.layout.mm.pointer_or_null(self.space(), vma.address)?.is_none() {
            return Ok("[vdso]".into());
        }
        let (heap_start, heap_end) = process.heap;
        if vma.start < heap_end && vma.end > heap_start {
            return Ok("[heap]".into());
        }
        if vma.start <= process.stack && vma.end >= process.stack {
            return Ok("[stack]".into());
        }
        Ok(anon_name?.map(|name| bracketed("anon", &name)).unwrap_or_default())
    }

    /// The name that the range's operations give it.
    fn operations_name(&self, vma: Gva, layout: &VmaLayout) -> Result<Option<GuestString>, Fault> {
        let Some(ops) = layout.ops.pointer_or_null(self.space(), vma)? else { return Ok(None) };
        let Some(function) = layout.ops_name.pointer_or_null(self.space(), ops)? else { return Ok(None) };
        match self.function_named(function) {
            Some("special_mapping_name") => {
                let mapping = layout.private_data.pointer(self.space(), vma)?;
                let name = layout.special_name.pointer_or_null(self.space(), mapping)?;
                name.map(|at| GuestString::read(self.space(), at, MAX_NAME_BYTES)).transpose()
            }
            Some("gate_vma_name") => Ok(Some("[vsyscall]".into())),
            _ => Ok(None),
        }
    }

    /// The name that the program gave the range.
    fn anon_name(&self, vma: Gva, layout: &VmaLayout) -> Result<Option<GuestString>, Fault> {
        let (Some(field), Some(text)) = (layout.anon_name, layout.anon_name_text) else { return Ok(None) };
        let Some(name) = field.pointer_or_null(self.space(), vma)? else { return Ok(None) };
        GuestString::read(self.space(), text.of(name)?, MAX_NAME_BYTES).map(Some)
    }
}

/// `[kind:name]`.
fn bracketed(kind: &str, name: &GuestString) -> GuestString {
    let mut text = format!("[{kind}:").into_bytes();
    text.extend_from_slice(name.as_bytes());
    text.push(b']');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_show_as_in_proc() {
        assert_eq!(VmFlags(0x75).to_string(), "r-xp");
        assert_eq!(VmFlags(0x73 | 0x80).to_string(), "rw-s");
        assert_eq!(VmFlags(0).to_string(), "---p");
    }
}
