//! What scans look at, added to the made-up kernel.

use super::synthetic::objects::Process;
use super::synthetic::types::{Kind, RECENT, Structure, Types};
use super::synthetic::{Config, Kernel};

use Kind::{Array, Bytes, Int, Pointer, Struct};

const LIST: Kind = Struct("list_head");
const INT: Kind = Int(4);
const LONG: Kind = Int(8);

/// Structures that only scans read, and larger ones in place of those of the same name.
const ADDED: &[Structure] = &[
    (
        "task_struct",
        512,
        &[
            ("__state", 16, INT),
            ("tasks", 32, LIST),
            ("pid", 48, INT),
            ("tgid", 52, INT),
            ("comm", 56, Bytes(16)),
            ("flags", 72, INT),
            ("exit_state", 76, INT),
            ("real_parent", 80, Pointer),
            ("real_cred", 88, Pointer),
            ("start_boottime", 96, LONG),
            ("mm", 104, Pointer),
            ("signal", 112, Pointer),
            ("thread_node", 120, LIST),
            ("pid_links", 136, Array(&LIST, 4)),
            ("worker_private", 200, Pointer),
            ("children", 208, LIST),
            ("sibling", 224, LIST),
            ("cg_list", 240, LIST),
            ("sighand", 256, Pointer),
            ("se", 264, Struct("sched_entity")),
            ("stack_canary", 280, LONG),
        ],
    ),
    ("sched_entity", 16, &[("group_node", 0, LIST)]),
    ("rq", 64, &[("curr", 0, Pointer), ("idle", 8, Pointer), ("cfs_tasks", 16, LIST)]),
    ("css_set", 64, &[("tasks", 0, LIST), ("mg_tasks", 16, LIST), ("hlist", 32, LIST)]),
    ("rwlock_t", 8, &[("raw_lock", 0, Struct("qrwlock"))]),
    ("qrwlock", 8, &[("wlocked", 0, Int(1))]),
    (
        "module",
        512,
        &[
            ("state", 0, INT),
            ("list", 8, LIST),
            ("name", 24, Bytes(56)),
            ("mkobj", 80, Struct("module_kobject")),
            ("mem", 128, Array(&Struct("module_memory"), 7)),
            ("taints", 352, LONG),
            ("kallsyms", 360, Pointer),
            ("source_list", 368, LIST),
            ("refcnt", 384, Struct("atomic_t")),
            ("syms", 392, Pointer),
            ("num_syms", 400, INT),
            ("jump_entries", 408, Pointer),
            ("num_jump_entries", 416, INT),
        ],
    ),
    ("module_kobject", 40, &[("kobj", 0, Struct("kobject")), ("mod", 32, Pointer)]),
    ("kobject", 32, &[("entry", 8, LIST), ("sd", 24, Pointer)]),
    ("kset", 16, &[("list", 0, LIST)]),
    ("jump_entry", 16, &[("code", 0, INT), ("target", 4, INT), ("key", 8, LONG)]),
    ("mutex", 8, &[("owner", 0, Struct("atomic64_t"))]),
    ("atomic64_t", 8, &[("counter", 0, LONG)]),
];

/// `SYSTEM_RUNNING`.
const RUNNING: u32 = 3;
/// A no-operation of five bytes.
pub(crate) const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];

fn types() -> Types {
    let added = |name: &str| ADDED.iter().any(|structure| structure.0 == name);
    let kept = RECENT.iter().filter(|structure| !added(structure.0));
    Types::new(&kept.chain(ADDED).copied().collect::<Vec<_>>())
}

/// A healthy kernel: an init process with a child and a thread, a kernel thread, a module, four system calls, an interrupt
/// table, a static branch.
pub(crate) struct Healthy {
    pub(crate) kernel: Kernel,
    pub(crate) init: u64,
    pub(crate) shell: u64,
    pub(crate) thread: u64,
    pub(crate) kthread: u64,
    pub(crate) module: u64,
}

