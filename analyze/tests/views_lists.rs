//! The views on a made-up kernel, in both ways that kernels have kept these structures: what stands in each row, and
//! what happens when a part of it cannot be read.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets what it does not expect must fail"
)]

mod synthetic;

use serde_json::{Value, json};
use synthetic::objects::{KERNEL_THREAD, Process, Range, WORKER};
use synthetic::types::{OLD, RECENT, Types};
use synthetic::{Config, Kernel};
use varve_analyze::guest::{Guest, Profiles};
use varve_analyze::views::{self, Filter, Table, VIEWS};

const READ_EXEC: u64 = 0x75;
const READ_WRITE: u64 = 0x73;
const SHARED: u64 = 0xfb;

/// The same on recent and on old structures.
fn both(test: impl Fn(Kernel)) {
    for variant in [RECENT, OLD] {
        test(Kernel::new(Config { types: Types::new(variant), ..Config::default() }));
    }
}

fn table(kernel: &mut Kernel, view: &str, filter: Filter) -> Table {
    kernel.finish();
    let guest = Guest::open(&kernel.memory, &[], &[], &Profiles::new()).unwrap();
    (views::named(view).unwrap().run)(&guest, &filter).unwrap()
}

/// The rows as JSON, with only these columns.
fn rows(table: &Table, columns: &[&str]) -> Vec<Value> {
    table
        .records()
        .map(|record| {
            columns.iter().map(|column| serde_json::to_value(record.get(column).unwrap()).unwrap()).collect()
        })
        .collect()
}

