//! Pages of Xen's own that a domain has in its memory: the page it shares with Xen, and its grant table.
//!
//! Xen writes to them without noting it in the log (times and versions into the shared page, whether a grant is in use into
//! the table), and once a guest has suspended itself and put its grant table in place again (`gnttab_resume` of Linux'
//! `drivers/xen/grant-table.c`), what the guest writes there was seen not to be noted either (Xen 4.17). So these few pages are
//! taken to be written to all the time.
//!
//! Where the shared page is, Xen tells. Where a guest has put the pages of its grant table nobody does: they are mapped as what
//! they are (`XENMEM_acquire_resource`), and looked for by their content. A page of zeros holds nothing, and is looked for again.

use std::io;
use std::sync::Arc;

use varve_formats::{Gfn, PAGE_SIZE};

use super::domain::Domain;
use super::memory::DomainMemory;
use super::sys::{ForeignMemory, Mapping};
use crate::SourceError;
use crate::source::GuestMemory;

/// Content is compared while the guest may change it: how often, until it is believed to be another.
const TRIES: usize = 3;

/// Where they are.
#[derive(Default)]
pub(super) struct Own {
    shared: Option<Gfn>,
    table: Option<Mapping>,
    /// For each page of the table, where it was found.
    places: Vec<Option<Gfn>>,
}

impl Own {
    /// Looks where they are now. Whether all are found that were before: the guest may have moved one to where `memory` does not show
    /// it.
    pub(super) fn look(
        &mut self,
        domain: &Domain,
        foreign: &Arc<ForeignMemory>,
        memory: &DomainMemory,
    ) -> Result<bool, SourceError> {
        self.shared = Some(domain.info()?.shared_info);
        let error = |error: io::Error| domain.failed("mapping the domain's grant table", error);
        let pages = domain.control.grant_table_pages(domain.id).map_err(error)?;
        if pages == 0 {
            self.places.clear();
            return Ok(true);
        }
        let table = match self.table.take().filter(|table| table.mapped().len() == pages) {
            Some(table) => table,
            None => foreign.map_grant_table(domain.id, pages).map_err(error)?,
        };
        self.places.resize(pages, None);
        let mut all = true;
        for (index, place) in self.places.iter_mut().enumerate() {
            let Some(page) = table.bytes(index * PAGE_SIZE, PAGE_SIZE) else { continue };
            let is_here = |gfn: &Gfn| (0..TRIES).any(|_| content(memory, *gfn) == Some(page));
            if !place.as_ref().is_some_and(is_here) {
                let before = place.take();
                *place = page.iter().any(|byte| *byte != 0).then(|| memory.frames().find(is_here)).flatten();
                all &= place.is_some() || before.is_none();
            }
        }
        self.table = Some(table);
        Ok(all)
    }

    /// Their frames.
    pub(super) fn frames(&self) -> impl Iterator<Item = Gfn> {
        self.shared.into_iter().chain(self.places.iter().copied().flatten())
    }
}

fn content(memory: &DomainMemory, gfn: Gfn) -> Option<&[u8]> {
    memory.slice(gfn.gpa()?, PAGE_SIZE)
}