impl Healthy {
    /// Build on it, then call [`Kernel::finish`].
    pub(crate) fn new() -> Self {
        let mut kernel = Kernel::new(Config { types: types(), ..Config::default() });
        code(&mut kernel);
        let state = kernel.reserve("system_state", 'D', 4);
        kernel.write(state, &RUNNING.to_le_bytes());
        kernel.reserve("tasklist_lock", 'D', 8);
        kernel.reserve("text_mutex", 'D', 8);
        let init_task = kernel.symbol("init_task");
        init_links(&mut kernel, init_task);
        queues(&mut kernel, init_task);
        let mm = kernel.allocate(64);
        let init = task(
            &mut kernel,
            &Process { pid: 1, comm: b"init", parent: init_task, mm, ..Process::default() },
        );
        let parent = init_task;
        let kthreadd = Process { pid: 2, comm: b"kthreadd", flags: 0x20_0000, parent, ..Process::default() };
        let kthread = task(&mut kernel, &kthreadd);
        let shell =
            Process { pid: 7, comm: b"sh", parent: init, mm, start_ns: 5_000_000_000, ..Process::default() };
        let shell = task(&mut kernel, &shell);
        let thread = Process { pid: 8, comm: b"worker", parent: init, mm, ..Process::default() };
        let thread = kernel.thread(&thread, Some(shell));
        init_links(&mut kernel, thread);
        let module = module(&mut kernel);
        Self { kernel, init, shell, thread, kthread, module }
    }
}

/// A process with its place in the family.
pub(crate) fn task(kernel: &mut Kernel, process: &Process<'_>) -> u64 {
    let task = kernel.process(process);
    init_links(kernel, task);
    let (children, sibling) =
        (kernel.types.member("task_struct", "children").0, kernel.types.member("task_struct", "sibling").0);
    kernel.list_add_tail(process.parent + children, task + sibling);
    task
}

fn init_links(kernel: &mut Kernel, task: u64) {
    for list in ["children", "cg_list"] {
        let at = task + kernel.types.member("task_struct", list).0;
        kernel.list_init(at);
    }
    kernel.set(task, "task_struct", "sighand", task);
}

/// One processor, idle, and a set of control groups.
fn queues(kernel: &mut Kernel, idle: u64) {
    let queue = kernel.reserve("runqueues", 'D', kernel.types.size("rq"));
    kernel.set(queue, "rq", "curr", idle);
    kernel.set(queue, "rq", "idle", idle);
    kernel.list_init(queue + kernel.types.member("rq", "cfs_tasks").0);
    kernel.reserve("__per_cpu_offset", 'D', 64);
    let count = kernel.reserve("nr_cpu_ids", 'D', 4);
    kernel.write(count, &1u32.to_le_bytes());
    let mask = kernel.reserve("__cpu_online_mask", 'D', 8);
    kernel.write(mask, &1u64.to_le_bytes());
    let table = kernel.reserve("css_set_table", 'd', 128 * 8);
    let set = kernel.allocate(kernel.types.size("css_set"));
    for list in ["tasks", "mg_tasks"] {
        let at = set + kernel.types.member("css_set", list).0;
        kernel.list_init(at);
    }
    let node = set + kernel.types.member("css_set", "hlist").0;
    kernel.write(table + 5 * 8, &node.to_le_bytes());
}

/// Puts a task on the run queue.
pub(crate) fn make_ready(kernel: &mut Kernel, task: u64) {
    let head = kernel.symbol("runqueues") + kernel.types.member("rq", "cfs_tasks").0;
    let node = task + kernel.types.member("task_struct", "se.group_node").0;
    kernel.list_add_tail(head, node);
}