#[test]
fn the_columns_of_each_view_are_stable() {
    let columns = |name: &str| {
        let columns = views::named(name).unwrap().columns;
        columns.iter().map(|column| column.name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        VIEWS.iter().map(|view| view.name).collect::<Vec<_>>(),
        ["pslist", "pstree", "psaux", "pidhashtable", "maps", "lsmod", "kallsyms"]
    );
    assert_eq!(
        columns("pslist"),
        "pid ppid tgid comm uid gid euid egid start_time_ns state threads kernel_thread task"
    );
    assert_eq!(columns("pstree"), "depth pid ppid comm uid start_time_ns kernel_thread task");
    assert_eq!(columns("psaux"), "pid ppid uid comm args");
    assert_eq!(
        columns("pidhashtable"),
        "pid tgid ppid comm uid start_time_ns kernel_thread number task pid_struct"
    );
    assert_eq!(columns("maps"), "pid start end flags offset dev inode path");
    assert_eq!(columns("lsmod"), "name size refs used_by state address taints module");
    assert_eq!(columns("kallsyms"), "address type name module");
    assert!(views::named("psscan").is_none());
}

#[test]
fn every_row_has_a_cell_for_each_column() {
    both(|mut kernel| {
        let mm = kernel.mm(&[Range { start: 0x1000, end: 0x2000, ..Range::default() }], &[]);
        kernel.process(&Process { pid: 1, mm, ..Process::default() });
        let area = kernel.reserve("module_area", 'd', 4096);
        kernel.module(b"dummy", 0, area, [4096, 0]);
        kernel.finish();
        let guest = Guest::open(&kernel.memory, &[], &[], &Profiles::new()).unwrap();
        for view in VIEWS {
            let table = (view.run)(&guest, &Filter::default()).unwrap();
            assert!(!table.rows.is_empty(), "{}", view.name);
            assert!(table.rows.iter().all(|row| row.len() == view.columns.len()), "{}", view.name);
        }
    });
}

#[test]
fn pslist_tells_processes_and_their_parents_users_and_states() {
    both(|mut kernel| {
        let init =
            kernel.process(&Process { pid: 1, comm: b"init", start_ns: 7_000_000, ..Process::default() });
        let kthreadd =
            Process { pid: 2, comm: b"kthreadd", flags: KERNEL_THREAD, state: 0x402, ..Process::default() };
        kernel.process(&kthreadd);
        let shell = Process {
            pid: 9,
            comm: b"\x1b[0m\\\xff",
            uid: 1000,
            state: 0,
            parent: init,
            ..Process::default()
        };
        let shell = kernel.process(&shell);
        kernel.thread(&Process { pid: 10, comm: b"worker", ..Process::default() }, Some(shell));
        let table = table(&mut kernel, "pslist", Filter::default());
        let columns = [
            "pid",
            "ppid",
            "tgid",
            "comm",
            "uid",
            "egid",
            "start_time_ns",
            "state",
            "threads",
            "kernel_thread",
        ];
        assert_eq!(
            rows(&table, &columns),
            [
                json!([1, 1, 1, "init", 0, 0, 7_000_000, "S", 1, false]),
                json!([2, 2, 2, "kthreadd", 0, 0, 0, "I", 1, true]),
                json!([9, 1, 9, "\\x1b[0m\\\\\\xff", 1000, 1000, 0, "R", 2, false]),
            ]
        );
        assert_eq!(rows(&table, &["task"])[2], json!([format!("{shell:#x}")]));
        assert!(table.complete);
        let only = self::table(&mut kernel, "pslist", Filter { pid: Some(9) });
        assert_eq!(rows(&only, &["pid"]), [json!([9])]);
    });
}

#[test]
fn what_cannot_be_read_of_a_process_is_null_and_the_view_is_not_complete() {
    both(|mut kernel| {
        let task = kernel.process(&Process { pid: 1, comm: b"init", ..Process::default() });
        kernel.set(task, "task_struct", "real_cred", 0xdead_0000_0000_0000);
        kernel.set(task, "task_struct", "real_parent", 0);
        let table = table(&mut kernel, "pslist", Filter::default());
        assert_eq!(rows(&table, &["pid", "ppid", "uid", "threads"]), [json!([1, null, null, 1])]);
        assert_eq!((table.complete, table.faults.len()), (false, 2));
    });
}

#[test]
fn pidhashtable_lists_threads_and_what_the_task_list_hides() {
    both(|mut kernel| {
        let init = kernel.process(&Process { pid: 1, comm: b"init", ..Process::default() });
        kernel.thread(&Process { pid: 4, comm: b"thread", ..Process::default() }, Some(init));
        kernel.thread(&Process { pid: 7, comm: b"hidden", ..Process::default() }, None);
        let table = table(&mut kernel, "pidhashtable", Filter::default());
        assert_eq!(
            rows(&table, &["pid", "tgid", "number", "comm"]),
            [json!([1, 1, 1, "init"]), json!([4, 1, 4, "thread"]), json!([7, 7, 7, "hidden"]),]
        );
        let listed = self::table(&mut kernel, "pslist", Filter::default());
        assert_eq!(rows(&listed, &["pid"]), [json!([1])]);
    });
}

#[test]
fn psaux_shows_arguments_titles_and_the_names_of_kernel_threads() {
    both(|mut kernel| {
        let stack = 0x7fff_0000_0000;
        let with_arguments = |kernel: &mut Kernel, text: &[u8], arg_len: u64, env_len: u64| {
            let mm = kernel.mm(&[], &[(stack, text)]);
            kernel.set(mm, "mm_struct", "arg_start", stack);
            kernel.set(mm, "mm_struct", "arg_end", stack + arg_len);
            kernel.set(mm, "mm_struct", "env_start", stack + arg_len);
            kernel.set(mm, "mm_struct", "env_end", stack + arg_len + env_len);
            mm
        };
        let shell = with_arguments(&mut kernel, b"sh\0-c\0a b\0\0HOME=/\0", 11, 7);
        let title = with_arguments(&mut kernel, b"nginx: worker process\0=/\0", 10, 15);
        let swapped = with_arguments(&mut kernel, b"gone\0", 5, 9);
        kernel.set(swapped, "mm_struct", "arg_start", stack + 0x1000);
        kernel.set(swapped, "mm_struct", "arg_end", stack + 0x1005);
        let empty = with_arguments(&mut kernel, b"", 0, 4);
        let process =
            |kernel: &mut Kernel, pid, mm| kernel.process(&Process { pid, mm, ..Process::default() });
        process(&mut kernel, 1, shell);
        process(&mut kernel, 2, title);
        process(&mut kernel, 3, swapped);
        process(&mut kernel, 4, empty);
        let thread = |kernel: &mut Kernel, pid, comm: &'static [u8], full: Option<&[u8]>, worker| {
            let flags = KERNEL_THREAD | if worker == 0 { 0 } else { WORKER };
            let task = kernel.process(&Process { pid, comm, flags, ..Process::default() });
            kernel.kthread(task, full, worker);
        };
        thread(&mut kernel, 5, b"kthreadd", None, 0);
        thread(&mut kernel, 6, b"rcu_exp_par_gp_", Some(b"rcu_exp_par_gp_kthread_worker/0"), 0);
        let (idle, busy) = (kernel.worker(b"events", false, true), kernel.worker(b"events", true, true));
        let (fresh, rescuer) = (kernel.worker(b"", false, true), kernel.worker(b"netns", false, false));
        thread(&mut kernel, 7, b"kworker/0:1", None, idle);
        thread(&mut kernel, 8, b"kworker/1:0", None, busy);
        thread(&mut kernel, 9, b"kworker/2:0", None, fresh);
        thread(&mut kernel, 10, b"kworker/R-slub_", Some(b"kworker/R-slub_flushwq"), rescuer);
        let table = table(&mut kernel, "psaux", Filter::default());
        let expected = [
            json!("sh -c a b "),
            json!("nginx: worker process"),
            Value::Null,
            json!("[task]"),
            json!("[kthreadd]"),
            json!("[rcu_exp_par_gp_kthread_worker/0]"),
            json!("[kworker/0:1-events]"),
            json!("[kworker/1:0+events]"),
            json!("[kworker/2:0]"),
            json!("[kworker/R-slub_flushwq]"),
        ];
        let shown: Vec<Value> = rows(&table, &["args"]).into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(shown, expected);
        assert_eq!((table.complete, table.faults.len()), (false, 1), "the swapped one");
    });
}

