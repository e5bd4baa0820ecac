//! Where the elements of a tensor are.

/// First shard number of the bytes that are computed from those of a file; it is beyond those of
/// files.
pub(super) const VIEWS: usize = 1 << 20;

/// Data of a tensor that begin inside those of the tensor before.
pub(super) struct Overlap<'a> {
    /// Where the tensor before ends.
    pub(super) end: u64,
    /// Where the tensor begins.
    pub(super) begin: u64,
    pub(super) name: &'a str,
}

/// The first overlap of `(begin, end, name)` of the data of tensors. Empty ones have none.
pub(super) fn overlap<'a>(ranges: impl Iterator<Item = (u64, u64, &'a str)>) -> Option<Overlap<'a>> {
    let mut ranges: Vec<_> = ranges.filter(|(begin, end, _)| begin != end).collect();
    ranges.sort_unstable();
    let found = ranges.windows(2).find(|pair| pair[1].0 < pair[0].1)?;
    Some(Overlap { end: found[0].1, begin: found[1].0, name: found[1].2 })
}

/// Rows of `row_len` contiguous elements, `row_stride` bytes apart; a contiguous tensor is one row.
///
/// Opening a checkpoint makes sure that all of them lie inside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// Which of several files; 0 if there is one. From [`VIEWS`] on, which of the views.
    pub(super) shard: usize,
    /// First byte.
    pub(super) offset: u64,
    /// Elements of a row.
    pub(super) row_len: usize,
    /// Bytes from one row to the next.
    pub(super) row_stride: u64,
}

impl Location {
    /// Elements without gaps in the only file.
    pub(super) fn contiguous(offset: u64, elements: usize) -> Self {
        Self { shard: 0, offset, row_len: elements, row_stride: 0 }
    }

    /// Elements `start .. start + len`, if they are inside one row or are whole rows.
    pub(super) fn part(self, start: usize, len: usize, element_size: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { row_len: 0, ..self });
        }
        let (row, column) = (start.checked_div(self.row_len)?, start.checked_rem(self.row_len)?);
        let offset = self.offset + row as u64 * self.row_stride + (column * element_size) as u64;
        if column + len <= self.row_len {
            Some(Self { offset, row_len: len, row_stride: 0, ..self })
        } else {
            (column == 0 && len.is_multiple_of(self.row_len)).then_some(Self { offset, ..self })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_inside_a_row_are_contiguous() {
        let whole = Location { shard: 3, ..Location::contiguous(100, 12) };
        for (start, len, offset) in [(0, 12, 100), (0, 2, 100), (10, 2, 140), (11, 1, 144)] {
            let expected = Location { shard: 3, offset, row_len: len, row_stride: 0 };
            assert_eq!(whole.part(start, len, 4), Some(expected), "{start} {len}");
        }
        assert_eq!(whole.part(11, 2, 4), None);
        let rows = Location { shard: 0, offset: 100, row_len: 4, row_stride: 30 };
        assert_eq!(rows.part(4, 4, 2), Some(Location { offset: 130, row_stride: 0, ..rows }));
        assert_eq!(rows.part(9, 2, 2), Some(Location::contiguous(100 + 2 * 30 + 2, 2)));
    }

    #[test]
    fn parts_of_whole_rows_keep_the_stride_and_others_are_none() {
        let rows = Location { shard: 1, offset: 100, row_len: 4, row_stride: 30 };
        assert_eq!(rows.part(8, 8, 2), Some(Location { offset: 160, ..rows }));
        for (start, len) in [(2, 4), (2, 8), (4, 6), (4, 7)] {
            assert_eq!(rows.part(start, len, 2), None, "{start} {len}");
        }
    }

    #[test]
    fn empty_parts_are_anywhere() {
        let rows = Location { shard: 0, offset: 100, row_len: 0, row_stride: 0 };
        assert_eq!(rows.part(0, 0, 4), Some(rows));
        assert_eq!(rows.part(0, 1, 4), None);
    }
}
