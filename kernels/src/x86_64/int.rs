//! Products of quantized matrices: the loop that all levels share, and its parts for AVX2.
//!
//! ```text
//! for each run of N block rows                       N is 4 or 1, see `streams`
//!     acc[N] = 0                                     16 rows each, a lane for each row
//!     for each column block i                        64 columns: 2 groups
//!         take both groups of the vector
//!         for each block row n
//!             for each group
//!                 dot = sums of weight * code        integers, in lines of 16 rows x 4 columns,
//!                                                    with a prefetch before each line
//!                 acc[n] = fma(weight scale * scale, dot, acc[n])
//!     store acc * tensor scale
//! ```
//!
//! A lane belongs to a row, so no sum crosses lanes, and the floats are added in the order of the
//! numeric contract: group by group. Four codes of the vector are broadcast to all lanes. A line
//! has four weights of each row beside each other, so one instruction multiplies and adds four
//! pairs in every lane.
//!
//! Column blocks are the outer loop, block rows the inner one. So the block rows of a run share the
//! codes of the vector, and each of them is a stream of its own from memory (`streams`). Sums stay
//! in registers until the row ends. An integer sum of a group cannot overflow; each `dot` states
//! its bounds.

use core::arch::x86_64::*;

use super::int4n;
use super::memory::{broadcast, load, load_f16, prefetch, store_f32};
use super::streams::{ReadPattern, STREAMS, Streams, by_streams};
use crate::generic::{GROUPS, Group, Int4Lines, Int8Lines, Parts};
use crate::layout::{Activation, DType, LINE_BYTES, Matrix, ROW_INTERLEAVE};

/// 16 rows, 8 in each register.
pub(super) type Rows<T> = [T; 2];

/// Defines the product `$matvec` of a level.
///
/// `$dot(lines, start, group, before)` adds the products of the `$lines` of a group with a
/// [`Group`] to `start`, and calls `before(i)` before it loads line `i`. `$start(scales, group)`
/// makes up for what codes have added. `add_group` adds the result to the sums of 16 rows, which
/// start as `$zero`. `finish` stores them.
macro_rules! int_matvec {
    (
        $features:literal, $matvec:ident, $rows:ident, $dtype:expr, $lines:ty, $zero:expr, $start:expr,
        $dot:ident
    ) => {
        #[target_feature(enable = $features)]
        pub(super) fn $matvec(out: &mut [f32], w: &Matrix<'_>, first_row: usize, x: Activation<'_>) {
            by_streams!($rows, ReadPattern::here(), out, w, first_row, x);
        }

        #[target_feature(enable = $features)]
        fn $rows<const N: usize>(
            out: &mut [f32],
            w: &Matrix<'_>,
            pattern: ReadPattern,
            first: usize,
            end: usize,
            x: Activation<'_>,
        ) {
            const LINES: usize = size_of::<$lines>() / LINE_BYTES;
            let streams = Streams::<N, { $dtype.block_bytes() }>::new(w, pattern, first, end);
            let mut acc = [$zero; N];
            for i in 0..w.col_blocks() {
                let groups = [Group::of(x, GROUPS * i), Group::of(x, GROUPS * i + 1)];
                for (n, acc) in acc.iter_mut().enumerate() {
                    let [block, later] = streams.block(n, i);
                    let (block, later) = (Parts::<LINES>::of(block), Parts::<LINES>::of(later));
                    prefetch(later.scales.as_flattened());
                    for (g, group) in groups.iter().enumerate() {
                        let start = $start(&block.scales[g], group);
                        let before = |line: usize| prefetch(&later.lines[g][line]);
                        let dot = $dot(&block.lines[g], start, group, before);
                        *acc = add_group(*acc, &block.scales[g], dot, group);
                    }
                }
            }
            finish(out, acc, w.scale());
        }
    };
}
pub(super) use int_matvec;

int_matvec!(
    "avx2,fma,f16c",
    matvec_int4,
    int4_rows,
    DType::Int4,
    Int4Lines,
    [_mm256_setzero_ps(); 2],
    start::<8>,
    int4_dot
);
int_matvec!(
    "avx2,fma,f16c",
    matvec_int4n,
    int4n_rows,
    DType::Int4n,
    Int4Lines,
    [_mm256_setzero_ps(); 2],
    int4n::start,
    int4n_dot
);
int_matvec!(
    "avx2,fma,f16c",
    matvec_int8,
    int8_rows,
    DType::Int8,
    Int8Lines,
    [_mm256_setzero_ps(); 2],
    start::<0>,
    int8_dot
);

