//! Any bytes as a BTF blob, with every type looked at.

#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_formats::symbols::btf::{Btf, Kind};

fuzz_target!(|bytes: &[u8]| {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for ty in btf.types() {
        let _ = (btf.type_size(ty.id), btf.size_of(ty.name), btf.named(ty.name).count());
        match ty.kind {
            Kind::Struct(composite) | Kind::Union(composite) => {
                for member in composite.members().take(64) {
                    let _ = btf.member_of(ty.id, member.name);
                }
            }
            Kind::Enum(of) => assert!(of.enumerators().count() <= of.len()),
            _ => assert!(btf.resolve(ty.id).is_none_or(|ty| !matches!(ty.kind, Kind::Typedef(_)))),
        }
    }
});
