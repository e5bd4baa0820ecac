//! Bounds-checked little-endian reading, and appending.

use byteorder::{ByteOrder, LittleEndian};

/// A position in a byte slice that never runs past its end.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `n` bytes, or `None` if fewer are left.
    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(LittleEndian::read_u16)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(LittleEndian::read_u32)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take(8).map(LittleEndian::read_u64)
    }

    pub(super) fn f32(&mut self) -> Option<f32> {
        self.take(4).map(LittleEndian::read_f32)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything not yet read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Whether all bytes are zero, as padding and reserved bytes must be.
pub(super) fn all_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 512] = [0; 512];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// Appends zeros until the length is a multiple of `align`.
pub(super) fn pad_to(out: &mut Vec<u8>, align: usize) {
    out.resize(out.len().next_multiple_of(align), 0);
}

/// `n` rounded up to a multiple of `align`, or `None` past `u64::MAX`.
pub(super) fn align_up(n: u64, align: u64) -> Option<u64> {
    n.checked_next_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_refuses_to_read_past_the_end_and_keeps_its_position() {
        let mut cursor = Cursor::new(&[1, 2, 3]);
        assert_eq!(cursor.u16(), Some(0x0201));
        assert_eq!(cursor.u16(), None);
        assert_eq!(cursor.u32(), None);
        assert_eq!(cursor.take(usize::MAX), None);
        assert_eq!(cursor.u8(), Some(3));
        assert!(cursor.is_empty());
    }

    #[test]
    fn one_bit_anywhere_is_not_all_zero() {
        for len in [0, 1, 511, 512, 513, 2000] {
            let mut bytes = vec![0; len];
            assert!(all_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!all_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn align_up_reports_overflow() {
        assert_eq!(align_up(65, 64), Some(128));
        assert_eq!(align_up(0, 64), Some(0));
        assert_eq!(align_up(u64::MAX, 64), None);
    }
}
