//! The columns of a few entries each: settings, VMs, pins.

use super::Findings;
use crate::archive::Shared;
use crate::columns::Column;
use crate::columns::meta::Meta;
use crate::columns::pins::Pins;
use crate::columns::vms::Vms;
use crate::{Place, StoreError};

/// Reads every entry, which decodes it and, of a pin, compares its digest.
pub(super) fn check(shared: &Shared, findings: &mut Findings) -> Result<(), StoreError> {
    scan::<Meta>(shared, &String::new(), findings)?;
    scan::<Vms>(shared, &String::new(), findings)?;
    scan::<Pins>(shared, &(0, String::new()), findings)
}

fn scan<C: Column>(shared: &Shared, from: &C::Key, findings: &mut Findings) -> Result<(), StoreError> {
    for entry in shared.database.scan::<C>(from)? {
        if let Err(error) = entry {
            findings.add_error(Place::Column(C::NAME), error);
        }
    }
    Ok(())
}
