//! The arguments of a process, in its own memory.

use varve_formats::{Fault, Gva, PAGE_SIZE, VirtualMemory};

use super::layout::Field;
use super::mm::MmLayout;
use crate::guest::Guest;

/// Bytes of arguments read at most. The kernel lets a program have a quarter of its stack limit, 2 MiB by default.
const MAX_BYTES: u64 = 4 << 20;

impl Guest<'_> {
    /// The arguments of the process whose `mm_struct` is at `mm`, each with its NUL, as `/proc/PID/cmdline` gives them.
    /// Corresponds to `get_mm_cmdline` (`fs/proc/base.c`): a program may overwrite its arguments with a title that ends
    /// in the environment behind them.
    ///
    /// # Errors
    /// The fault that kept them from being read: swapped out, or not present.
    pub fn command_line(&self, layout: &MmLayout, mm: Gva) -> Result<Vec<u8>, Fault> {
        let pointer = |field: Field| field.pointer(self.space(), mm);
        let (start, end) = (pointer(layout.arg_start)?, pointer(layout.arg_end)?);
        let env_end = pointer(layout.env_end)?;
        let Some(len) = end.offset_from(start).filter(|len| *len > 0 && env_end.0 != 0) else {
            return Ok(Vec::new());
        };
        if len > MAX_BYTES {
            return Err(Fault::Limit { what: "arguments", limit: MAX_BYTES, at: start.0 });
        }
        let user = self.user_space(layout, mm)?;
        let mut bytes = vec![0; len as usize];
        user.read(start, &mut bytes)?;
        if bytes.last() == Some(&0) {
            return Ok(bytes);
        }
        let title_end = if pointer(layout.env_start)? == end && env_end >= end { env_end } else { end };
        title(&user, start, title_end)
    }
}

/// A title: one string from `start` on, NUL included, of at most a page and not beyond `end`.
fn title(user: &dyn VirtualMemory, start: Gva, end: Gva) -> Result<Vec<u8>, Fault> {
    let len = end.offset_from(start).unwrap_or(0).min(PAGE_SIZE as u64);
    let mut bytes = Vec::with_capacity(len as usize);
    // The kernel stops at the first page that is not there, too; what came before is the title.
    while (bytes.len() as u64) < len {
        let at = start.checked_add(bytes.len() as u64).ok_or(Fault::Overflow { at: start.0 })?;
        let step = (PAGE_SIZE - at.page_offset()).min(len as usize - bytes.len());
        let mut chunk = vec![0; step];
        match user.read(at, &mut chunk) {
            Ok(()) => {}
            Err(fault) if bytes.is_empty() => return Err(fault),
            Err(_) => break,
        }
        if let Some(nul) = chunk.iter().position(|byte| *byte == 0) {
            bytes.extend(chunk.iter().take(nul + 1));
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
