//! What is known about the tables before they are decoded.

use crate::Gva;
use crate::symbols::vmcoreinfo::VmCoreInfo;

/// The bytes searched when nothing says where the tables are: behind `_text`, all images known end before this.
const DEFAULT_WINDOW_BYTES: u64 = 256 << 20;

/// What is known about the tables before they are decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `_stext`. Given, it has to agree with the decoded one.
    pub stext: Option<Gva>,
    /// `kallsyms_num_syms`.
    pub num_syms: Option<Gva>,
    /// `kallsyms_names`.
    pub names: Option<Gva>,
    /// `kallsyms_token_table`.
    pub token_table: Option<Gva>,
    /// `kallsyms_token_index`.
    pub token_index: Option<Gva>,
    /// `kallsyms_offsets`.
    pub offsets: Option<Gva>,
    /// `kallsyms_relative_base`.
    pub relative_base: Option<Gva>,
    /// `kallsyms_addresses`.
    pub addresses: Option<Gva>,
    /// Where to search for the tables, and how many bytes: the kernel image from its beginning. It is searched when
    /// the addresses above are not all given or lead nowhere.
    pub window: Option<(Gva, u64)>,
}

impl Hints {
    /// What a VMCOREINFO note says: the tables since 6.0 (and where distributions backported that), `_stext` always.
    pub fn from_vmcoreinfo(note: &VmCoreInfo) -> Self {
        let table = |name: &str| note.symbol(&format!("kallsyms_{name}"));
        let stext = note.symbol("_stext");
        Self {
            stext,
            num_syms: table("num_syms"),
            names: table("names"),
            token_table: table("token_table"),
            token_index: table("token_index"),
            offsets: table("offsets"),
            relative_base: table("relative_base"),
            addresses: table("addresses"),
            window: stext.map(|stext| (stext.page_start(), DEFAULT_WINDOW_BYTES)),
        }
    }
}