/// A live module with a page of code that has a static branch, in the list and in sysfs.
fn module(kernel: &mut Kernel) -> u64 {
    let area = kernel.reserve("module_area", 'd', 4096);
    let module = kernel.module(b"made_up", 0, area, [4096, 0]);
    let kset = kernel.allocate(kernel.types.size("kset"));
    kernel.list_init(kset);
    let pointer = kernel.reserve("module_kset", 'D', 8);
    kernel.write(pointer, &kset.to_le_bytes());
    kernel.set(module, "module", "mkobj.mod", module);
    let entry = module + kernel.types.member("module", "mkobj.kobj.entry").0;
    kernel.list_add_tail(kset, entry);
    kernel.write(area + 0x800, &NOP5);
    let entry = area + 0x900;
    jump_entry(kernel, entry, area + 0x800, area + 0x880);
    kernel.set(module, "module", "jump_entries", entry);
    kernel.set(module, "module", "num_jump_entries", 1);
    module
}

fn jump_entry(kernel: &mut Kernel, entry: u64, code: u64, target: u64) {
    let distance = |from: u64, to: u64| (to.wrapping_sub(from) as u32).to_le_bytes();
    kernel.write(entry, &distance(entry, code));
    kernel.write(entry + 4, &distance(entry + 4, target));
}

/// The call of the dispatcher that leads to each system call: 5 bytes from the start on, one behind the other.
pub(crate) fn dispatching_call(kernel: &Kernel, number: u64) -> u64 {
    kernel.symbol("x64_sys_call") + number * 5
}

/// `call` or `jmp` with a distance of 32 bits.
pub(crate) fn branch(opcode: u8, at: u64, target: u64) -> [u8; 5] {
    let [a, b, c, d] = (target.wrapping_sub(at + 5) as u32).to_le_bytes();
    [opcode, a, b, c, d]
}

/// One gate of an interrupt table.
pub(crate) fn gate(handler: u64, bits: u8) -> [u8; 16] {
    let h = handler.to_le_bytes();
    [h[0], h[1], 0x10, 0, 0, bits, h[2], h[3], h[4], h[5], h[6], h[7], 0, 0, 0, 0]
}

fn code(kernel: &mut Kernel) {
    let calls: Vec<u64> = ["__x64_sys_read", "__x64_sys_write", "__x64_sys_ni_syscall", "__x64_sys_kill"]
        .map(|name| kernel.reserve(name, 'T', 0x40))
        .into();
    let dispatcher = kernel.reserve("x64_sys_call", 'T', 0x40);
    for (number, call) in calls.iter().enumerate() {
        let at = dispatcher + number as u64 * 5;
        kernel.write(at, &branch(0xe9, at, *call));
    }
    kernel.write(dispatcher + 20, &[0xcc; 0x2c]);
    let entry = kernel.reserve("entry_SYSCALL_64", 'T', 0x40);
    kernel.write(entry, &[0x0f, 0x01, 0xf8]);
    let branches = kernel.reserve("with_a_static_branch", 'T', 0x40);
    kernel.write(branches + 8, &[0x66, 0x90]);
    let page_fault = kernel.reserve("asm_exc_page_fault", 'T', 0x40);
    let int3 = kernel.reserve("asm_exc_int3", 'T', 0x40);
    let irqs = kernel.reserve("irq_entries_start", 'T', 224 * 16);
    kernel.reserve("_etext", 'T', 4096);
    let table = kernel.reserve("sys_call_table", 'D', 0x40);
    for (number, call) in calls.iter().enumerate() {
        kernel.write(table + number as u64 * 8, &call.to_le_bytes());
    }
    let gates = kernel.reserve("idt_table", 'b', 4096);
    kernel.write(gates + 14 * 16, &gate(page_fault, 0x8e));
    kernel.write(gates + 3 * 16, &gate(int3, 0xee));
    for vector in 32..256 {
        kernel.write(gates + vector * 16, &gate(irqs + (vector - 32) * 16, 0x8e));
    }
    let jumps = kernel.reserve("__start___jump_table", 'D', 0x40);
    jump_entry(kernel, jumps, branches + 8, branches + 0x30);
    let stop = kernel.reserve("__stop___jump_table", 'D', 0x40);
    // The table has one entry, and room for three more that are all zeros: they lead into themselves, outside of text.
    assert_eq!(stop - jumps, 0x40);
    kernel.reserve("_end", 'B', 0x40);
}
