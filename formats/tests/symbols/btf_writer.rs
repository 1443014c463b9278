//! Writes BTF blobs (`Documentation/bpf/btf.rst`).

/// A blob as it is put together. Types are numbered from 1 in the order they are added.
pub(crate) struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
    /// `info_sz` and `elem_sz` of kinds, for blobs with a layout section.
    layout: Vec<(u8, u8)>,
}

/// A member: name, type, offset in bits, bits of a bit-field.
pub(crate) type Field<'a> = (&'a str, u32, u32, Option<u32>);

impl Writer {
    pub(crate) fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], count: 0, layout: Vec::new() }
    }

    pub(crate) fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        at
    }

    /// Any record: name, kind, flag, number of elements, size or type, and what follows.
    pub(crate) fn record(
        &mut self,
        name: &str,
        kind: u32,
        flag: bool,
        vlen: usize,
        size: u32,
        tail: &[u32],
    ) -> u32 {
        let info = u32::from(flag) << 31 | kind << 24 | vlen as u32;
        let words = [self.string(name), info, size];
        self.types.extend(words.iter().chain(tail).flat_map(|word| word.to_le_bytes()));
        self.count += 1;
        self.count
    }

    pub(crate) fn int(&mut self, name: &str, size: u32, signed: bool) -> u32 {
        self.record(name, 1, false, 0, size, &[u32::from(signed) << 24 | (size * 8)])
    }

    pub(crate) fn pointer(&mut self, to: u32) -> u32 {
        self.record("", 2, false, 0, to, &[])
    }

    pub(crate) fn array(&mut self, element: u32, count: u32) -> u32 {
        self.record("", 3, false, 0, 0, &[element, 1, count])
    }

    pub(crate) fn structure(&mut self, name: &str, size: u32, fields: &[Field<'_>]) -> u32 {
        self.composite(4, name, size, fields)
    }

    pub(crate) fn union(&mut self, name: &str, size: u32, fields: &[Field<'_>]) -> u32 {
        self.composite(5, name, size, fields)
    }

    fn composite(&mut self, kind: u32, name: &str, size: u32, fields: &[Field<'_>]) -> u32 {
        let bit_fields = fields.iter().any(|field| field.3.is_some());
        let mut tail = Vec::new();
        for (name, ty, offset, bits) in fields {
            tail.extend([self.string(name), *ty, offset | bits.unwrap_or(0) << 24]);
        }
        self.record(name, kind, bit_fields, fields.len(), size, &tail)
    }

    pub(crate) fn enumeration(&mut self, name: &str, signed: bool, values: &[(&str, i64)]) -> u32 {
        let tail: Vec<u32> =
            values.iter().flat_map(|(name, value)| [self.string(name), *value as u32]).collect();
        self.record(name, 6, signed, values.len(), 4, &tail)
    }

    pub(crate) fn enumeration64(&mut self, name: &str, signed: bool, values: &[(&str, i64)]) -> u32 {
        let words =
            values.iter().flat_map(|(name, value)| [self.string(name), *value as u32, (*value >> 32) as u32]);
        let tail: Vec<u32> = words.collect();
        self.record(name, 19, signed, values.len(), 8, &tail)
    }

    pub(crate) fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.record(name, 8, false, 0, of, &[])
    }

    /// `const`, `volatile` or `restrict`.
    pub(crate) fn modifier(&mut self, kind: u32, of: u32) -> u32 {
        self.record("", kind, false, 0, of, &[])
    }

    /// Says in a layout section how long this kind is, and that of all before it.
    pub(crate) fn layout(&mut self, kind: usize, info_bytes: u8, element_bytes: u8) {
        self.layout.resize(self.layout.len().max(kind + 1), (0, 0));
        self.layout[kind] = (info_bytes, element_bytes);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let layout: Vec<u8> =
            self.layout.iter().flat_map(|(info, element)| [*info, *element, 0, 0]).collect();
        let header_len: u32 = if layout.is_empty() { 24 } else { 32 };
        let (types_len, layout_len) = (self.types.len() as u32, layout.len() as u32);
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        let strings = [types_len + layout_len, self.strings.len() as u32];
        let sections = [header_len, 0, types_len, strings[0], strings[1], types_len, layout_len];
        blob.extend(sections.iter().flat_map(|word| word.to_le_bytes()));
        blob.truncate(header_len as usize);
        blob.extend(self.types);
        blob.extend(layout);
        blob.extend(self.strings);
        blob
    }
}

/// A few types as kernels have them.
pub(crate) fn kernel_types() -> Vec<u8> {
    let mut w = Writer::new();
    let int = w.int("int", 4, true);
    let ulong = w.int("long unsigned int", 8, false);
    let uint = w.int("unsigned int", 4, false);
    let char = w.int("char", 1, true);
    let list_head = w.count + 2;
    let list_pointer = w.pointer(list_head);
    assert_eq!(
        w.structure("list_head", 16, &[("next", list_pointer, 0, None), ("prev", list_pointer, 64, None)]),
        list_head
    );
    let comm = w.array(char, 16);
    let refs = w.structure("", 4, &[("counter", int, 0, None)]);
    let atomic = w.typedef("atomic_t", refs);
    let spin = w.structure("raw_spinlock", 4, &[("slock", uint, 0, None)]);
    let seqcount = w.typedef("seqcount_raw_spinlock_t", spin);
    let pid_type =
        w.enumeration("pid_type", false, &[("PIDTYPE_PID", 0), ("PIDTYPE_TGID", 1), ("PIDTYPE_MAX", 4)]);
    let volatile_uint = w.modifier(9, uint);
    w.structure("timekeeper", 24, &[("offs_real", ulong, 0, None), ("offs_boot", ulong, 64, None)]);
    let maple = w.structure("maple_tree", 16, &[("ma_lock", uint, 0, None), ("ma_root", ulong, 64, None)]);
    let union = w.union("", 16, &[("mm_mt", maple, 0, None), ("mm_rb", ulong, 0, None)]);
    let inner = w.structure(
        "",
        40,
        &[("", union, 0, None), ("pgd", ulong, 128, None), ("flags", volatile_uint, 192, None)],
    );
    let cpus = w.array(ulong, 0);
    let mm = w.structure("mm_struct", 40, &[("", inner, 0, None), ("cpu_bitmap", cpus, 320, None)]);
    let mm_pointer = w.pointer(mm);
    let forward = w.record("io_context", 7, false, 0, 0, &[]);
    let forward = w.pointer(forward);
    let prototype = w.record("", 13, false, 1, int, &[0, ulong]);
    let function = w.pointer(prototype);
    let fields: [Field<'_>; 11] = [
        ("__state", volatile_uint, 0, None),
        ("usage", atomic, 32, None),
        ("sched_reset_on_fork", uint, 64, Some(1)),
        ("in_execve", uint, 66, Some(3)),
        ("", uint, 69, Some(5)),
        ("tasks", list_head, 128, None),
        ("mm", mm_pointer, 256, None),
        ("comm", comm, 320, None),
        ("io_context", forward, 448, None),
        ("handler", function, 512, None),
        ("kind", pid_type, 576, None),
    ];
    w.structure("task_struct", 80, &fields);
    w.record("do_work", 12, false, 0, prototype, &[]);
    let per_cpu = w.record("cpu_hot", 14, false, 0, mm_pointer, &[1]);
    w.record(".data..percpu", 15, false, 1, 8, &[per_cpu, 0, 8]);
    w.record("double", 16, false, 0, 8, &[]);
    w.record("tag", 17, false, 0, per_cpu, &[u32::MAX]);
    w.record("user", 18, false, 0, int, &[]);
    w.enumeration64("wide", true, &[("WIDE_MIN", i64::MIN), ("WIDE_MAX", i64::MAX)]);
    let _ = seqcount;
    w.finish()
}
