//! Bring-up on a made-up kernel: where it can be found, what keeps it from being found, and what is remembered.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets what it does not expect must fail"
)]

mod synthetic;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use synthetic::objects::Process;
use synthetic::types::{OLD, Types};
use synthetic::{Config, DIRECT_MAP, Kernel, Memory, NOTE_AT, RELEASE};
use varve_analyze::guest::{BringUpError, Continuity, Guest, KernelHalf, Origin, Pin, Profiles, Step};
use varve_analyze::views::{Filter, VIEWS};
use varve_fixtures::synth::kallsyms::Encoding;
use varve_formats::{Fault, Gfn, Gpa, Gva, PhysicalMemory, Region, Vcpu};

/// A kernel with a few processes.
fn kernel(config: Config) -> Kernel {
    let mut kernel = Kernel::new(config);
    let init = kernel.process(&Process { pid: 1, comm: b"init", ..Process::default() });
    kernel.process(&Process { pid: 2, comm: b"sh", parent: init, ..Process::default() });
    kernel.finish();
    kernel
}

fn open<'m>(
    kernel: &'m Kernel,
    vcpus: &[Vcpu],
    pins: &[Pin],
    profiles: &Profiles,
) -> Result<Guest<'m>, BringUpError> {
    Guest::open(&kernel.memory, vcpus, pins, profiles)
}

fn first(kernel: &Kernel) -> Guest<'_> {
    open(kernel, &[], &[], &Profiles::new()).unwrap()
}

fn failed_step(kernel: &Kernel) -> (Step, String) {
    let Err(error) = open(kernel, &[], &[], &Profiles::new()) else { panic!("a kernel was found") };
    (error.furthest().unwrap().1.step, error.to_string())
}