/// Sums of products with codes + `OFFSET` become those with codes by this.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn start<const OFFSET: i32>(_: &[u8; 32], x: &Group<'_>) -> Rows<__m256i> {
    [_mm256_set1_epi32(x.sum.wrapping_mul(-OFFSET)); 2]
}

/// Sums of nibble times code. The 16-bit sums reach 8 * 2 * 15 * 127 = 30480.
#[target_feature(enable = "avx2")]
#[inline]
fn int4_dot(lines: &Int4Lines, start: Rows<__m256i>, x: &Group<'_>, before: impl Fn(usize)) -> Rows<__m256i> {
    let low = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_si256(); 2];
    for (i, (line, quads)) in lines.iter().zip(x.codes.as_chunks::<2>().0).enumerate() {
        before(i);
        let quads = [broadcast(&quads[0]), broadcast(&quads[1])];
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let weights = load(weights);
            let first = _mm256_and_si256(weights, low);
            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(weights), low);
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(first, quads[0]));
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(second, quads[1]));
        }
    }
    let ones = _mm256_set1_epi16(1);
    let [a, b] = sums;
    [
        _mm256_add_epi32(_mm256_madd_epi16(a, ones), start[0]),
        _mm256_add_epi32(_mm256_madd_epi16(b, ones), start[1]),
    ]
}

/// Sums of table code times code. The 16-bit sums of a line reach 2 * 2 * 60 * 127 = 30480.
#[target_feature(enable = "avx2")]
#[inline]
fn int4n_dot(
    lines: &Int4Lines,
    start: Rows<__m256i>,
    x: &Group<'_>,
    before: impl Fn(usize),
) -> Rows<__m256i> {
    let ones = _mm256_set1_epi16(1);
    let mut sums = start;
    for (i, (line, quads)) in lines.iter().zip(x.codes.as_chunks::<2>().0).enumerate() {
        before(i);
        let quads = [broadcast(&quads[0]), broadcast(&quads[1])];
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let [first, second] = int4n::codes(load(weights));
            let first = _mm256_maddubs_epi16(first, quads[0]);
            let pairs = _mm256_add_epi16(first, _mm256_maddubs_epi16(second, quads[1]));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    sums
}

/// Sums of code times code. The unsigned factor is `|w|`, at most 128. The signed factor is the
/// vector's code with the sign of `w`. Two products reach 2 * 128 * 127, which 16 bits hold.
#[target_feature(enable = "avx2")]
#[inline]
fn int8_dot(lines: &Int8Lines, start: Rows<__m256i>, x: &Group<'_>, before: impl Fn(usize)) -> Rows<__m256i> {
    let ones = _mm256_set1_epi16(1);
    let mut sums = start;
    for (i, (line, quad)) in lines.iter().zip(x.codes).enumerate() {
        before(i);
        let quad = broadcast(quad);
        for (sum, weights) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
            let weights = load(weights);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(quad, weights));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    sums
}

/// `acc + scale * x.scale * dot`, with fp16 scales of 16 rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn add_group(
    acc: Rows<__m256>,
    scales: &[u8; 32],
    dot: Rows<__m256i>,
    x: &Group<'_>,
) -> Rows<__m256> {
    let (scales, _) = scales.as_chunks::<16>();
    let scale = _mm256_set1_ps(x.scale);
    let low = _mm256_mul_ps(load_f16(&scales[0]), scale);
    let high = _mm256_mul_ps(load_f16(&scales[1]), scale);
    [
        _mm256_fmadd_ps(low, _mm256_cvtepi32_ps(dot[0]), acc[0]),
        _mm256_fmadd_ps(high, _mm256_cvtepi32_ps(dot[1]), acc[1]),
    ]
}

/// Stores the sums times the tensor scale; the last rows may be padding.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn finish<const N: usize>(out: &mut [f32], acc: [Rows<__m256>; N], scale: f32) {
    let scale = _mm256_set1_ps(scale);
    for (out, acc) in out.chunks_mut(ROW_INTERLEAVE).zip(acc) {
        let acc = [_mm256_mul_ps(acc[0], scale), _mm256_mul_ps(acc[1], scale)];
        if let [low, high] = out.as_chunks_mut().0 {
            store_f32(low, acc[0]);
            store_f32(high, acc[1]);
            continue;
        }
        let mut rows = [[0.0; 8]; 2];
        store_f32(&mut rows[0], acc[0]);
        store_f32(&mut rows[1], acc[1]);
        out.copy_from_slice(&rows.as_flattened()[..out.len()]);
    }
}
