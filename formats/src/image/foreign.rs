//! Files that people hand to a memory tool and that are not an image it can read: named, with what to do.

/// What a file begins with, what that means, and what to do about it.
struct Foreign {
    /// Offset of the magic bytes.
    at: usize,
    magic: &'static [u8],
    what: &'static str,
    advice: &'static str,
}

const DECOMPRESS: &str = "decompress it first";
const RAW_DISK: &str = "that is a disk, not memory";

const fn foreign(magic: &'static [u8], what: &'static str, advice: &'static str) -> Foreign {
    Foreign { at: 0, magic, what, advice }
}

/// Magic numbers from the formats' own specifications; for QEMU, libvirt, Xen and makedumpfile from their sources
/// (`migration/qemu-file-types.h`, `qemu_saveimage.h`, `xg_sr_stream_format.h`, `diskdump_mod.h`).
static FOREIGN: &[Foreign] = &[
    foreign(&[0x1f, 0x8b, 0x08], "gzip", DECOMPRESS),
    foreign(&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", DECOMPRESS),
    foreign(&[0x28, 0xb5, 0x2f, 0xfd], "zstd", DECOMPRESS),
    foreign(b"BZh", "bzip2", DECOMPRESS),
    foreign(&[0x04, 0x22, 0x4d, 0x18], "lz4", DECOMPRESS),
    foreign(b"\xff\x06\0\0sNaPpY", "framed Snappy", DECOMPRESS),
    foreign(b"PK\x03\x04", "ZIP", "unpack it first"),
    foreign(b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it first"),
    Foreign { at: 257, magic: b"ustar", what: "a tar archive", advice: "unpack it first" },
    foreign(b"AVML", "AVML (compressed LiME)", "convert it with `avml-convert` first"),
    foreign(
        b"KDUMP   ",
        "a compressed kdump",
        "make an ELF vmcore of it: `makedumpfile -E`, or dump without compression",
    ),
    foreign(b"makedumpfile\0", "a flattened makedumpfile stream", "rearrange it first: `makedumpfile -R`"),
    foreign(b"PAGEDU64", "a Windows crash dump", "not supported"),
    foreign(b"PAGEDUMP", "a Windows crash dump", "not supported"),
    foreign(b"QEVM", "a QEMU migration stream", "use `dump-guest-memory` instead"),
    foreign(b"LibvirtQemudSave", "a libvirt save file", "use `virsh dump --memory-only` instead"),
    foreign(b"XenSavedDomain", "a libxl save file", "not supported"),
    foreign(b"QFI\xfb", "a qcow2 disk", RAW_DISK),
    foreign(b"KDMV", "a VMDK disk", RAW_DISK),
    foreign(&[0xd2, 0xbe, 0xd2, 0xbe], "a VMware snapshot state", "use the .vmem file beside it"),
    foreign(&[0xd0, 0xbe, 0xd2, 0xbe], "a VMware snapshot state", "use the .vmem file beside it"),
];

/// What `head`, the beginning of a file, looks like when that is no image we read.
pub(super) fn identify(head: &[u8]) -> Option<String> {
    let known = FOREIGN.iter().find(|known| {
        let end = known.at + known.magic.len();
        head.get(known.at..end) == Some(known.magic)
    })?;
    Some(format!("looks like {}: {}", known.what, known.advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_is_and_what_to_do() {
        assert_eq!(identify(&[0x1f, 0x8b, 0x08, 0]).unwrap(), "looks like gzip: decompress it first");
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(identify(&tar).unwrap(), "looks like a tar archive: unpack it first");
    }

    #[test]
    fn ordinary_beginnings_are_not_foreign() {
        // An empty first frame, the real-mode vector table of a PC, LiME, ELF, and files shorter than any magic.
        let heads: [&[u8]; 6] =
            [&[0; 4096], &[0x53, 0xff, 0, 0xf0], b"EMiL\x01\0\0\0", b"\x7fELF", &[0x1f], &[]];
        for head in heads {
            assert_eq!(identify(head), None);
        }
    }
}
