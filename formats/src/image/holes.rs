//! Holes: parts of a file that were never written, and read as zeros.
//!
//! They are worth knowing. A raw image has them where the guest has no RAM; the file behind a live guest's RAM has
//! them where the guest never wrote. And reading a hole of a file on a tmpfs through a mapping is not free: the
//! kernel then allocates the page, so that looking at a guest could cost its host as much memory as the guest was
//! promised.

use std::fs::File;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The first hole in `range` (file offsets, in bytes), cut off at its end; an empty one at its end when there is
/// none; `None` when the file system does not tell.
///
/// The system looks at every page up to the hole: going through a file from hole to hole costs little, asking for
/// each of its parts costs the square of its length.
pub(super) fn first(file: &File, range: Range<u64>) -> Option<Range<u64>> {
    let start = next(file, SeekFrom::Hole(range.start), range.end)?;
    if start >= range.end {
        return Some(range.end..range.end);
    }
    let end = next(file, SeekFrom::Data(start), range.end)?;
    Some(start..end.clamp(start, range.end))
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
        assert_eq!(first(&file, 0..0x10_0000), Some(0..0x10_0000));
        file.write_all_at(&[0; 0x2000], 0x4000).unwrap();
        file.write_all_at(&[1], 0xf_f000).unwrap();
        assert_eq!(first(&file, 0..0x10_0000), Some(0..0x4000));
        assert_eq!(first(&file, 0x4000..0x10_0000), Some(0x6000..0xf_f000));
        assert_eq!(first(&file, 0x5000..0x8000), Some(0x6000..0x8000));
        assert_eq!(first(&file, 0x4000..0x6000), Some(0x6000..0x6000));
        assert_eq!(first(&file, 0xf_f000..0x10_0000), Some(0x10_0000..0x10_0000));
        assert_eq!(first(&file, 0x1000..0x1001), Some(0x1000..0x1001));
    }

    #[test]
    fn a_file_that_cannot_be_searched_does_not_tell() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(first(&File::from(std::os::fd::OwnedFd::from(reader)), 0..4096), None);
    }
}