fn assert_found(guest: &Guest<'_>, kernel: &Kernel) {
    assert_eq!(guest.placement().root, Gpa(kernel.root));
    assert_eq!(guest.placement().kernel_offset, kernel.config.offset);
    assert_eq!(guest.placement().phys_base, kernel.phys_base());
    assert_eq!(guest.placement().levels.count(), kernel.config.levels as u8);
    assert_eq!(guest.symbol("init_task").unwrap(), Gva(kernel.symbol("init_task")));
    let processes = guest.processes().unwrap();
    assert!(processes.complete);
    assert_eq!(processes.items.iter().map(|task| task.pid).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_kernel_is_found_by_its_note_wherever_kaslr_put_it() {
    for levels in [4, 5] {
        for (offset, image_at) in [(0, 0x20_0000), (0x1320_0000, 0x40_0000)] {
            for (_, encoding) in Encoding::ALL {
                let kernel = kernel(Config { levels, offset, image_at, encoding, ..Config::default() });
                let guest = first(&kernel);
                assert_found(&guest, &kernel);
                assert_eq!((guest.continuity(), guest.pin().note), (Continuity::First, Some(Gpa(NOTE_AT))));
            }
        }
    }
}

#[test]
fn old_structures_are_told_by_their_members() {
    let kernel = kernel(Config { types: Types::new(OLD), ..Config::default() });
    assert_found(&first(&kernel), &kernel);
}

#[test]
fn without_a_note_page_tables_lead_to_the_kernel() {
    for levels in [4, 5] {
        let mut kernel = kernel(Config { levels, offset: 0x20_0000, ..Config::default() });
        kernel.write_gpa(NOTE_AT, &[0; 4096]);
        assert_found(&first(&kernel), &kernel);
        let root = kernel.allocate(8192) - DIRECT_MAP;
        // The pair of tables that KPTI uses: this one is for user mode and maps nothing of the kernel.
        let user = if root.is_multiple_of(8192) { root + 4096 } else { root };
        let vcpu = kernel.vcpu(user);
        assert_found(&open(&kernel, &[vcpu], &[], &Profiles::new()).unwrap(), &kernel);
        let vcpu = kernel.vcpu(kernel.root);
        assert_found(&open(&kernel, &[vcpu], &[], &Profiles::new()).unwrap(), &kernel);
    }
}

#[test]
fn notes_that_lie_are_passed_over() {
    let mut kernel = kernel(Config::default());
    let mut lies = kernel.note_lines();
    lies.retain(|line| !line.starts_with("SYMBOL"));
    lies.push(format!("SYMBOL(swapper_pg_dir)={:x}", kernel.symbol("linux_banner")));
    kernel.write_note(0x1_0000, &lies);
    kernel.write_note(0x2_0000, &["OSRELEASE=4.4.4".to_owned()]);
    assert_found(&first(&kernel), &kernel);
}

#[test]
fn more_lies_than_are_tried_do_not_keep_the_kernel_from_being_found() {
    let mut kernel = kernel(Config::default());
    for number in 0..64 {
        kernel.write_note(0x1_0000 + number * 4096, &[format!("OSRELEASE={number}")]);
    }
    let guest = first(&kernel);
    assert_found(&guest, &kernel);
    assert_eq!(guest.pin().note, None);
}

#[test]
fn each_step_that_fails_is_named_with_what_to_do() {
    let nothing = Memory::zeroed();
    let error = Guest::open(&nothing, &[], &[], &Profiles::new()).err().unwrap();
    assert_eq!((error.attempts[0].0, error.attempts[0].1.step), (Origin::Search, Step::Location));
    assert!(
        error.to_string().contains("no VMCOREINFO, and no page table that maps a kernel image"),
        "{error}"
    );
    assert!(
        error.to_string().contains("what to try: check that the image is of an x86-64 Linux guest"),
        "{error}"
    );

    let mut no_tables = kernel(Config::default());
    no_tables.write_gpa(no_tables.root, &[0; 4096]);
    assert_eq!(failed_step(&no_tables).0, Step::PageTables);

    let mut no_symbols = kernel(Config::default());
    let gpa = no_symbols.gpa(no_symbols.symbol("__stop_BTF"));
    no_symbols.write_gpa(gpa, &[0; 0x8_0000]);
    let (step, text) = failed_step(&no_symbols);
    assert_eq!(step, Step::Kallsyms);
    assert!(text.contains("by VMCOREINFO at guest physical 0x80000: step kallsyms: "), "{text}");

    let (step, text) = failed_step(&kernel(Config { with_btf: false, ..Config::default() }));
    assert_eq!(step, Step::Btf);
    assert!(text.contains("CONFIG_DEBUG_INFO_BTF"), "{text}");

    let types = Types::new(OLD).without("task_struct");
    let mut stripped = Kernel::new(Config::default());
    stripped.types = types;
    stripped.finish();
    let (step, text) = failed_step(&stripped);
    assert_eq!(step, Step::Layouts);
    assert!(text.contains("no struct task_struct"), "{text}");

    let (step, text) =
        failed_step(&kernel(Config { banner: "Lunix version 9.9".to_owned(), ..Config::default() }));
    assert_eq!(step, Step::Banner);
    assert!(
        text.contains(&format!("\"Lunix version 9.9\\x0a\", which is not that of Linux {RELEASE}")),
        "{text}"
    );

    let mut renamed = kernel(Config::default());
    let init_task = renamed.symbol("init_task");
    renamed.set_text(init_task, "task_struct", "comm", b"\x1b[2J\0");
    let (step, text) = failed_step(&renamed);
    assert_eq!(step, Step::InitTask);
    assert!(text.contains("init_task is called \"\\x1b[2J\""), "{text}");
}

#[test]
fn a_task_list_that_does_not_close_is_told_by_the_list_and_not_hidden_by_a_failure() {
    let mut kernel = kernel(Config::default());
    let tasks = kernel.symbol("init_task") + kernel.types.member("task_struct", "tasks").0;
    let first_node = kernel.read_u64(tasks);
    kernel.write(first_node, &first_node.to_le_bytes());
    let guest = first(&kernel);
    let processes = guest.processes().unwrap();
    assert!(!processes.complete);
    assert_eq!(processes.items.len(), 2, "the second one is reached from the other end");
}

/// Counts the pages that are read.
struct Counting<'a> {
    memory: &'a Memory,
    reads: AtomicUsize,
}

impl PhysicalMemory for Counting<'_> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.memory.read(at, buf)
    }

    fn regions(&self) -> &[Region] {
        self.memory.regions()
    }
}

