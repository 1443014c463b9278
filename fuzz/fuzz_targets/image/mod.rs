//! What the image targets share: a file from bytes, and a reader that believes nothing.
#![allow(dead_code, reason = "each target uses a part")]

use std::io::Write;
use std::path::Path;

use varve_formats::image::{Format, Image};
use varve_formats::{FormatError, PAGE_SIZE, PhysicalMemory};

/// Most frames read of one image.
const MAX_FRAMES: usize = 256;

pub fn open(bytes: &[u8]) {
    with_file(bytes, Image::open);
}

pub fn open_as(format: &str, bytes: &[u8]) {
    let format = Format::by_name(format).expect("there is such a format");
    with_file(bytes, |path| Image::open_as(path, format));
}

/// Opens a file of these bytes. If it is accepted, all it says it holds must be there.
fn with_file(bytes: &[u8], open: impl Fn(&Path) -> Result<Image, FormatError>) {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(bytes).expect("room in memory");
    let Ok(image) = open(file.path()) else { return };
    let regions = image.regions();
    assert!(regions.windows(2).all(|pair| pair[0].end() < Some(pair[1].start)), "regions ascend and are disjoint");
    let mut page = [0; PAGE_SIZE];
    for region in regions.iter().take(MAX_FRAMES) {
        assert!(region.start.page_offset() == 0 && region.len > 0 && region.len % PAGE_SIZE as u64 == 0);
        for into in (0..region.len).step_by(PAGE_SIZE).take(MAX_FRAMES) {
            let at = region.start.checked_add(into).expect("inside the region");
            image.read(at, &mut page).expect("a frame inside a region is there");
            assert!(image.slice(at, PAGE_SIZE).is_none_or(|bytes| bytes == page));
        }
        let end = region.end().expect("below 2^52");
        assert!(image.slice(end, 1).is_none() || image.read(end, &mut page).is_err());
    }
}
