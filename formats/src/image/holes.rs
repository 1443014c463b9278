//! Holes: parts of a file that were never written, and read as zeros.
//!
//! They are worth knowing. A raw image has them where the guest has no RAM; the file behind a live guest's RAM has them
//! where the guest never wrote. And reading a hole of a file on a tmpfs through a mapping is not free: the kernel
//! then allocates the page, so that looking at a guest could cost its host as much memory as the guest was promised.

use std::fs::File;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Most holes listed of one range; what lies behind the last is taken for data.
const MAX_HOLES: usize = 64;

/// The holes in `range` (file offsets, in bytes), ascending. Where the file system does not tell there are none.
pub(super) fn holes(file: &File, range: Range<u64>) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = range.start;
    while at < range.end && holes.len() < MAX_HOLES {
        let Some(start) = next(file, SeekFrom::Hole(at), range.end) else { break };
        if start >= range.end {
            break;
        }
        let Some(end) = next(file, SeekFrom::Data(start), range.end) else { break };
        let end = end.min(range.end);
        if end <= start {
            break;
        }
        holes.push(start..end);
        at = end;
    }
    holes
}

/// Where the next hole or data begins; `end` when there is none before the end of the file, `None` when nobody knows.
fn next(file: &File, what: SeekFrom, end: u64) -> Option<u64> {
    match seek(file, what) {
        Ok(at) => Some(at),
        Err(Errno::NXIO) => Some(end),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn only_what_was_never_written_is_a_hole() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x10_0000).unwrap();
        assert_eq!(holes(&file, 0..0x10_0000), [0..0x10_0000]);
        file.write_all_at(&[0; 0x2000], 0x4000).unwrap();
        file.write_all_at(&[1], 0xf_f000).unwrap();
        assert_eq!(holes(&file, 0..0x10_0000), [0..0x4000, 0x6000..0xf_f000]);
        assert_eq!(holes(&file, 0x5000..0x8000), [0x6000..0x8000]);
        assert_eq!(holes(&file, 0x4000..0x6000), []);
        assert_eq!(holes(&file, 0x1000..0x1001), [0x1000..0x1001]);
    }

    #[test]
    fn many_holes_are_cut_off() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x40_0000).unwrap();
        for at in (0..0x40_0000).step_by(0x2000) {
            file.write_all_at(&[1], at).unwrap();
        }
        assert_eq!(holes(&file, 0..0x40_0000).len(), MAX_HOLES);
    }

    #[test]
    fn a_file_that_cannot_be_searched_has_none() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(holes(&File::from(std::os::fd::OwnedFd::from(reader)), 0..4096), []);
    }
}
