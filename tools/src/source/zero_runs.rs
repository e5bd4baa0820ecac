//! Zeros where a piece of a file is missing: traces of an interrupted download or a bad memory
//! card.
//!
//! Files without checksums do not say that they are damaged. A hole is made of whole blocks of the
//! file, so it begins and ends inside rows of the matrices there, apart from chance. Honest zeros
//! do not: tokens that no text had leave whole rows, matrices that were never trained are zero as a
//! whole, and single weights that became zero are no run.

use super::tensor::SourceTensor;

/// Bytes of a hole's unit: a page, and a block of most file systems.
const BLOCK: usize = 4096;

/// A run that ends this close to the border of a row ends there: the next weights may be zero by
/// themselves.
const NEAR: usize = 8;

/// A long run of zeros in a matrix that begins or ends inside a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZeroRun {
    /// The matrix, by BlinkDL's name.
    pub tensor: String,
    /// First element, row-major as it is stored.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

/// A matrix whose elements lie without gaps in the file. The elements of quantized types are
/// blocks.
struct Matrix<'a> {
    name: &'a str,
    start: u64,
    elements: usize,
    element_size: usize,
    row_len: usize,
    /// Elements of a block.
    block_len: usize,
}

/// Finds runs in the matrices of one file as its bytes pass.
pub(super) struct Scan<'a> {
    /// By place.
    matrices: Vec<Matrix<'a>>,
    /// Zeros at the end of the bytes that have passed; those of non-zero blocks count too.
    zeros: u64,
    /// Whether a whole block of these is zero.
    long: bool,
    found: Vec<ZeroRun>,
}

impl<'a> Scan<'a> {
    /// A scan of the given tensors of a file, as far as they are matrices in one piece.
    pub(super) fn new(tensors: impl Iterator<Item = &'a SourceTensor>) -> Self {
        let mut matrices: Vec<_> = tensors.filter_map(Matrix::of).collect();
        matrices.sort_unstable_by_key(|matrix| matrix.start);
        Self { matrices, zeros: 0, long: false, found: Vec::new() }
    }

    /// Takes the bytes from `offset` on, a multiple of the block size, which follow those of the
    /// last call.
    pub(super) fn take(&mut self, offset: u64, bytes: &[u8]) {
        if self.matrices.is_empty() {
            return;
        }
        for (at, block) in (offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
            if block.iter().fold(0, |any, byte| any | byte) == 0 {
                self.zeros += block.len() as u64;
                self.long |= block.len() == BLOCK;
                continue;
            }
            let is_zero = |byte: &&u8| **byte == 0;
            let more = block.iter().take_while(is_zero).count() as u64;
            self.zeros += more;
            self.end_run(at + more);
            self.zeros = block.iter().rev().take_while(is_zero).count() as u64;
        }
    }

    /// The runs of the file whose bytes have all passed.
    pub(super) fn finish(mut self, file_len: u64) -> Vec<ZeroRun> {
        self.end_run(file_len);
        self.found
    }

    /// Ends the run of zeros at `end`.
    fn end_run(&mut self, end: u64) {
        let start = end - self.zeros;
        if std::mem::take(&mut self.long) {
            let first = self.matrices.partition_point(|matrix| matrix.end() <= start);
            let touched = self.matrices[first..].iter().take_while(|matrix| matrix.start < end);
            self.found.extend(touched.filter_map(|matrix| matrix.suspicion(start, end)));
        }
        self.zeros = 0;
    }
}

impl<'a> Matrix<'a> {
    fn of(tensor: &'a SourceTensor) -> Option<Self> {
        let (block_len, location) = (tensor.dtype.block_len(), tensor.location);
        let row_len = *tensor.shape.last()? / block_len;
        let elements = tensor.elements() / block_len;
        let is_whole = location.row_len == tensor.elements();
        (is_whole && row_len > 1 && elements > row_len).then_some(Self {
            name: &tensor.name,
            start: location.offset,
            elements,
            element_size: tensor.dtype.size(),
            row_len,
            block_len,
        })
    }

    fn end(&self) -> u64 {
        self.start + (self.elements * self.element_size) as u64
    }

    /// The run that zeros from byte `from` to byte `to` of the file make in this matrix, unless
    /// they look honest.
    fn suspicion(&self, from: u64, to: u64) -> Option<ZeroRun> {
        let size = self.element_size as u64;
        let from = (from.max(self.start) - self.start).div_ceil(size) as usize;
        let to = ((to.min(self.end()) - self.start) / size) as usize;
        let len = to.checked_sub(from)?;
        // A block is never zero by chance.
        let near = if self.block_len == 1 { NEAR.min(self.row_len / 2) } else { 0 };
        let is_inside_row = |element: usize| {
            let column = element % self.row_len;
            near < column && column < self.row_len - near
        };
        let is_hole = len * self.element_size >= BLOCK && (is_inside_row(from) || is_inside_row(to));
        let [start, len] = [from, len].map(|blocks| blocks * self.block_len);
        is_hole.then(|| ZeroRun { tensor: self.name.to_owned(), start, len })
    }
}

#[cfg(test)]
mod tests {
    use super::super::location::Location;
    use super::super::tensor::SourceDType;
    use super::*;

    const ROW: usize = 640;
    const ROWS: usize = 64;

    /// Two matrices of f16 behind a header, and zeros in a range of elements of the first.
    fn runs(header: usize, zeros: std::ops::Range<usize>) -> Vec<ZeroRun> {
        let elements = ROW * ROWS;
        let tensor = |name: &str, offset: usize| SourceTensor {
            name: name.to_owned(),
            shape: vec![ROWS, ROW],
            dtype: SourceDType::F16,
            transposed: false,
            location: Location::contiguous(offset as u64, elements),
        };
        let tensors = [tensor("b", header + 2 * elements), tensor("a", header)];
        let mut bytes = vec![0x11; header + 4 * elements];
        bytes[header + 2 * zeros.start..header + 2 * zeros.end].fill(0);
        let mut scan = Scan::new(tensors.iter());
        for (offset, block) in (0..).step_by(4 * BLOCK).zip(bytes.chunks(4 * BLOCK)) {
            scan.take(offset, block);
        }
        scan.finish(bytes.len() as u64)
    }

    #[test]
    fn blocks_of_zeros_that_cut_rows_are_found() {
        for header in [0, 8, 1000, 4090] {
            // Whole blocks of the file, which begin and end inside rows.
            let first = (3 * BLOCK - header) / 2;
            let run = ZeroRun { tensor: "a".into(), start: first, len: 2 * BLOCK };
            assert_eq!(runs(header, first..first + 2 * BLOCK), [run], "{header}");
        }
    }

    #[test]
    fn a_hole_to_the_end_of_the_file_is_found_where_it_begins() {
        let found = runs(1000, 20_000..2 * ROW * ROWS);
        assert_eq!(found, [ZeroRun { tensor: "a".into(), start: 20_000, len: ROW * ROWS - 20_000 }]);
    }

    #[test]
    fn whole_rows_whole_matrices_and_short_runs_are_honest() {
        let elements = ROW * ROWS;
        for zeros in [0..0, 0..elements, 0..2 * elements, 7 * ROW..19 * ROW, 7 * ROW - 3..19 * ROW + 2] {
            assert_eq!(runs(1000, zeros.clone()), [], "{zeros:?}");
        }
        // Less than a block.
        assert_eq!(runs(1000, 300..300 + BLOCK / 2 - 1), []);
        assert_eq!(runs(1000, elements - 5 * ROW..elements + 5 * ROW), []);
    }
}
