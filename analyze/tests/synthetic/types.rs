//! The structures of a made-up kernel: names, sizes, offsets. Both the kernel's BTF and the objects in its memory are
//! written from this table, and by no code that the crate under test has.

use varve_fixtures::synth::btf::{BtfWriter, Member};

/// What a member is.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Unsigned, of 1, 4 or 8 bytes.
    Int(u32),
    Pointer,
    /// Characters; none for a flexible array.
    Bytes(u32),
    /// A structure of the table.
    Struct(&'static str),
    /// Of so many elements.
    Array(&'static Kind, u32),
}

/// A structure: name, size in bytes, members with their offsets.
pub(crate) type Structure = (&'static str, u32, &'static [(&'static str, u32, Kind)]);

use Kind::{Array, Bytes, Int, Pointer, Struct};

const LIST: Kind = Struct("list_head");
const INT: Kind = Int(4);
const LONG: Kind = Int(8);

/// As in kernels since 6.4: `__state`, `start_boottime`, maple tree, `mem[]`.
pub(crate) const RECENT: &[Structure] = &[
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
        ],
    ),
    ("mm_struct", 256, &[("", 0, Struct("mm_fields"))]),
    (
        "mm_fields",
        256,
        &[
            ("pgd", 8, Pointer),
            ("mm_mt", 16, Struct("maple_tree")),
            ("start_brk", 40, LONG),
            ("brk", 48, LONG),
            ("start_stack", 56, LONG),
            ("arg_start", 64, LONG),
            ("arg_end", 72, LONG),
            ("env_start", 80, LONG),
            ("env_end", 88, LONG),
        ],
    ),
    ("maple_tree", 16, &[("ma_flags", 0, INT), ("ma_root", 8, Pointer)]),
    (
        "maple_range_64",
        256,
        &[("parent", 0, Pointer), ("pivot", 8, Array(&LONG, 15)), ("slot", 128, Array(&Pointer, 16))],
    ),
    (
        "maple_arange_64",
        256,
        &[("parent", 0, Pointer), ("pivot", 8, Array(&LONG, 9)), ("slot", 80, Array(&Pointer, 10))],
    ),
    (
        "vm_area_struct",
        192,
        &[
            ("vm_start", 0, LONG),
            ("vm_end", 8, LONG),
            ("vm_mm", 16, Pointer),
            ("vm_flags", 32, LONG),
            ("vm_ops", 64, Pointer),
            ("vm_pgoff", 72, LONG),
            ("vm_file", 80, Pointer),
            ("vm_private_data", 88, Pointer),
            ("shared", 96, Array(&LONG, 4)),
            ("anon_name", 128, Pointer),
        ],
    ),
    ("file", 128, &[("f_mode", 4, INT), ("f_inode", 32, Pointer), ("f_path", 64, Struct("path"))]),
    ("backing_file", 160, &[("file", 0, Struct("file")), ("user_path", 128, Struct("path"))]),
    (
        "module",
        512,
        &[
            ("state", 0, INT),
            ("list", 8, LIST),
            ("name", 24, Bytes(56)),
            ("mem", 128, Array(&Struct("module_memory"), 7)),
            ("taints", 352, LONG),
            ("kallsyms", 360, Pointer),
            ("source_list", 368, LIST),
            ("refcnt", 384, Struct("atomic_t")),
            ("syms", 392, Pointer),
            ("num_syms", 400, INT),
        ],
    ),
    ("module_memory", 32, &[("base", 0, Pointer), ("size", 12, INT)]),
];

/// As in kernels to 5.4: `state`, `real_start_time`, list of VMAs, core and init layout.
pub(crate) const OLD: &[Structure] = &[
    (
        "task_struct",
        640,
        &[
            ("state", 0, LONG),
            ("tasks", 200, LIST),
            ("pid", 216, INT),
            ("tgid", 220, INT),
            ("comm", 300, Bytes(16)),
            ("flags", 20, INT),
            ("exit_state", 24, INT),
            ("real_parent", 400, Pointer),
            ("real_cred", 408, Pointer),
            ("real_start_time", 416, LONG),
            ("mm", 424, Pointer),
            ("signal", 432, Pointer),
            ("thread_node", 440, LIST),
            ("pid_links", 456, Array(&LIST, 4)),
            ("set_child_tid", 528, Pointer),
        ],
    ),
    (
        "mm_struct",
        256,
        &[
            ("mmap", 0, Pointer),
            ("pgd", 8, Pointer),
            ("start_brk", 40, LONG),
            ("brk", 48, LONG),
            ("start_stack", 56, LONG),
            ("arg_start", 64, LONG),
            ("arg_end", 72, LONG),
            ("env_start", 80, LONG),
            ("env_end", 88, LONG),
        ],
    ),
    (
        "vm_area_struct",
        192,
        &[
            ("vm_start", 0, LONG),
            ("vm_end", 8, LONG),
            ("vm_next", 16, Pointer),
            ("vm_mm", 24, Pointer),
            ("vm_flags", 32, LONG),
            ("vm_ops", 64, Pointer),
            ("vm_pgoff", 72, LONG),
            ("vm_file", 80, Pointer),
            ("vm_private_data", 88, Pointer),
            // A name shares its place with what only ranges with a file use, as in 6.1.
            ("shared", 96, Array(&LONG, 4)),
            ("anon_name", 96, Pointer),
        ],
    ),
    ("file", 128, &[("f_mode", 4, INT), ("f_inode", 32, Pointer), ("f_path", 64, Struct("path"))]),
    (
        "module",
        512,
        &[
            ("state", 0, INT),
            ("list", 8, LIST),
            ("name", 24, Bytes(56)),
            ("core_layout", 128, Struct("module_layout")),
            ("init_layout", 160, Struct("module_layout")),
            ("taints", 352, LONG),
            ("kallsyms", 360, Pointer),
            ("source_list", 368, LIST),
            ("refcnt", 384, Struct("atomic_t")),
            ("syms", 392, Pointer),
            ("num_syms", 400, INT),
        ],
    ),
    ("module_layout", 32, &[("base", 0, Pointer), ("size", 8, INT)]),
];

/// What does not differ.
const COMMON: &[Structure] = &[
    ("list_head", 16, &[("next", 0, Pointer), ("prev", 8, Pointer)]),
    ("hlist_head", 8, &[("first", 0, Pointer)]),
    ("kuid_t", 4, &[("val", 0, INT)]),
    ("atomic_t", 4, &[("counter", 0, INT)]),
    ("path", 16, &[("mnt", 0, Pointer), ("dentry", 8, Pointer)]),
    ("signal_struct", 64, &[("nr_threads", 8, INT), ("thread_head", 16, LIST)]),
    (
        "cred",
        64,
        &[
            ("uid", 8, Struct("kuid_t")),
            ("gid", 12, Struct("kuid_t")),
            ("euid", 24, Struct("kuid_t")),
            ("egid", 28, Struct("kuid_t")),
        ],
    ),
    ("kthread", 64, &[("data", 16, Pointer), ("full_name", 40, Pointer)]),
    ("worker", 128, &[("current_work", 8, Pointer), ("pool", 16, Pointer), ("desc", 40, Bytes(24))]),
    ("xarray", 16, &[("xa_head", 8, Pointer)]),
    ("idr", 24, &[("idr_rt", 0, Struct("xarray")), ("idr_base", 16, INT)]),
    ("pid_namespace", 64, &[("idr", 8, Struct("idr"))]),
    ("pid", 96, &[("level", 4, INT), ("tasks", 16, Array(&Struct("hlist_head"), 4))]),
    ("xa_node", 560, &[("shift", 0, Int(1)), ("slots", 40, Array(&Pointer, 64))]),
    ("vm_operations_struct", 64, &[("name", 24, Pointer)]),
    ("vm_special_mapping", 32, &[("name", 0, Pointer)]),
    ("anon_vma_name", 8, &[("kref", 0, INT), ("name", 4, Bytes(0))]),
    ("qstr", 16, &[("hash", 0, INT), ("len", 4, INT), ("name", 8, Pointer)]),
    ("hlist_bl_node", 16, &[("next", 0, Pointer), ("pprev", 8, Pointer)]),
    (
        "dentry",
        128,
        &[
            ("d_hash", 8, Struct("hlist_bl_node")),
            ("d_parent", 24, Pointer),
            ("d_name", 32, Struct("qstr")),
            ("d_inode", 48, Pointer),
            ("d_op", 96, Pointer),
        ],
    ),
    ("dentry_operations", 64, &[("d_dname", 48, Pointer)]),
    ("inode", 128, &[("i_sb", 40, Pointer), ("i_ino", 64, LONG)]),
    ("super_block", 64, &[("s_dev", 16, INT)]),
    ("vfsmount", 32, &[("mnt_root", 0, Pointer)]),
    (
        "mount",
        128,
        &[("mnt_parent", 16, Pointer), ("mnt_mountpoint", 24, Pointer), ("mnt", 32, Struct("vfsmount"))],
    ),
    (
        "mod_kallsyms",
        32,
        &[("symtab", 0, Pointer), ("num_symtab", 8, INT), ("strtab", 16, Pointer), ("typetab", 24, Pointer)],
    ),
    ("kernel_symbol", 12, &[("value_offset", 0, INT), ("name_offset", 4, INT), ("namespace_offset", 8, INT)]),
    ("module_use", 64, &[("source_list", 0, LIST), ("target_list", 16, LIST), ("source", 32, Pointer)]),
];

/// The structures of a kernel.
#[derive(Clone)]
pub(crate) struct Types(Vec<Structure>);

impl Types {
    pub(crate) fn new(variant: &[Structure]) -> Self {
        Self(COMMON.iter().chain(variant).copied().collect())
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.retain(|structure| structure.0 != name);
        self
    }

    fn structure(&self, name: &str) -> &Structure {
        self.0.iter().find(|structure| structure.0 == name).unwrap_or_else(|| panic!("struct {name}"))
    }

    pub(crate) fn has(&self, name: &str, member: &str) -> bool {
        self.find(name, member).is_some()
    }

    pub(crate) fn size(&self, name: &str) -> u64 {
        self.structure(name).1.into()
    }

    /// Offset and kind of a member, through unnamed ones.
    fn find(&self, name: &str, member: &str) -> Option<(u64, Kind)> {
        self.structure(name).2.iter().find_map(|(candidate, offset, kind)| match kind {
            Struct(inner) if candidate.is_empty() => {
                self.find(inner, member).map(|(inner, kind)| (u64::from(*offset) + inner, kind))
            }
            _ => (*candidate == member).then_some((u64::from(*offset), *kind)),
        })
    }

    /// Offset and size in bytes of the member at the end of a dotted path.
    pub(crate) fn member(&self, name: &'static str, path: &str) -> (u64, u64) {
        let (mut at, mut of) = (0, Struct(name));
        for part in path.split('.') {
            let Struct(structure) = of else { panic!("{path} goes through what is no structure") };
            let found = self.find(structure, part);
            let (offset, kind) = found.unwrap_or_else(|| panic!("struct {structure} has no {part}"));
            at += offset;
            of = kind;
        }
        (at, self.size_of(of))
    }

    fn size_of(&self, kind: Kind) -> u64 {
        match kind {
            Int(bytes) | Bytes(bytes) => bytes.into(),
            Pointer => 8,
            Struct(name) => self.size(name),
            Array(of, count) => self.size_of(*of) * u64::from(count),
        }
    }

    /// The BTF of the kernel.
    pub(crate) fn btf(&self) -> Vec<u8> {
        let mut writer = BtfWriter::default();
        let ints = [1, 4, 8].map(|size| (size, writer.int(&format!("u{}", size * 8), size, false)));
        let pointer = writer.pointer(0);
        // Structures are numbered in the order of the table; arrays that members need come first.
        let mut arrays = Vec::new();
        for (_, _, members) in &self.0 {
            for (_, _, kind) in *members {
                if matches!(kind, Bytes(_) | Array(..)) {
                    arrays.push(*kind);
                }
            }
        }
        let first_array = pointer + 1;
        let first_struct = first_array + arrays.len() as u32;
        let plain = |kind: Kind| match kind {
            Int(size) => ints.iter().find(|int| int.0 == size).unwrap().1,
            Pointer => pointer,
            Struct(name) => first_struct + self.0.iter().position(|other| other.0 == name).unwrap() as u32,
            Bytes(_) | Array(..) => panic!("array of arrays"),
        };
        for kind in &arrays {
            match kind {
                Bytes(len) => writer.array(ints[0].1, ints[1].1, *len),
                Array(of, len) => writer.array(plain(**of), ints[1].1, *len),
                _ => unreachable!(),
            };
        }
        let mut next_array = first_array;
        for (name, size, members) in &self.0 {
            let members: Vec<Member<'_>> = members
                .iter()
                .map(|(name, offset, kind)| {
                    let id = match kind {
                        Bytes(_) | Array(..) => {
                            next_array += 1;
                            next_array - 1
                        }
                        _ => plain(*kind),
                    };
                    Member::new(name, id, *offset)
                })
                .collect();
            writer.structure(name, *size, &members);
        }
        writer.enumeration("system_states", &[("SYSTEM_BOOTING", 0), ("SYSTEM_RUNNING", 3)]);
        writer.finish()
    }
}
