//! Any page as a VMCOREINFO note.

#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_formats::symbols::kallsyms::Hints;
use varve_formats::symbols::vmcoreinfo::VmCoreInfo;

fuzz_target!(|page: &[u8]| {
    let Some(note) = VmCoreInfo::parse(page) else { return };
    for (key, value) in note.entries() {
        assert!(note.value(key).is_some());
        let _ =
            (note.symbol(key), note.number(value), note.offset(key, value), note.size(key), note.length(key));
    }
    let _ = (note.kernel_offset(), note.phys_base(), note.swapper_pg_dir(), note.five_level_paging());
    let _ = Hints::from_vmcoreinfo(&note);
});
