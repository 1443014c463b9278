//! `struct mutex` (`include/linux/mutex_types.h`).

use varve_formats::Gva;

use super::layout::Structure;
use crate::finding::FaultReason;
use crate::guest::Guest;

/// Low bits of `mutex.owner` that are flags and no part of the owner's address (`MUTEX_FLAGS`).
const FLAGS: u64 = 7;

/// Whether somebody holds the mutex at `mutex`.
pub(crate) fn mutex_is_held(guest: &Guest<'_>, mutex: Gva) -> Result<bool, FaultReason> {
    // With PREEMPT_RT a mutex is an `rt_mutex`.
    let owner = Structure::named(guest.btf(), "mutex")?.any(&["owner", "rtmutex.owner"])?;
    Ok(owner.read(guest.space(), mutex)? & !FLAGS != 0)
}