#[test]
fn with_a_pin_memory_is_not_searched_and_nothing_is_parsed_again() {
    let kernel = kernel(Config { offset: 0x20_0000, ..Config::default() });
    let profiles = Profiles::new();
    let before = open(&kernel, &[], &[], &profiles).unwrap();
    let pins = Pin::decode(&Pin::encode(&[before.pin().clone()])).unwrap();
    let counting = Counting { memory: &kernel.memory, reads: AtomicUsize::new(0) };
    let again = Guest::open(&counting, &[], &pins, &profiles).unwrap();
    assert_found(&again, &kernel);
    assert_eq!(again.continuity(), Continuity::Same);
    assert!(Arc::ptr_eq(again.profile(), before.profile()));
    let pages = kernel.memory.bytes.len() / 4096;
    assert!(counting.reads.into_inner() < pages / 16);
}

#[test]
fn a_reboot_shares_the_profile_and_another_kernel_does_not() {
    let profiles = Profiles::new();
    let kernel_a = kernel(Config::default());
    let first = open(&kernel_a, &[], &[], &profiles).unwrap();
    let pins = [first.pin().clone()];

    for (_, encoding) in Encoding::ALL {
        let build = |offset| kernel(Config { offset, encoding, ..Config::default() });
        let (profiles, still, moved) = (Profiles::new(), build(0), build(0x3a0_0000));
        let before = open(&still, &[], &[], &profiles).unwrap();
        let rebooted = open(&moved, &[], &[before.pin().clone()], &profiles).unwrap();
        assert_eq!(rebooted.continuity(), Continuity::Rebooted, "{encoding:?}");
        assert!(Arc::ptr_eq(before.profile(), rebooted.profile()));
        assert_found(&rebooted, &moved);
        let at = Gva(moved.symbol("modules"));
        assert_eq!(
            rebooted.symbol_at(at).map(|(symbol, offset)| (symbol.name, symbol.address, offset)),
            Some(("modules", at, 0))
        );
        assert!(rebooted.symbols().any(|symbol| symbol.address == at && symbol.name == "modules"));
    }

    let banner = format!("Linux version {RELEASE} (maker@elsewhere) #2");
    let other = kernel(Config { banner, types: Types::new(OLD), ..Config::default() });
    let guest = open(&other, &[], &pins, &profiles).unwrap();
    assert_eq!(guest.continuity(), Continuity::OtherKernel);
    assert!(guest.continuity().is_new_boot());
    assert_found(&guest, &other);
}

#[test]
fn changed_symbols_and_types_are_told_and_the_pinned_ones_used() {
    let original = kernel(Config::default());
    let profiles = Profiles::new();
    let trusted = open(&original, &[], &[], &profiles).unwrap();
    let pins = [trusted.pin().clone()];
    let name = original.gpa(original.table("kallsyms_names")) + 40;
    let in_types = original.gpa(original.symbol("__stop_BTF")) - 3;
    for (at, kallsyms) in [(name, true), (in_types, false)] {
        let mut kernel = kernel(Config::default());
        kernel.memory.bytes[at as usize] ^= 1;
        let expected = Continuity::Altered { kallsyms, btf: !kallsyms, banner: false };
        let guest = open(&kernel, &[], &pins, &profiles).unwrap();
        assert_eq!(guest.continuity(), expected, "with the profile at hand");
        assert!(Arc::ptr_eq(guest.profile(), trusted.profile()));
        assert_found(&guest, &kernel);
        if let Ok(guest) = open(&kernel, &[], &pins, &Profiles::new()) {
            assert_eq!(guest.continuity(), expected, "with the digests only");
        }
    }
}

/// An archived epoch: frames whose contents have names. Counts the bytes that are read.
struct Named<'a> {
    memory: &'a Memory,
    /// A frame, and the name of what is in it; all others are called by their number.
    changed: Option<(Gfn, u64)>,
    bytes_read: AtomicUsize,
}

impl PhysicalMemory for Named<'_> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        self.bytes_read.fetch_add(buf.len(), Ordering::Relaxed);
        self.memory.read(at, buf)
    }

    fn regions(&self) -> &[Region] {
        self.memory.regions()
    }

    fn page_identity(&self, gfn: Gfn) -> Option<u64> {
        Some(self.changed.filter(|changed| changed.0 == gfn).map_or(gfn.0, |changed| changed.1))
    }
}

