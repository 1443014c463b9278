//! Tasks, address spaces, files and modules in a made-up kernel.

use varve_fixtures::synth::page_table::Size;

use super::{Kernel, page_of};

/// `PF_KTHREAD`.
pub(crate) const KERNEL_THREAD: u32 = 0x20_0000;
/// `PF_WQ_WORKER`.
pub(crate) const WORKER: u32 = 0x20;

/// A task to make.
pub(crate) struct Process<'a> {
    pub(crate) pid: u32,
    pub(crate) comm: &'a [u8],
    pub(crate) flags: u32,
    pub(crate) uid: u32,
    pub(crate) start_ns: u64,
    pub(crate) state: u64,
    pub(crate) parent: u64,
    pub(crate) mm: u64,
}

impl Default for Process<'_> {
    fn default() -> Self {
        Self { pid: 0, comm: b"task", flags: 0, uid: 0, start_ns: 0, state: 1, parent: 0, mm: 0 }
    }
}

/// A range of memory to make.
#[derive(Clone, Copy, Default)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) flags: u64,
    pub(crate) page_offset: u64,
    pub(crate) file: u64,
    pub(crate) ops: u64,
    pub(crate) private_data: u64,
    pub(crate) anon_name: u64,
}

impl Kernel {
    pub(super) fn init_objects(&mut self) {
        let init_task = self.reserve("init_task", 'D', self.types.size("task_struct"));
        self.fill_task(init_task, &Process { comm: b"swapper/0", ..Process::default() }, init_task);
        let tasks = init_task + self.types.member("task_struct", "tasks").0;
        self.list_init(tasks);
        let modules = self.reserve("modules", 'd', 16);
        self.list_init(modules);
        let namespace = self.reserve("init_pid_ns", 'D', self.types.size("pid_namespace"));
        let (top, bottom) = (self.xa_node(6), self.xa_node(0));
        self.write(top + self.types.member("xa_node", "slots").0, &(bottom | 2).to_le_bytes());
        self.set(namespace, "pid_namespace", "idr.idr_rt.xa_head", top | 2);
    }

    fn xa_node(&mut self, shift: u64) -> u64 {
        let node = self.allocate(self.types.size("xa_node"));
        self.set(node, "xa_node", "shift", shift);
        node
    }

    /// A process in the task list and under its number, which must be below 64.
    pub(crate) fn process(&mut self, process: &Process<'_>) -> u64 {
        let task = self.thread(process, None);
        let init_task = self.symbol("init_task");
        let link = self.types.member("task_struct", "tasks").0;
        self.list_add_tail(init_task + link, task + link);
        task
    }

    /// A thread of `leader`, or the leader of a new group.
    pub(crate) fn thread(&mut self, thread: &Process<'_>, leader: Option<u64>) -> u64 {
        let task = self.allocate(self.types.size("task_struct"));
        self.fill_task(task, thread, leader.unwrap_or(task));
        let (pid, number) = (self.allocate(self.types.size("pid")), u64::from(thread.pid));
        let slots = self.types.member("xa_node", "slots").0;
        let namespace = self.symbol("init_pid_ns");
        let top = self.read_u64(namespace + self.types.member("pid_namespace", "idr.idr_rt.xa_head").0) - 2;
        let bottom = self.read_u64(top + slots) - 2;
        self.write(bottom + slots + number * 8, &pid.to_le_bytes());
        let node = task + self.types.member("task_struct", "pid_links").0;
        self.write(pid + self.types.member("pid", "tasks").0, &node.to_le_bytes());
        task
    }

    fn fill_task(&mut self, task: u64, process: &Process<'_>, leader: u64) {
        let number = |bytes: &[u8]| u64::from(u32::from_le_bytes(bytes.try_into().unwrap()));
        let tgid =
            if leader == task { process.pid.into() } else { number(&self.read_member(leader, "tgid")) };
        let cred = self.allocate(self.types.size("cred"));
        for member in ["uid", "gid", "euid", "egid"] {
            self.set(cred, "cred", member, process.uid.into());
        }
        self.set(task, "task_struct", "pid", process.pid.into());
        self.set(task, "task_struct", "tgid", tgid);
        self.set_text(task, "task_struct", "comm", process.comm);
        self.set(task, "task_struct", "flags", process.flags.into());
        self.set_either(task, "task_struct", ["__state", "state"], process.state);
        self.set_either(task, "task_struct", ["start_boottime", "real_start_time"], process.start_ns);
        self.set(task, "task_struct", "real_cred", cred);
        let parent = if process.parent == 0 { task } else { process.parent };
        self.set(task, "task_struct", "real_parent", parent);
        self.set(task, "task_struct", "mm", process.mm);
        let node = task + self.types.member("task_struct", "thread_node").0;
        let signal = if leader == task {
            let signal = self.allocate(self.types.size("signal_struct"));
            let head = signal + self.types.member("signal_struct", "thread_head").0;
            self.list_init(head);
            signal
        } else {
            self.read_u64(leader + self.types.member("task_struct", "signal").0)
        };
        self.set(task, "task_struct", "signal", signal);
        let threads = self.types.member("signal_struct", "nr_threads").0;
        let count = self.read_u64(signal + threads) as u32 + 1;
        self.write(signal + threads, &count.to_le_bytes());
        self.list_add_tail(signal + self.types.member("signal_struct", "thread_head").0, node);
    }

