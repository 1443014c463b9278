//! Guest addresses and frame numbers: one type each, with checked arithmetic.

use std::fmt;

/// Bytes in a guest frame (x86-64 base page).
pub const PAGE_SIZE: usize = 4096;

/// `log2(PAGE_SIZE)`.
pub const PAGE_SHIFT: u32 = 12;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on, or `None` past 2^64.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// The address `bytes` before this one, or `None` below zero.
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// The address `delta` bytes away, or `None` outside `0..2^64`.
            pub const fn checked_add_signed(self, delta: i64) -> Option<Self> {
                match self.0.checked_add_signed(delta) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// The distance from `earlier` to this address in bytes, or `None` when `earlier` is later.
            pub const fn offset_from(self, earlier: Self) -> Option<u64> {
                self.0.checked_sub(earlier.0)
            }

            /// The offset within the 4 KiB page, in bytes.
            pub const fn page_offset(self) -> usize {
                (self.0 & (PAGE_SIZE as u64 - 1)) as usize
            }

            /// The start of the 4 KiB page that holds this address.
            pub const fn page_start(self) -> Self {
                Self(self.0 & !(PAGE_SIZE as u64 - 1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// A guest physical address, in bytes.
    Gpa
}

address! {
    /// A guest virtual address, in bytes.
    Gva
}

impl Gpa {
    /// The frame that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
}

/// A guest frame number: a guest physical address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The address of the frame's first byte, or `None` when it does not fit 64 bits.
    pub const fn gpa(self) -> Option<Gpa> {
        match self.0.checked_mul(PAGE_SIZE as u64) {
            Some(address) => Some(Gpa(address)),
            None => None,
        }
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_checked_at_both_ends() {
        assert_eq!(Gpa(u64::MAX).checked_add(1), None);
        assert_eq!(Gva(0).checked_sub(1), None);
        assert_eq!(Gva(8).checked_add_signed(-9), None);
        assert_eq!(Gva(8).checked_add_signed(-8), Some(Gva(0)));
        assert_eq!(Gfn(u64::MAX >> PAGE_SHIFT).gpa(), Some(Gpa(!0xfff)));
        assert_eq!(Gfn(1 << 52).gpa(), None);
    }

    #[test]
    fn an_address_splits_into_page_and_offset() {
        let at = Gpa(0x1234_5678);
        assert_eq!((at.gfn(), at.page_start(), at.page_offset()), (Gfn(0x12345), Gpa(0x1234_5000), 0x678));
    }
}
