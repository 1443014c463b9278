//! Symbol files for Volatility 3: the Intermediate Symbol Format (ISF), JSON, schema 6.2.0.
//!
//! Such a file is ordinarily made from a kernel's debugging information. This one comes from what the guest itself
//! carries: addresses from kallsyms, types from BTF. Neither tells the types of global variables; the table in
//! `globals.rs` states those that Volatility's plugins ask for.
//!
//! Addresses are those the kernel was linked at: Volatility finds the KASLR shift on its own and adds it. A symbol
//! name is a key and occurs once: of static symbols that share one, the file has the first.

mod globals;
mod names;
mod symbols;
mod types;

use std::io::{self, BufWriter, Write};

use serde::{Serialize, Serializer};

use super::btf::Btf;
use super::kallsyms::Kallsyms;
use names::TypeNames;

/// Version of the schema that the file follows.
const SCHEMA: &str = "6.2.0";

/// What a symbol file is made from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The kernel's symbols.
    pub kallsyms: &'a Kallsyms,
    /// The kernel's types.
    pub btf: &'a Btf,
    /// `linux_banner` as it lies in memory, without the NUL: Volatility looks for these bytes to tell which symbol file
    /// an image needs. [`Kallsyms::banner`] reads it.
    pub banner: &'a [u8],
    /// The KASLR shift, in bytes: [`VmCoreInfo::kernel_offset`](super::vmcoreinfo::VmCoreInfo::kernel_offset).
    pub kernel_offset: u64,
}

/// Writes the symbol file as one line of JSON. Equal sources give equal bytes. Give it a name that ends in `.json` and
/// a place below `linux/` in a directory named with `vol -s`.
///
/// # Errors
/// Those of `out`.
pub fn write(source: &Source<'_>, out: impl Write) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, out);
    let names = TypeNames::new(source.btf);
    serde_json::to_writer(&mut out, &File { source, names: &names })?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The whole file.
struct File<'a> {
    source: &'a Source<'a>,
    names: &'a TypeNames<'a>,
}

impl Serialize for File<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Sections<'a> {
            metadata: Metadata,
            base_types: types::BaseTypes<'a>,
            user_types: types::UserTypes<'a>,
            enums: types::Enums<'a>,
            symbols: symbols::Symbols<'a>,
        }
        let Self { source, names } = *self;
        Sections {
            metadata: Metadata::default(),
            base_types: types::BaseTypes(names),
            user_types: types::UserTypes(names),
            enums: types::Enums(names),
            symbols: symbols::Symbols { source, names },
        }
        .serialize(serializer)
    }
}

/// Where the file comes from. Without the time, so that equal sources give equal files.
#[derive(Serialize)]
struct Metadata {
    format: &'static str,
    producer: Producer,
    linux: Origin,
}

#[derive(Serialize)]
struct Producer {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct Origin {
    symbols: [Part; 1],
    types: [Part; 0],
}

#[derive(Serialize)]
struct Part {
    kind: &'static str,
    name: &'static str,
}

impl Default for Metadata {
    fn default() -> Self {
        Self {
            format: SCHEMA,
            producer: Producer { name: "varve", version: env!("CARGO_PKG_VERSION") },
            // The schema knows no kind for BTF.
            linux: Origin { symbols: [Part { kind: "symtab", name: "kallsyms" }], types: [] },
        }
    }
}