#[test]
fn maps_names_ranges_as_proc_does() {
    both(|mut kernel| {
        let (root_mount, root) = kernel.mount(None);
        let usr = kernel.dentry(b"usr", Some(root));
        let (usr_mount, usr_root) = kernel.mount(Some((root_mount, usr)));
        let sh = kernel.dentry(b"sh", Some(usr_root));
        let sh = kernel.file(usr_mount, sh);
        let gone = kernel.dentry(b"gone\n", Some(root));
        kernel.set(gone, "dentry", "d_hash.pprev", 0);
        let gone = kernel.file(root_mount, gone);
        let memfd = kernel.dentry(b"memfd:x", None);
        kernel.make_up_name(memfd, "simple_dname");
        let memfd = kernel.file(usr_mount, memfd);
        let socket = kernel.dentry(b"", None);
        kernel.make_up_name(socket, "sockfs_dname");
        let inode = kernel.read_u64(socket + kernel.types.member("dentry", "d_inode").0);
        kernel.set(inode, "inode", "i_ino", 4711);
        let socket = kernel.file(usr_mount, socket);
        let vdso_ops = kernel.vm_ops("special_mapping_name");
        let mapping = kernel.allocate(32);
        let vdso = kernel.string(b"[vdso]");
        kernel.set(mapping, "vm_special_mapping", "name", vdso);
        let label = kernel.allocate(64);
        kernel.write(label + 4, b"arena\0");
        let range = |start: u64, flags| Range { start, end: start + 0x1000, flags, ..Range::default() };
        let ranges = [
            Range { file: sh, page_offset: 3, ..range(0x1000, READ_EXEC) },
            Range { file: gone, ..range(0x2000, READ_WRITE) },
            Range { file: memfd, ..range(0x3000, SHARED) },
            Range { file: socket, ..range(0x4000, SHARED) },
            range(0x5000, READ_WRITE),
            range(0x6000, READ_WRITE),
            Range { anon_name: label, ..range(0x7000, 0) },
            Range { ops: vdso_ops, private_data: mapping, ..range(0x8000, READ_EXEC) },
        ];
        let mm = kernel.mm(&ranges, &[]);
        kernel.set(mm, "mm_struct", "start_brk", 0x5100);
        kernel.set(mm, "mm_struct", "brk", 0x5800);
        kernel.set(mm, "mm_struct", "start_stack", 0x6800);
        kernel.process(&Process { pid: 1, mm, ..Process::default() });
        let mode = kernel.reserve("vsyscall_mode", 'd', 4);
        let gate_ops = kernel.vm_ops("gate_vma_name");
        let gate = kernel.reserve("gate_vma", 'd', 192);
        kernel.set(gate, "vm_area_struct", "vm_start", 0xffff_ffff_ff60_0000);
        kernel.set(gate, "vm_area_struct", "vm_end", 0xffff_ffff_ff60_1000);
        kernel.set(gate, "vm_area_struct", "vm_flags", 0x4);
        kernel.set(gate, "vm_area_struct", "vm_ops", gate_ops);
        kernel.write(mode, &1u32.to_le_bytes());
        let table = table(&mut kernel, "maps", Filter::default());
        assert_eq!(
            rows(&table, &["start", "flags", "offset", "dev", "path"]),
            [
                json!(["0x1000", "r-xp", 0x3000, "08:01", "/usr/sh"]),
                json!(["0x2000", "rw-p", 0, "08:01", "/gone\\x0a (deleted)"]),
                json!(["0x3000", "rw-s", 0, "08:01", "/memfd:x (deleted)"]),
                json!(["0x4000", "rw-s", 0, "08:01", "socket:[4711]"]),
                json!(["0x5000", "rw-p", 0, "00:00", "[heap]"]),
                json!(["0x6000", "rw-p", 0, "00:00", "[stack]"]),
                json!(["0x7000", "---p", 0, "00:00", "[anon:arena]"]),
                json!(["0x8000", "r-xp", 0, "00:00", "[vdso]"]),
                json!(["0xffffffffff600000", "--xp", 0, "00:00", "[vsyscall]"]),
            ]
        );
        assert!(table.complete, "{:?}", table.faults);
        kernel.write(mode, &2u32.to_le_bytes());
        assert_eq!(self::table(&mut kernel, "maps", Filter::default()).rows.len(), 8, "vsyscall=none");
    });
}

