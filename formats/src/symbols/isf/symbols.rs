//! The section of the file that lists symbols.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::{Serialize, Serializer};

use crate::Gva;
use crate::symbols::btf::{Kind, TypeId};
use crate::symbols::kallsyms;
use crate::symbols::linear::KERNEL_MAP;

use super::Source;
use super::globals::{self, RENAMED};
use super::names::TypeNames;
use super::types::Shape;

/// The symbol that tells Volatility which kernel the file is for.
const BANNER: &str = "linux_banner";

/// `symbols`.
pub(super) struct Symbols<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) names: &'a TypeNames<'a>,
}

#[derive(Serialize)]
struct Symbol<'a> {
    r#type: Shape<'a>,
    address: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    constant_data: Option<String>,
}

impl Serialize for Symbols<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kallsyms = self.source.kallsyms;
        // The only variables that BTF describes are the per-CPU ones.
        let variables: HashMap<&str, TypeId> = self
            .names
            .btf
            .types()
            .filter_map(|ty| match ty.kind {
                Kind::Variable(of) => Some((ty.name, of)),
                _ => None,
            })
            .collect();
        let mut seen = HashSet::new();
        let first_of_name = kallsyms.iter().filter(|symbol| seen.insert(symbol.name));
        let listed =
            first_of_name.map(|symbol| (Cow::Borrowed(symbol.name), self.describe(&symbol, &variables)));
        // kallsyms does not list its own tables.
        let tables = kallsyms.tables().iter().map(|table| {
            let name = format!("kallsyms_{}", table.name);
            let shape = globals::shape(self.names, &name, table.len).unwrap_or(Shape::VOID);
            (Cow::Owned(name), self.at(table.start, shape))
        });
        let renamed =
            RENAMED.iter().filter(|(old, _)| kallsyms.address(old).is_none()).filter_map(|(old, new)| {
                let shape = globals::shape(self.names, old, 0)?;
                Some((Cow::Borrowed(*old), self.at(kallsyms.address(new)?, shape)))
            });
        serializer.collect_map(listed.chain(tables).chain(renamed))
    }
}

impl<'a> Symbols<'a> {
    fn describe(&self, symbol: &kallsyms::Symbol<'a>, variables: &HashMap<&str, TypeId>) -> Symbol<'a> {
        let bytes = self.source.kallsyms.distance_to_next(symbol.address).unwrap_or(0);
        let stated = globals::shape(self.names, symbol.name, bytes);
        let shape = stated.or_else(|| variables.get(symbol.name).map(|of| Shape::of(self.names, *of)));
        let text = matches!(symbol.kind, 'T' | 't' | 'W' | 'w');
        let shape = shape.unwrap_or(if text { Shape::Function } else { Shape::VOID });
        let constant_data = (symbol.name == BANNER).then(|| base64(self.source.banner));
        Symbol { constant_data, ..self.at(symbol.address, shape) }
    }

    /// A symbol at the address it was linked at. Offsets of per-CPU symbols are not moved by KASLR.
    fn at(&self, address: Gva, shape: Shape<'a>) -> Symbol<'a> {
        let moved = if address >= KERNEL_MAP { self.source.kernel_offset } else { 0 };
        Symbol { r#type: shape, address: address.0.wrapping_sub(moved), constant_data: None }
    }
}

/// Base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (group >> (18 - 6 * digit) & 63) as usize;
            let digit = if digit > chunk.len() { &b'=' } else { ALPHABET.get(value).unwrap_or(&b'=') };
            text.push(char::from(*digit));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
