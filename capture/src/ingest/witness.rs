//! Somebody who takes part in every epoch while it is taken: a gate, which ends the epoch of what the guest sends at the same
//! moment, and has the same memory looked at.

use varve_formats::{Gfn, Vcpu};

use crate::SourceError;
use crate::source::GuestMemory;

/// Is told of an epoch in this order: `everything`, if the log does not tell the difference to the epoch before; `held`; again
/// `everything`, or `changed`, if the guest has to be held for that; `read`; `changed` otherwise; `taken`. Any error ends it early.
pub(crate) trait Witness: Sync {
    /// All of memory may be another. If the guest runs, what it writes from now on is told of by `changed`.
    fn everything(&self, memory: &dyn GuestMemory);

    /// The guest stands still, and nothing of it has been read yet.
    ///
    /// # Errors
    /// The epoch is then not taken.
    fn held(&self) -> Result<(), SourceError>;

    /// All there is to read has been, or could not be: the guest goes on in a moment.
    fn read(&self);

    /// `memory` has what these frames held while the guest stood still; all others hold what they held.
    fn changed(&self, memory: &dyn GuestMemory, frames: &[Gfn]);

    /// That was the epoch's memory, and these are its registers. It has yet to be stored.
    fn taken(&self, number: u64, vcpus: &[Vcpu]);
}
