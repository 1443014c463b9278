//! Types of global variables, which neither kallsyms nor BTF tells. Each row corresponds to a declaration in the
//! kernel; Volatility's Linux plugins ask for most of them, analysts in `volshell` for the rest.
//!
//! A type is `NAME` of a structure, union, typedef, enumeration or integer; `*T`, a pointer to `T`; `[N]T`, an array;
//! `[]T`, an array that reaches to the next symbol; `NAME.MEMBER`, `NAME` if it has this member. Of several rows for one
//! symbol the first counts whose type the kernel has.

use crate::symbols::btf::Kind;

use super::names::TypeNames;
use super::types::Shape;

/// Symbols and their types.
const GLOBALS: &[(&str, &str)] = &[
    // Processes and their surroundings.
    ("init_task", "task_struct"),
    ("init_mm", "mm_struct"),
    ("init_files", "files_struct"),
    ("init_fs", "fs_struct"),
    ("init_cred", "cred"),
    ("init_nsproxy", "nsproxy"),
    ("init_pid_ns", "pid_namespace"),
    ("init_user_ns", "user_namespace"),
    ("init_uts_ns", "uts_namespace"),
    ("init_net", "net"),
    ("cap_last_cap", "int"),
    ("saved_command_line", "*char"),
    ("linux_banner", "[]char"),
    ("nr_cpu_ids", "unsigned int"),
    ("__per_cpu_offset", "[]long unsigned int"),
    // Memory.
    ("phys_base", "long unsigned int"),
    ("page_offset_base", "long unsigned int"),
    ("vmalloc_base", "long unsigned int"),
    ("vmemmap_base", "long unsigned int"),
    ("max_pfn", "long unsigned int"),
    ("mem_map", "*page"),
    ("mem_section", "**mem_section"),
    ("node_data", "[]*pglist_data"),
    ("iomem_resource", "resource"),
    ("ioport_resource", "resource"),
    // Time. Since 6.17 `tk_core` is a macro for the first of `timekeeper_data`.
    ("tk_core", "tk_data"),
    ("timekeeper_data", "[]tk_data"),
    ("timekeeper", "timekeeper"),
    ("jiffies_64", "long long unsigned int"),
    // Modules, tracing, BPF.
    ("modules", "list_head"),
    ("mod_tree", "mod_tree_root"),
    ("module_addr_min", "long unsigned int"),
    ("module_addr_max", "long unsigned int"),
    ("module_kset", "*kset"),
    // Of an empty array Volatility takes its own list: it reads a member that 7.x no longer has.
    ("taint_flags", "[]taint_flag.module"),
    ("taint_flags", "[0]taint_flag"),
    ("ftrace_ops_list", "*ftrace_ops"),
    ("ftrace_list_end", "ftrace_ops"),
    ("ftrace_mod_maps", "list_head"),
    ("ftrace_ops_trampoline_list", "list_head"),
    ("__start___tracepoints_ptrs", "[]int"),
    ("bpf_kallsyms", "list_head"),
    ("prog_idr", "idr"),
    ("map_idr", "idr"),
    // Entry points.
    ("sys_call_table", "[]*void"),
    ("ia32_sys_call_table", "[]*void"),
    ("x32_sys_call_table", "[]*void"),
    ("idt_table", "[256]gate_struct"),
    ("idt_table", "[256]gate_struct64"),
    // The log.
    ("prb", "*printk_ringbuffer"),
    ("log_buf", "*char"),
    ("log_buf_len", "unsigned int"),
    ("log_first_idx", "unsigned int"),
    ("log_next_idx", "unsigned int"),
    // Files and devices.
    ("super_blocks", "list_head"),
    ("file_systems", "*file_system_type"),
    ("tty_drivers", "list_head"),
    ("keyboard_notifier_list", "atomic_notifier_head"),
    ("num_registered_fb", "int"),
    ("registered_fb", "[32]*fb_info"),
    // Network.
    ("net_namespace_list", "list_head"),
    ("socket_file_ops", "file_operations"),
    ("sockfs_dentry_operations", "dentry_operations"),
    ("tcp4_seq_afinfo", "tcp_seq_afinfo"),
    ("tcp6_seq_afinfo", "tcp_seq_afinfo"),
    ("udp4_seq_afinfo", "udp_seq_afinfo"),
    ("udp6_seq_afinfo", "udp_seq_afinfo"),
    ("udplite4_seq_afinfo", "udp_seq_afinfo"),
    ("udplite6_seq_afinfo", "udp_seq_afinfo"),
    ("arp_seq_ops", "seq_operations"),
    ("packet_seq_ops", "seq_operations"),
    ("raw_seq_ops", "seq_operations"),
    ("raw6_seq_ops", "seq_operations"),
    ("tcp_seq_ops", "seq_operations"),
    ("tcp4_seq_ops", "seq_operations"),
    ("tcp6_seq_ops", "seq_operations"),
    ("udp_seq_ops", "seq_operations"),
    ("udp6_seq_ops", "seq_operations"),
    ("unix_seq_ops", "seq_operations"),
    // kallsyms itself.
    ("kallsyms_num_syms", "unsigned int"),
    ("kallsyms_relative_base", "long unsigned int"),
];