    fn read_member(&self, task: u64, member: &str) -> Vec<u8> {
        let (offset, size) = self.types.member("task_struct", member);
        let gpa = self.gpa(task + offset) as usize;
        self.memory.bytes[gpa..gpa + size as usize].to_vec()
    }

    /// What a kernel thread was started with, and its long name.
    pub(crate) fn kthread(&mut self, task: u64, full_name: Option<&[u8]>, data: u64) {
        let kthread = self.allocate(self.types.size("kthread"));
        let name = full_name.map_or(0, |name| self.string(name));
        self.set(kthread, "kthread", "full_name", name);
        self.set(kthread, "kthread", "data", data);
        self.set_either(task, "task_struct", ["worker_private", "set_child_tid"], kthread);
    }

    /// A worker of a queue.
    pub(crate) fn worker(&mut self, queue: &[u8], working: bool, attached: bool) -> u64 {
        let worker = self.allocate(self.types.size("worker"));
        self.set_text(worker, "worker", "desc", queue);
        self.set(worker, "worker", "current_work", if working { worker } else { 0 });
        self.set(worker, "worker", "pool", if attached { worker } else { 0 });
        worker
    }

    /// An address space with these ranges, whose pages in `present` (virtual address and content) are in memory.
    /// Returns the `mm_struct`; set its other members afterwards.
    pub(crate) fn mm(&mut self, ranges: &[Range], present: &[(u64, &[u8])]) -> u64 {
        let mm = self.allocate(self.types.size("mm_struct"));
        let pages: Vec<(u64, u64)> = present
            .iter()
            .map(|(at, content)| {
                let page = self.allocate(4096);
                self.write(page + at % 4096, content);
                (page_of(*at), self.gpa(page))
            })
            .collect();
        // The writer numbers tables from the root on: no page that is mapped may follow it.
        let root = self.allocate(4096);
        let mut tables = self.tables(self.gpa(root));
        for (at, gpa) in pages {
            tables.map(at, gpa, Size::Small);
        }
        self.write_tables(&tables);
        self.set(mm, "mm_struct", "pgd", root);
        let vmas: Vec<u64> = ranges.iter().map(|range| self.vma(mm, range)).collect();
        if self.types.has("mm_struct", "mmap") {
            self.set(mm, "mm_struct", "mmap", vmas.first().copied().unwrap_or(0));
            for pair in vmas.windows(2) {
                self.set(pair[0], "vm_area_struct", "vm_next", pair[1]);
            }
        } else {
            let root = self.maple_leaf(ranges, &vmas);
            self.set(mm, "mm_struct", "mm_mt.ma_root", root);
        }
        mm
    }

    /// A tree of one leaf: a slot for each range and for each hole between them.
    fn maple_leaf(&mut self, ranges: &[Range], vmas: &[u64]) -> u64 {
        let node = self.allocate(256);
        let pivots = node + self.types.member("maple_range_64", "pivot").0;
        let slots = node + self.types.member("maple_range_64", "slot").0;
        let (mut slot, mut next) = (0, 0);
        for (range, vma) in ranges.iter().zip(vmas) {
            if range.start > next {
                self.write(pivots + slot * 8, &(range.start - 1).to_le_bytes());
                slot += 1;
            }
            self.write(pivots + slot * 8, &(range.end - 1).to_le_bytes());
            self.write(slots + slot * 8, &vma.to_le_bytes());
            slot += 1;
            next = range.end;
        }
        assert!(slot < 15, "one leaf is enough");
        self.write(pivots + slot * 8, &u64::MAX.to_le_bytes());
        node | 1 << 3 | 2
    }

    fn vma(&mut self, mm: u64, range: &Range) -> u64 {
        let vma = self.allocate(self.types.size("vm_area_struct"));
        let mut set = |member, value| self.set(vma, "vm_area_struct", member, value);
        set("vm_start", range.start);
        set("vm_end", range.end);
        set("vm_mm", mm);
        set("vm_flags", range.flags);
        set("vm_pgoff", range.page_offset);
        set("vm_file", range.file);
        set("vm_ops", range.ops);
        set("vm_private_data", range.private_data);
        set("anon_name", range.anon_name);
        vma
    }

    /// Operations that name a range by this function of the kernel.
    pub(crate) fn vm_ops(&mut self, function: &str) -> u64 {
        let ops = self.allocate(self.types.size("vm_operations_struct"));
        let function = self.symbol(function);
        self.set(ops, "vm_operations_struct", "name", function);
        ops
    }

