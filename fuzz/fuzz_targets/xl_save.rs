//! Any bytes as a save stream of Xen's tools: as it comes, and as an image.

#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_formats::xen::stream::{Event, FrameSet, MAX_BATCH_FRAMES, Reader};

mod image;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes, "stream");
    let mut frames = FrameSet::default();
    while let Ok(Some(event)) = reader.next_event() {
        if let Event::Pages(pages) = event {
            assert!(pages.frames.len() <= MAX_BATCH_FRAMES);
            assert!(pages.iter().all(|(frame, page)| frame.kind.has_contents() == page.is_some()));
            let _ = frames.keep(pages.frames);
        }
    }
    let regions = frames.regions();
    assert!(regions.iter().zip(regions.iter().skip(1)).all(|(one, next)| one.end() < Some(next.start)));
    assert!(reader.offset() <= bytes.len() as u64);
    image::open_as("xl-save", bytes);
});
