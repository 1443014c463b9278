//! `rwlock_t` (`include/linux/rwlock_types.h`).

use varve_formats::Gva;

use super::layout::Structure;
use crate::finding::FaultReason;
use crate::guest::Guest;

/// `_QW_LOCKED` (`include/asm-generic/qrwlock.h`).
const WRITER: u64 = 0xff;
/// `WRITER_BIAS` (`include/linux/rwbase_rt.h`).
const RT_WRITER: u64 = 1 << 31;

/// Whether a writer holds the `rwlock_t` at `lock`.
pub(crate) fn is_write_locked(guest: &Guest<'_>, lock: Gva) -> Result<bool, FaultReason> {
    let layout = Structure::named(guest.btf(), "rwlock_t")?;
    if let Some(readers) = layout.optional("rwbase.readers.counter") {
        return Ok(readers.read(guest.space(), lock)? == RT_WRITER);
    }
    Ok(layout.field("raw_lock.wlocked")?.read(guest.space(), lock)? == WRITER)
}
