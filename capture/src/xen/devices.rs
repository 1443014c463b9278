//! What leads out of a domain: the devices that the toolstack gave it, as `/libxl` in xenstore has them
//! (`docs/misc/xenstore-paths.pandoc`, `tools/libs/light/libxl_device.c`).

use std::collections::BTreeSet;

use super::domain::{Domain, failed};
use crate::SourceError;
use crate::output::{OutputBuffer, Vif};
use crate::source::Devices;

/// Kinds of devices that lead nowhere: the console and keyboard of whoever sits at the host.
const HARMLESS: [&str; 4] = ["console", "vkb", "vfb", "suspend"];

impl Domain {
    /// The numbers of its devices of a kind.
    fn devices_of(&self, kind: &str) -> Result<Vec<String>, SourceError> {
        let path = format!("/libxl/{}/device/{kind}", self.id);
        self.store.names(&path).map_err(|error| failed("listing the domain's devices", error))
    }

    fn read(&self, path: &str) -> Result<Option<String>, SourceError> {
        self.store.read(path).map_err(|error| failed("asking for a device of the domain", error))
    }

    /// The card with this number as its backend names it.
    fn vif(&self, domid: u16, devid: u32) -> Result<Vif, SourceError> {
        let backend = self.read(&format!("/libxl/{}/device/vif/{devid}/backend", self.id))?;
        let backend = backend.unwrap_or_default();
        if !backend.starts_with("/local/domain/0/") {
            let reason = format!(
                "network card {devid} of {:?} does not lead through this host (its backend is {backend:?}): what it sends cannot be held here",
                self.name
            );
            return Err(SourceError::Unsuitable { reason });
        }
        let name = self.read(&format!("{backend}/vifname"))?.unwrap_or_else(|| format!("vif{domid}.{devid}"));
        Ok(Vif { domid, devid, name })
    }
}

impl Devices for Domain {
    fn identity(&self) -> String {
        // One that was started again has the same UUID, and is nevertheless not the one that something was found in.
        format!("{}/{}", self.uuid_text(), self.id)
    }

    fn vifs(&self) -> Result<Vec<Vif>, SourceError> {
        let domid = u16::try_from(self.id).unwrap_or(u16::MAX);
        let mut vifs = Vec::new();
        for devid in self.devices_of("vif")?.iter().filter_map(|number| number.parse().ok()) {
            vifs.push(self.vif(domid, devid)?);
        }
        // Emulated cards have a device beside the one that xenstore knows.
        let named: BTreeSet<String> = vifs.iter().map(|vif| vif.name.clone()).collect();
        let others = OutputBuffer::vifs_of(domid)?;
        vifs.extend(others.into_iter().filter(|vif| !named.contains(&vif.name)));
        Ok(vifs)
    }

    fn other_channels(&self) -> Result<Vec<String>, SourceError> {
        let kinds = self.store.names(&format!("/libxl/{}/device", self.id));
        let kinds = kinds.map_err(|error| failed("listing the domain's devices", error))?;
        let mut channels = Vec::new();
        for kind in kinds.iter().filter(|kind| *kind != "vif" && !HARMLESS.contains(&kind.as_str())) {
            let count = self.devices_of(kind)?.len();
            channels.push(match kind.as_str() {
                "vbd" | "qdisk" => format!("disks ({count})"),
                "pci" => format!("PCI devices passed through ({count})"),
                other => format!("{other} ({count})"),
            });
        }
        Ok(channels)
    }
}
