//! What a domain consists of beside its memory, as a save stream holds it.

use std::path::PathBuf;

use serde_json::Value;
use varve_formats::xen::stream::{Config, DomainType, Header, Record, SaveState};

use super::domain::Domain;
use super::info::CpuPolicy;
use crate::SourceError;

/// The parameters of a domain that a save stream holds, as Xen's own writer has them (`tools/libs/guest/xg_sr_save_x86_hvm.c`),
/// by their numbers in `xen/hvm/params.h`: where the rings for xenstore, for I/O requests (two), paging, monitoring and
/// sharing are, the TSS for virtual 8086 mode, the console's ring, the place of ACPI's ports, what of Viridian there
/// is, the identity page table, the generation id, I/O servers (two), the width of the FPU's instruction pointer, and
/// machine check capabilities.
const HVM_PARAMS: [u32; 16] = [1, 5, 6, 27, 28, 29, 37, 17, 19, 9, 12, 34, 32, 33, 36, 38];

/// What does not change while the domain lives.
pub(super) struct Constants {
    header: Header,
    policy: CpuPolicy,
    params: Vec<(u64, u64)>,
}

impl Constants {
    pub(super) fn read(domain: &Domain) -> Result<Self, SourceError> {
        let error = |error| domain.failed("reading the domain's parameters", error);
        let (id, control) = (domain.id, &domain.control);
        let mut params = Vec::new();
        for param in HVM_PARAMS {
            let value = control.hvm_param(id, param).map_err(error)?;
            // As libxc does: what is zero need not be set again.
            if value != 0 {
                params.push((param.into(), value));
            }
        }
        let header = Header {
            domain: DomainType::Hvm,
            xen: control.version().map_err(error)?,
            config: None,
            libxc_version: 3,
        };
        Ok(Self { header, policy: control.cpu_policy(id).map_err(error)?, params })
    }

    /// The domain's state with this HVM context, encoded.
    pub(super) fn with(&self, domain: &Domain, context: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        let tsc = domain.control.tsc_info(domain.id);
        let tsc = tsc.map_err(|error| domain.failed("reading the domain's time", error))?;
        let mut state = SaveState::new(Header { config: configuration(domain), ..self.header.clone() });
        let records = [
            Record::cpuid_policy(self.policy.leaves.clone()),
            Record::msr_policy(self.policy.msrs.clone()),
            Record::tsc_info(tsc.mode, tsc.khz, tsc.elapsed_ns, tsc.incarnation),
            Record::hvm_context(context),
            Record::hvm_params(&self.params),
        ];
        for record in records {
            state.keep(record)?;
        }
        Ok(state.encode())
    }
}

/// The configuration that the toolstack keeps of a domain it created (`libxl__userdata_path` of libxl), with at least the memory that
/// the domain is to have by now. A domain of another toolstack has none, and can be restored by that toolstack only.
fn configuration(domain: &Domain) -> Option<Config> {
    let name = format!("userdata-d.{}.{}.libxl-json", domain.id, domain.uuid_text());
    let bytes = std::fs::read(PathBuf::from("/var/lib/xen").join(name)).ok()?;
    let kept = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    let in_store = |node: &str| domain.store.read(&domain.path(node)).ok()??.parse().ok();
    let mut bytes = with_memory(kept, in_store("memory/target"), in_store("memory/static-max"))
        .unwrap_or_else(|| kept.to_vec());
    bytes.push(0);
    Some(Config { is_json: true, bytes })
}

/// The configuration with what xenstore says of the domain's memory, in KiB, where that is more: `xl mem-set` changes nothing else
/// (`libxl_retrieve_domain_configuration` of `tools/libs/light/libxl_domain.c`, which `xl save` uses), and the pages of the epoch would
/// not find room. It is not made less: an epoch can hold pages that the domain has given back.
fn with_memory(configuration: &[u8], target_kib: Option<u64>, max_kib: Option<u64>) -> Option<Vec<u8>> {
    let mut configuration: Value = serde_json::from_slice(configuration).ok()?;
    let built = configuration.pointer_mut("/b_info").and_then(Value::as_object_mut)?;
    let now = [("target_memkb", target_kib), ("max_memkb", max_kib)];
    for (name, kib) in now {
        let kept = built.get(name).and_then(Value::as_u64).unwrap_or(0);
        if let Some(kib) = kib.filter(|kib| *kib > kept) {
            built.insert(name.to_owned(), kib.into());
        }
    }
    Some(configuration.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_to_have_what_memory_it_has_been_given_since() {
        let kept = br#"{"c_info":{"name":"web1"},"b_info":{"target_memkb":262144,"kernel":"k"}}"#;
        for (target, expected) in [(131_072, 262_144), (393_216, 393_216)] {
            let now = with_memory(kept, Some(target), Some(524_288)).unwrap();
            let now: Value = serde_json::from_slice(&now).unwrap();
            let built = serde_json::json!({ "target_memkb": expected, "max_memkb": 524_288, "kernel": "k" });
            assert_eq!(now["b_info"], built);
            assert_eq!(now["c_info"]["name"], "web1");
        }
        assert!(with_memory(b"name = 'web1'", Some(1), Some(1)).is_none());
    }
}
