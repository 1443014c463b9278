//! A made-up kernel in a few megabytes of memory: everything that bring-up and views need, and nothing else.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod objects;
pub(crate) mod types;

use std::collections::BTreeMap;

use varve_fixtures::synth::kallsyms::{self, Encoding};
use varve_fixtures::synth::page_table::{PageTables, Size};
use varve_fixtures::synth::vmcoreinfo;
use varve_formats::{Fault, Gpa, PAGE_SIZE, PhysicalMemory, Region, Vcpu};

use types::Types;

/// Bytes of memory.
pub(crate) const MEMORY_BYTES: u64 = 16 << 20;
/// Where memory is mapped as a whole.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Where the kernel image is linked.
pub(crate) const LINK_TEXT: u64 = 0xffff_ffff_8100_0000;
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Bytes of the image.
const IMAGE_BYTES: u64 = 4 << 20;
/// VMCOREINFO.
pub(crate) const NOTE_AT: u64 = 0x8_0000;
/// Tables of processes, and objects.
const HEAP_AT: u64 = 0xa0_0000;

pub(crate) const RELEASE: &str = "6.1.0-made-up";

/// Guest memory from 0 on.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
    regions: Vec<Region>,
}

impl Memory {
    pub(crate) fn zeroed() -> Self {
        let regions = vec![Region { start: Gpa(0), len: MEMORY_BYTES }];
        Self { bytes: vec![0; MEMORY_BYTES as usize], regions }
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let start = usize::try_from(at.0).unwrap_or(usize::MAX);
        let found = self.bytes.get(start..).and_then(|tail| tail.get(..buf.len()));
        buf.copy_from_slice(found.ok_or(Fault::NotCaptured { at })?);
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

/// How a kernel is built and booted.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) levels: u32,
    /// KASLR: how far the image is moved in virtual memory.
    pub(crate) offset: u64,
    /// Where it is in physical memory.
    pub(crate) image_at: u64,
    pub(crate) banner: String,
    pub(crate) types: Types,
    pub(crate) encoding: Encoding,
    pub(crate) with_btf: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            levels: 4,
            offset: 0,
            image_at: 0x20_0000,
            banner: format!("Linux version {RELEASE} (maker@nowhere) #1 SMP"),
            types: Types::new(types::RECENT),
            encoding: Encoding::ALL[5].1,
            with_btf: true,
        }
    }
}

/// A kernel under construction.
pub(crate) struct Kernel {
    pub(crate) memory: Memory,
    pub(crate) config: Config,
    pub(crate) root: u64,
    pub(crate) types: Types,
    symbols: BTreeMap<u64, (char, String)>,
    kallsyms: Vec<(&'static str, u64)>,
    next_in_image: u64,
    next_in_heap: u64,
    next_root: u64,
}

impl Kernel {
    /// An image with page tables, banner, init task and empty lists, not yet described by symbols: see
    /// [`Kernel::finish`].
    pub(crate) fn new(config: Config) -> Self {
        let mut kernel = Self {
            memory: Memory::zeroed(),
            root: 0,
            types: config.types.clone(),
            symbols: BTreeMap::new(),
            kallsyms: Vec::new(),
            next_in_image: LINK_TEXT + config.offset,
            next_in_heap: HEAP_AT,
            next_root: 0x60_0000,
            config,
        };
        let text = kernel.reserve("_text", 'T', 0x1000);
        kernel.symbols.insert(text + 0x40, ('T', "_stext".to_owned()));
        for function in
            ["special_mapping_name", "gate_vma_name", "simple_dname", "anon_inodefs_dname", "sockfs_dname"]
        {
            kernel.reserve(function, 't', 0x40);
        }
        let root = kernel.reserve("init_top_pgt", 'D', 4096);
        kernel.root = kernel.image_gpa(root);
        let tables = kernel.tables(kernel.root);
        kernel.write_tables(&tables);
        let banner = kernel.reserve("linux_banner", 'R', 1024);
        let text = [kernel.config.banner.clone().into_bytes(), b"\n\0".to_vec()].concat();
        kernel.write(banner, &text);
        kernel.init_objects();
        kernel
    }