    /// A mounted file system: its `struct mount` and root directory. `on`: the mount and directory it is mounted on.
    pub(crate) fn mount(&mut self, on: Option<(u64, u64)>) -> (u64, u64) {
        let mount = self.allocate(self.types.size("mount"));
        let root = self.dentry(b"/", None);
        let (parent, point) = on.unwrap_or((mount, root));
        self.set(mount, "mount", "mnt.mnt_root", root);
        self.set(mount, "mount", "mnt_parent", parent);
        self.set(mount, "mount", "mnt_mountpoint", point);
        (mount, root)
    }

    /// A name in a directory, in the hash table.
    pub(crate) fn dentry(&mut self, name: &[u8], parent: Option<u64>) -> u64 {
        let dentry = self.allocate(self.types.size("dentry"));
        let text = self.string(name);
        self.set(dentry, "dentry", "d_parent", parent.unwrap_or(dentry));
        self.set(dentry, "dentry", "d_name.name", text);
        self.set(dentry, "dentry", "d_name.len", name.len() as u64);
        self.set(dentry, "dentry", "d_hash.pprev", dentry);
        let inode = self.allocate(self.types.size("inode"));
        let super_block = self.allocate(self.types.size("super_block"));
        self.set(super_block, "super_block", "s_dev", 8 << 20 | 1);
        self.set(inode, "inode", "i_sb", super_block);
        self.set(inode, "inode", "i_ino", dentry % 10_000);
        self.set(dentry, "dentry", "d_inode", inode);
        dentry
    }

    /// Lets a function of the kernel make the name of a dentry up.
    pub(crate) fn make_up_name(&mut self, dentry: u64, function: &str) {
        let ops = self.allocate(self.types.size("dentry_operations"));
        let function = self.symbol(function);
        self.set(ops, "dentry_operations", "d_dname", function);
        self.set(dentry, "dentry", "d_op", ops);
    }

    /// An open file.
    pub(crate) fn file(&mut self, mount: u64, dentry: u64) -> u64 {
        let file = self.allocate(160);
        self.set(file, "file", "f_path.mnt", mount + self.types.member("mount", "mnt").0);
        self.set(file, "file", "f_path.dentry", dentry);
        let inode = self.read_u64(dentry + self.types.member("dentry", "d_inode").0);
        self.set(file, "file", "f_inode", inode);
        file
    }

    /// A module in the list, with one symbol that is exported and one that is not.
    pub(crate) fn module(&mut self, name: &[u8], state: u64, base: u64, sizes: [u64; 2]) -> u64 {
        let module = self.allocate(self.types.size("module"));
        self.set(module, "module", "state", state);
        self.set_text(module, "module", "name", name);
        self.set(module, "module", "refcnt", 1);
        let memory = self.types.has("module", "mem");
        for (part, size) in sizes.into_iter().enumerate() {
            let at = base + part as u64 * 0x10_0000;
            if memory {
                let region = module + self.types.member("module", "mem").0 + part as u64 * 32;
                self.set(region, "module_memory", "base", at);
                self.set(region, "module_memory", "size", size);
            } else {
                let layout = ["core_layout", "init_layout"][part];
                self.set(module, "module", &format!("{layout}.base"), at);
                self.set(module, "module", &format!("{layout}.size"), size);
            }
        }
        let users = module + self.types.member("module", "source_list").0;
        self.list_init(users);
        self.module_symbols(module, base);
        let list = self.types.member("module", "list").0;
        let head = self.symbol("modules");
        self.list_add_tail(head, module + list);
        module
    }

    fn module_symbols(&mut self, module: u64, base: u64) {
        let kallsyms = self.allocate(self.types.size("mod_kallsyms"));
        let names = self.string(b"\0private\0shared");
        let kinds = self.string(b"ntt");
        let entry = |name: u32, value: u64| {
            [&name.to_le_bytes()[..], &[0; 4], &value.to_le_bytes(), &[0; 8]].concat()
        };
        let table = [entry(0, 0), entry(1, base + 0x10), entry(9, base + 0x20)].concat();
        let table_at = self.allocate(table.len() as u64);
        self.write(table_at, &table);
        self.set(kallsyms, "mod_kallsyms", "symtab", table_at);
        self.set(kallsyms, "mod_kallsyms", "num_symtab", 3);
        self.set(kallsyms, "mod_kallsyms", "strtab", names);
        self.set(kallsyms, "mod_kallsyms", "typetab", kinds);
        self.set(module, "module", "kallsyms", kallsyms);
        // Distances of 32 bits only reach within an area: exports lie beside what they export.
        let exports = base + 0x40;
        let distance = |from: u64, to: u64| (to.wrapping_sub(from) as u32).to_le_bytes();
        self.write(base + 0x60, b"shared\0");
        self.write(exports, &distance(exports, base + 0x20));
        self.write(exports + 4, &distance(exports + 4, base + 0x60));
        self.set(module, "module", "syms", exports);
        self.set(module, "module", "num_syms", 1);
    }

    /// Records that `user` uses `module`.
    pub(crate) fn module_use(&mut self, module: u64, user: u64) {
        let link = self.allocate(self.types.size("module_use"));
        self.set(link, "module_use", "source", user);
        let head = module + self.types.member("module", "source_list").0;
        self.list_add_tail(head, link);
    }
}
