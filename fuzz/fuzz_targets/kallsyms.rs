//! Any bytes as a kernel image with kallsyms tables, whose addresses come from the input too.

#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_formats::symbols::KERNEL_MAP;
use varve_formats::symbols::kallsyms::{Hints, Kallsyms};
use varve_formats::{Fault, Gva, VirtualMemory};

/// Where the image is.
const IMAGE: u64 = KERNEL_MAP.0 + 0x0100_0000;

/// Bytes of the input that are addresses: seven tables, two bytes each.
const HINT_BYTES: usize = 14;

struct Image<'a>(&'a [u8]);

impl VirtualMemory for Image<'_> {
    fn read(&self, at: Gva, buf: &mut [u8]) -> Result<(), Fault> {
        let offset = at.0.checked_sub(IMAGE).and_then(|offset| usize::try_from(offset).ok());
        let bytes = offset.and_then(|offset| self.0.get(offset..)?.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(Fault::Overflow { at: at.0 })?);
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((hints, image)) = input.split_first_chunk::<HINT_BYTES>() else { return };
    let mut addresses =
        hints.as_chunks().0.iter().map(|offset| Gva(IMAGE + u64::from(u16::from_le_bytes(*offset))));
    let image = Image(image);
    let window = Some((Gva(IMAGE), image.0.len() as u64));
    let hinted = Hints {
        stext: None,
        num_syms: addresses.next(),
        names: addresses.next(),
        token_table: addresses.next(),
        token_index: addresses.next(),
        offsets: addresses.next(),
        relative_base: addresses.next(),
        addresses: addresses.next(),
        window: None,
    };
    for hints in [hinted, Hints { window, ..Hints::default() }] {
        let Ok(kallsyms) = Kallsyms::decode(&image, &hints) else { continue };
        kallsyms.content(|_| ());
        let _ = (kallsyms.tables(), kallsyms.banner(&image));
        for symbol in kallsyms.iter() {
            assert!(kallsyms.symbols(symbol.name).any(|found| found == symbol));
            assert!(kallsyms.containing(symbol.address).is_some());
        }
    }
});