#[test]
fn symbols_in_pages_that_an_archive_calls_unchanged_are_not_read_again() {
    let mut kernel = kernel(Config::default());
    let profiles = Profiles::new();
    let trusted = open(&kernel, &[], &[], &profiles).unwrap();
    let pins = [trusted.pin().clone()];
    let epoch = |kernel: &Kernel, changed| {
        let bytes_read = AtomicUsize::new(0);
        let named = Named { memory: &kernel.memory, changed, bytes_read };
        let continuity = Guest::open(&named, &[], &pins, &profiles).unwrap().continuity();
        (continuity, named.bytes_read.into_inner())
    };
    let (first, all) = epoch(&kernel, None);
    let (second, few) = epoch(&kernel, None);
    assert_eq!((first, second), (Continuity::Same, Continuity::Same));
    assert!(few < all / 2, "{few} of {all} bytes");
    let name = kernel.gpa(kernel.table("kallsyms_names")) + 40;
    let called = |identity| Some((Gpa(name).gfn(), identity));
    assert_eq!(epoch(&kernel, called(1 << 40)).0, Continuity::Same, "another name, the same contents");
    kernel.memory.bytes[name as usize] ^= 1;
    let altered = Continuity::Altered { kallsyms: true, btf: false, banner: false };
    assert_eq!(epoch(&kernel, called(1 << 41)).0, altered);
    assert_eq!(
        epoch(&kernel, called(1 << 41)).0,
        altered,
        "what was found changed is not remembered as unchanged"
    );
}

#[test]
fn a_page_table_in_use_that_leads_elsewhere_is_told() {
    let mut kernel = kernel(Config::default());
    let pair = |kernel: &mut Kernel| kernel.allocate(3 * 4096).next_multiple_of(8192);
    let (copy, bent) = (pair(&mut kernel), pair(&mut kernel));
    let own = kernel.memory.bytes[kernel.root as usize..][..4096].to_vec();
    kernel.write(copy, &own);
    kernel.write(bent, &own);
    let entry = u64::from_le_bytes(own[511 * 8..].try_into().unwrap());
    kernel.write(bent + 511 * 8, &(entry ^ 0x10_0000).to_le_bytes());
    let guest = first(&kernel);
    let half = |root: u64| guest.kernel_half(&kernel.vcpu(root));
    assert_eq!(half(kernel.root), KernelHalf::Same);
    assert_eq!(half(kernel.gpa(copy)), KernelHalf::Same);
    assert_eq!(half(kernel.gpa(copy) + 4096), KernelHalf::Same, "the table for user mode beside it");
    for root in [kernel.gpa(bent), kernel.gpa(bent) + 4096] {
        let KernelHalf::Diverges(found) = half(root) else { panic!("not seen") };
        assert_eq!((found.len(), found[0].gva, found[0].expected), (1, Gva(0xffff_ff80_0000_0000), entry));
        assert_eq!(found[0].gpa, Gpa(kernel.gpa(bent) + 511 * 8));
    }
    assert!(matches!(half(1 << 40), KernelHalf::Unreadable(Fault::NotCaptured { .. })));
}

#[test]
fn a_guest_seen_through_another_memory_is_the_same_guest() {
    let kernel = kernel(Config::default());
    let guest = first(&kernel);
    let counting = Counting { memory: &kernel.memory, reads: AtomicUsize::new(0) };
    assert_eq!(guest.over(&counting).processes().unwrap(), guest.processes().unwrap());
    assert!(counting.reads.into_inner() > 10);
}

/// Memory of the kernel that is damaged, and its words that hold something: damage is to meet structures and not empty
/// memory.
static SOUND: LazyLock<(Memory, Vec<usize>)> = LazyLock::new(|| {
    let memory = kernel(Config::default()).memory;
    let (words, _) = memory.bytes.as_chunks::<8>();
    let used = (0..words.len()).filter(|word| words[*word] != [0; 8]).collect();
    (memory, used)
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_makes_it_panic_or_hang(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), any::<bool>()), 1..64),
    ) {
        let (sound, used) = &*SOUND;
        let mut memory = sound.clone();
        let (words, _) = memory.bytes.as_chunks_mut::<8>();
        for (index, value, copied) in damage {
            let from = used[value as usize % used.len()];
            words[used[index.index(used.len())]] = if copied { words[from] } else { value.to_le_bytes() };
        }
        if let Ok(guest) = Guest::open(&memory, &[], &[], &Profiles::new()) {
            for view in VIEWS {
                if let Ok(table) = (view.run)(&guest, &Filter::default()) {
                    prop_assert!(table.complete || !table.faults.is_empty());
                }
            }
        }
    }
}