#[test]
fn a_backing_file_shows_the_path_that_was_opened() {
    let mut kernel = Kernel::new(Config::default());
    let (mount, root) = kernel.mount(None);
    let lower = kernel.dentry(b"lower", Some(root));
    let upper = kernel.dentry(b"upper", Some(root));
    let inode = kernel.read_u64(upper + kernel.types.member("dentry", "d_inode").0);
    kernel.set(inode, "inode", "i_ino", 77);
    let file = kernel.file(mount, lower);
    kernel.set(file, "file", "f_mode", 1 << 24);
    let vfsmount = mount + kernel.types.member("mount", "mnt").0;
    kernel.set(file, "backing_file", "user_path.mnt", vfsmount);
    kernel.set(file, "backing_file", "user_path.dentry", upper);
    let mm = kernel.mm(&[Range { start: 0x1000, end: 0x2000, file, ..Range::default() }], &[]);
    kernel.process(&Process { pid: 1, mm, ..Process::default() });
    let table = table(&mut kernel, "maps", Filter::default());
    assert_eq!(rows(&table, &["path", "inode"]), [json!(["/upper", 77])]);
}

#[test]
fn a_path_that_climbs_in_a_circle_is_a_fault() {
    both(|mut kernel| {
        let (mount, root) = kernel.mount(None);
        let a = kernel.dentry(b"a", Some(root));
        let b = kernel.dentry(b"b", Some(a));
        kernel.set(a, "dentry", "d_parent", b);
        let file = kernel.file(mount, b);
        let mm = kernel.mm(&[Range { start: 0x1000, end: 0x2000, file, ..Range::default() }], &[]);
        kernel.process(&Process { pid: 1, mm, ..Process::default() });
        let table = table(&mut kernel, "maps", Filter::default());
        assert_eq!(rows(&table, &["start", "path"]), [json!(["0x1000", null])]);
        assert!(!table.complete);
    });
}

#[test]
fn lsmod_and_kallsyms_show_modules() {
    both(|mut kernel| {
        let area = kernel.reserve("module_area", 'd', 4096);
        let bridge = kernel.module(b"bridge", 0, area, [8192, 512]);
        let stp_area = kernel.reserve("stp_area", 'd', 4096);
        let stp = kernel.module(b"stp", 1, stp_area, [4096, 0]);
        kernel.set(stp, "module", "refcnt", 2);
        kernel.module_use(stp, bridge);
        let unformed = kernel.reserve("unformed_area", 'd', 4096);
        kernel.module(b"unformed", 3, unformed, [4096, 0]);
        let modules = table(&mut kernel, "lsmod", Filter::default());
        assert_eq!(
            rows(&modules, &["name", "size", "refs", "used_by", "state", "address"]),
            [
                json!(["bridge", 8704, 0, [], "Live", format!("{area:#x}")]),
                json!(["stp", 4096, 1, ["bridge"], "Loading", format!("{stp_area:#x}")]),
            ]
        );
        let symbols = table(&mut kernel, "kallsyms", Filter::default());
        let all = rows(&symbols, &["address", "type", "name", "module"]);
        let of_modules: Vec<_> = all.iter().filter(|row| !row[3].is_null()).cloned().collect();
        assert_eq!(
            of_modules,
            [
                json!([format!("{:#x}", area + 0x10), "t", "private", "bridge"]),
                json!([format!("{:#x}", area + 0x20), "T", "shared", "bridge"]),
                json!([format!("{:#x}", stp_area + 0x10), "t", "private", "stp"]),
                json!([format!("{:#x}", stp_area + 0x20), "T", "shared", "stp"]),
            ]
        );
        let init_task = kernel.symbol("init_task");
        assert!(all.contains(&json!([format!("{init_task:#x}"), "D", "init_task", null])));
        assert!(symbols.complete && modules.complete);
    });
}

#[test]
fn a_module_that_claims_countless_symbols_is_a_fault() {
    both(|mut kernel| {
        let area = kernel.reserve("module_area", 'd', 4096);
        let module = kernel.module(b"bridge", 0, area, [4096, 0]);
        let kallsyms = kernel.read_u64(module + kernel.types.member("module", "kallsyms").0);
        kernel.set(kallsyms, "mod_kallsyms", "num_symtab", u32::MAX.into());
        kernel.set(module, "module", "num_syms", u32::MAX.into());
        let table = table(&mut kernel, "kallsyms", Filter::default());
        assert_eq!((table.complete, table.faults.len()), (false, 2));
    });
}