    /// The tables of the kernel half, to be extended by a user half.
    pub(crate) fn tables(&self, root: u64) -> PageTables {
        let mut tables = PageTables::new(root, self.config.levels);
        for at in (0..IMAGE_BYTES).step_by(2 << 20) {
            tables.map(LINK_TEXT + self.config.offset + at, self.config.image_at + at, Size::Large);
        }
        for at in (0..MEMORY_BYTES).step_by(2 << 20) {
            tables.map(DIRECT_MAP + at, at, Size::Large);
        }
        tables
    }

    /// Writes tables, with the bits that Linux sets in entries that lead to tables of its own half. The top one stays
    /// where it is, the others follow [`HEAP_AT`]-like areas of their own.
    pub(crate) fn write_tables(&mut self, tables: &PageTables) {
        // The writer puts tables one behind the other from the root on; they must not overwrite the image.
        let moved: BTreeMap<u64, u64> = tables
            .pages()
            .iter()
            .enumerate()
            .map(|(number, (gpa, _))| {
                (*gpa, if number == 0 { *gpa } else { self.next_root + number as u64 * 4096 })
            })
            .collect();
        self.next_root += tables.pages().len() as u64 * 4096;
        for (gpa, page) in tables.pages() {
            let entries = page.chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap()));
            let page: Vec<u8> = entries
                .flat_map(|entry| {
                    let address = entry & 0x000f_ffff_ffff_f000;
                    let is_table = entry & 0x81 == 1 && moved.contains_key(&address) && entry & 0x100 == 0;
                    let entry = if is_table { moved[&address] | 0x67 } else { entry };
                    entry.to_le_bytes()
                })
                .collect();
            self.write_gpa(moved[&gpa], &page);
        }
    }

    /// Writes symbols, types and VMCOREINFO.
    pub(crate) fn finish(&mut self) {
        if self.config.with_btf {
            let btf = self.types.btf();
            let start = self.reserve("__start_BTF", 'D', btf.len() as u64);
            self.write(start, &btf);
            self.symbols.insert(start + btf.len() as u64, ('D', "__stop_BTF".to_owned()));
            self.next_in_image += 16;
        }
        let base = self.next_in_image.next_multiple_of(64);
        // Enough symbols for several markers.
        let fill = base + 0x10_0000;
        for number in 0..600 {
            self.symbols.insert(fill + number * 16, ('t', format!("filler_{number}_0123456789")));
        }
        let symbols: Vec<kallsyms::Symbol<'_>> =
            self.symbols.iter().map(|(at, (kind, name))| (*at, *kind, name.as_str())).collect();
        let tables = kallsyms::encode(&symbols, base, self.config.encoding);
        let mut lines = self.note_lines();
        lines.push(format!("SYMBOL(_stext)={:x}", self.symbol("_stext")));
        lines.extend(tables.tables.iter().map(|(name, at)| format!("SYMBOL({name})={at:x}")));
        self.write(base, &tables.bytes);
        self.kallsyms = tables.tables;
        self.write_note(NOTE_AT, &lines);
    }

    /// The lines of VMCOREINFO that say where the kernel is.
    pub(crate) fn note_lines(&self) -> Vec<String> {
        let root = self.symbol("init_top_pgt");
        let base = self.phys_base().cast_unsigned();
        let mut lines = vmcoreinfo::lines(RELEASE, root, self.config.offset, 0, self.config.levels == 5);
        for line in &mut lines {
            if line.starts_with("NUMBER(phys_base)") {
                *line = format!("NUMBER(phys_base)={}", base.cast_signed());
            }
        }
        lines
    }

    pub(crate) fn write_note(&mut self, at: u64, lines: &[String]) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        self.write_gpa(at, &vmcoreinfo::page(&lines));
    }

    pub(crate) fn phys_base(&self) -> i64 {
        self.config.image_at.cast_signed() - (LINK_TEXT + self.config.offset - KERNEL_MAP).cast_signed()
    }

    /// A vCPU that uses the table at `root`.
    pub(crate) fn vcpu(&self, root: u64) -> Vcpu {
        let cr4 = if self.config.levels == 5 { 1 << 12 } else { 0 };
        Vcpu { cr3: root, cr4, ..Vcpu::default() }
    }

    pub(crate) fn symbol(&self, name: &str) -> u64 {
        *self.symbols.iter().find(|(_, symbol)| symbol.1 == name).unwrap_or_else(|| panic!("{name}")).0
    }

    /// Address of a kallsyms table.
    pub(crate) fn table(&self, name: &str) -> u64 {
        self.kallsyms.iter().find(|table| table.0 == name).unwrap_or_else(|| panic!("{name}")).1
    }

    /// Room in the image, with a symbol.
    pub(crate) fn reserve(&mut self, name: &str, kind: char, bytes: u64) -> u64 {
        let align = if bytes.is_multiple_of(4096) { 4096 } else { 64 };
        let at = self.next_in_image.next_multiple_of(align);
        self.next_in_image = at + bytes;
        self.symbols.insert(at, (kind, name.to_owned()));
        at
    }

    /// Room on the heap, for an object or table; never across a page it need not cross.
    pub(crate) fn allocate(&mut self, bytes: u64) -> u64 {
        let at = self.next_in_heap.next_multiple_of(if bytes >= 4096 { 4096 } else { 256 });
        self.next_in_heap = at + bytes;
        assert!(self.next_in_heap <= MEMORY_BYTES, "the made-up kernel is out of memory");
        DIRECT_MAP + at
    }

    /// Physical address of a kernel address.
    pub(crate) fn gpa(&self, at: u64) -> u64 {
        if at >= KERNEL_MAP { self.image_gpa(at) } else { at - DIRECT_MAP }
    }

    fn image_gpa(&self, at: u64) -> u64 {
        at - (LINK_TEXT + self.config.offset) + self.config.image_at
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let gpa = self.gpa(at);
        self.write_gpa(gpa, bytes);
    }

    pub(crate) fn write_gpa(&mut self, gpa: u64, bytes: &[u8]) {
        self.memory.bytes[gpa as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn read_u64(&self, at: u64) -> u64 {
        let gpa = self.gpa(at) as usize;
        u64::from_le_bytes(self.memory.bytes[gpa..gpa + 8].try_into().unwrap())
    }

    /// Sets a member of the structure at `at`.
    pub(crate) fn set(&mut self, at: u64, structure: &'static str, member: &str, value: u64) {
        let (offset, size) = self.types.member(structure, member);
        self.write(at + offset, &value.to_le_bytes()[..size.min(8) as usize]);
    }

    /// Sets the first of two members that the kernel has.
    pub(crate) fn set_either(&mut self, at: u64, structure: &'static str, members: [&str; 2], value: u64) {
        let [first, second] = members;
        let member = if self.types.has(structure, first) { first } else { second };
        self.set(at, structure, member, value);
    }

    /// Sets characters.
    pub(crate) fn set_text(&mut self, at: u64, structure: &'static str, member: &str, text: &[u8]) {
        let (offset, size) = self.types.member(structure, member);
        let text = &text[..text.len().min(size as usize)];
        self.write(at + offset, text);
    }

    /// A string on the heap.
    pub(crate) fn string(&mut self, text: &[u8]) -> u64 {
        let at = self.allocate(text.len() as u64 + 1);
        self.write(at, text);
        at
    }

    /// Links `node` in front of the head of a list: at its end.
    pub(crate) fn list_add_tail(&mut self, head: u64, node: u64) {
        let last = self.read_u64(head + 8);
        self.write(node, &head.to_le_bytes());
        self.write(node + 8, &last.to_le_bytes());
        self.write(last, &node.to_le_bytes());
        self.write(head + 8, &node.to_le_bytes());
    }

    pub(crate) fn list_init(&mut self, head: u64) {
        self.write(head, &head.to_le_bytes());
        self.write(head + 8, &head.to_le_bytes());
    }
}

/// The page an address is in.
pub(crate) const fn page_of(at: u64) -> u64 {
    at & !(PAGE_SIZE as u64 - 1)
}