/// Symbols that plugins look for and newer kernels call otherwise: what is missing, and what it is now.
pub(super) const RENAMED: &[(&str, &str)] = &[("tk_core", "timekeeper_data")];

/// The type of a global variable, by convention. `bytes` is the distance to the next symbol.
pub(super) fn shape<'a>(names: &TypeNames<'a>, symbol: &str, bytes: u64) -> Option<Shape<'a>> {
    let stated = GLOBALS.iter().filter(|row| row.0 == symbol).find_map(|row| parse(names, row.1, bytes));
    match stated {
        Some((shape, _)) => Some(shape),
        None if symbol == TkCore::NAME => {
            TkCore::of(names).map(|_| Shape::Struct { name: TkCore::NAME.into() })
        }
        None => None,
    }
}

/// A type as a row states it, and its size in bytes.
fn parse<'a>(names: &TypeNames<'a>, ty: &str, bytes: u64) -> Option<(Shape<'a>, u64)> {
    if let Some(target) = ty.strip_prefix('*') {
        let subtype = if target == "void" { Shape::VOID } else { parse(names, target, 0)?.0 };
        return Some((Shape::Pointer { subtype: Box::new(subtype) }, 8));
    }
    if let Some((count, element)) = ty.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let (subtype, size) = parse(names, element, 0)?;
        let count = if count.is_empty() { bytes.checked_div(size)? } else { count.parse().ok()? };
        return Some((Shape::Array { count, subtype: Box::new(subtype) }, size.checked_mul(count)?));
    }
    let btf = names.btf;
    if let Some((structure, member)) = ty.split_once('.') {
        btf.member(structure, member)?;
        return parse(names, structure, bytes);
    }
    let id = match btf.struct_named(ty) {
        Some(id) => id,
        None => btf.named(ty).find(|ty| !matches!(ty.kind, Kind::Forward { .. }))?.id,
    };
    Some((Shape::of(names, id), btf.type_size(id)?))
}

/// The type of `tk_core` (`kernel/time/timekeeping.c`) before it became `struct tk_data` in 6.13: a structure without a
/// name, and so without BTF, that begins with a sequence counter and the timekeeper.
pub(super) struct TkCore<'a> {
    /// Offset of the timekeeper, in bytes.
    pub(super) offset: u64,
    /// Bytes up to the end of the timekeeper.
    pub(super) size: u64,
    /// The type of the timekeeper.
    pub(super) timekeeper: Shape<'a>,
}

impl<'a> TkCore<'a> {
    /// Name of the variable; the file gives it to the type.
    pub(super) const NAME: &'static str = "tk_core";

    /// The layout that the compiler gives it. `None` where the kernel has a named type for it.
    pub(super) fn of(names: &TypeNames<'a>) -> Option<Self> {
        let btf = names.btf;
        if btf.struct_named("tk_data").is_some() {
            return None;
        }
        let timekeeper = btf.struct_named("timekeeper")?;
        let counter = btf.size_of("seqcount_raw_spinlock_t").or_else(|| btf.size_of("seqcount_t"))?;
        let offset = counter.checked_next_multiple_of(8)?;
        let size = offset.checked_add(btf.type_size(timekeeper)?)?;
        Some(Self { offset, size, timekeeper: Shape::of(names, timekeeper) })
    }
}
