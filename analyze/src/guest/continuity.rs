//! How the kernel of an epoch relates to those of earlier ones.

use super::pin::Pin;
use super::profile::Comparison;

/// How the kernel of an epoch relates to those pinned in earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// Nothing was pinned.
    First,
    /// The kernel is where a pinned one was and describes itself as that did.
    Same,
    /// A pinned kernel build, moved: the guest was started anew.
    Rebooted,
    /// Another kernel build than any pinned one: the guest was started anew with it.
    OtherKernel,
    /// A pinned kernel whose own description has changed. No reboot does that: symbols and types are read-only data of
    /// the kernel image.
    Altered {
        /// The symbol table differs.
        kallsyms: bool,
        /// The types differ.
        btf: bool,
        /// The banner differs.
        banner: bool,
    },
}

impl Continuity {
    /// Whether the kernel is a boot that is not pinned yet, and should be.
    pub const fn is_new_boot(self) -> bool {
        matches!(self, Self::First | Self::Rebooted | Self::OtherKernel)
    }

    /// Judges a kernel by what it would be pinned as. `comparison`: how it compares to the profile in use, when that
    /// was not read from this very memory.
    pub(super) fn judge(now: &Pin, pins: &[Pin], comparison: Comparison) -> Self {
        if comparison != Comparison::SAME {
            return Self::Altered { kallsyms: !comparison.kallsyms, btf: !comparison.btf, banner: false };
        }
        if pins.is_empty() {
            return Self::First;
        }
        let same_build = |pin: &&Pin| pin.banner == now.banner && pin.digests == now.digests;
        if pins.iter().filter(same_build).any(|pin| pin.placement == now.placement) {
            return Self::Same;
        }
        if pins.iter().any(|pin| same_build(&pin)) {
            return Self::Rebooted;
        }
        // The same build by one of its marks, and not by another.
        let alike = |pin: &&Pin| {
            pin.banner == now.banner
                || pin.digests.kallsyms == now.digests.kallsyms
                || pin.digests.btf == now.digests.btf && pin.placement == now.placement
        };
        match pins.iter().rev().find(alike) {
            Some(pin) => Self::Altered {
                kallsyms: pin.digests.kallsyms != now.digests.kallsyms,
                btf: pin.digests.btf != now.digests.btf,
                banner: pin.banner != now.banner,
            },
            None => Self::OtherKernel,
        }
    }
}

#[cfg(test)]
mod tests {
    use varve_formats::{Gpa, Gva};

    use super::*;
    use crate::guest::{Digests, Placement};
    use crate::paging::Levels;

    fn pin(offset: u64, banner: &str, kallsyms: u8, btf: u8) -> Pin {
        Pin {
            placement: Placement {
                kernel_offset: offset,
                phys_base: 0,
                root: Gpa(0x1000),
                levels: Levels::Four,
            },
            note: None,
            banner_at: Gva(0xffff_ffff_8200_0000),
            banner: banner.into(),
            digests: Digests { kallsyms: [kallsyms; 32], btf: [btf; 32] },
        }
    }

    #[test]
    fn reboots_other_kernels_and_tampering_are_told_apart() {
        let pins = [pin(0, "6.1", 1, 1), pin(0x100_0000, "6.12", 2, 2)];
        let judge = |now: Pin| Continuity::judge(&now, &pins, Comparison::SAME);
        let altered = |kallsyms, btf, banner| Continuity::Altered { kallsyms, btf, banner };
        assert_eq!(judge(pin(0, "6.1", 1, 1)), Continuity::Same);
        assert_eq!(judge(pin(0x100_0000, "6.12", 2, 2)), Continuity::Same);
        assert_eq!(judge(pin(0x200_0000, "6.12", 2, 2)), Continuity::Rebooted);
        assert_eq!(judge(pin(0, "7.0", 3, 3)), Continuity::OtherKernel);
        assert_eq!(judge(pin(0, "6.1", 3, 1)), altered(true, false, false));
        assert_eq!(judge(pin(0x200_0000, "6.12", 2, 3)), altered(false, true, false));
        assert_eq!(judge(pin(0, "hacked", 1, 1)), altered(false, false, true));
        assert_eq!(judge(pin(0, "hacked", 9, 1)), altered(true, false, true));
        assert_eq!(judge(pin(0x200_0000, "6.1-other", 9, 1)), Continuity::OtherKernel, "types can be equal");
    }

    #[test]
    fn without_pins_only_the_profile_can_contradict() {
        let now = pin(0, "6.1", 1, 1);
        assert_eq!(Continuity::judge(&now, &[], Comparison::SAME), Continuity::First);
        let altered = Continuity::judge(&now, &[], Comparison { kallsyms: true, btf: false });
        assert_eq!(altered, Continuity::Altered { kallsyms: false, btf: true, banner: false });
        assert!(!altered.is_new_boot());
    }
}
