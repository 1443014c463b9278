//! What a domain consists of beside its memory, as a save stream holds it.

use std::path::PathBuf;

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

/// The configuration that the toolstack keeps of a domain it created (`libxl__userdata_path` of libxl). A domain of
/// another toolstack has none, and can be restored by that toolstack only.
fn configuration(domain: &Domain) -> Option<Config> {
    let name = format!("userdata-d.{}.{}.libxl-json", domain.id, domain.uuid_text());
    let mut bytes = std::fs::read(PathBuf::from("/var/lib/xen").join(name)).ok()?;
    if bytes.last() != Some(&0) {
        bytes.push(0);
    }
    Some(Config { is_json: true, bytes })
}
