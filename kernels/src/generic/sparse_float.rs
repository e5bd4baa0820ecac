//! Products of float records with a sparse vector.
//!
//! ```text
//! for each set of 4 entries j                        so that 4 records are read side by side
//!     for each 8 outputs i
//!         acc = out[i]
//!         acc = fma(record[j][i], x[j], acc)         for each entry of the set, in order
//!         out[i] = acc
//! ```
//!
//! An output is loaded and stored once for a set. Its sum has the order of the numeric contract:
//! that of the entries.

/// Defines the product `$name` with records of `$bytes` bytes a value: `$load` loads 8 of them,
/// which are `$eight` bytes, and `$read` reads number `i`.
///
/// The invoking module has, by these names, `load_f32` and `store_f32` of 8 floats, and
/// `multiply_add(weights, x, acc)`.
macro_rules! sparse_float {
    ($features:literal, $name:ident, $bytes:literal, $eight:literal, $load:expr, $read:expr) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(
            out: &mut [f32],
            w: &$crate::layout::Records<'_>,
            first: usize,
            x: $crate::layout::Sparse<'_>,
        ) {
            /// Records in a set.
            const SET_SIZE: usize = 4;
            let n = out.len();
            out.fill(0.0);
            for (indices, x) in x.indices.chunks(SET_SIZE).zip(x.values.chunks(SET_SIZE)) {
                let mut records = [&[][..]; SET_SIZE];
                for (record, &j) in records.iter_mut().zip(indices) {
                    *record = &w.record(j as usize)[$bytes * first..][..$bytes * n];
                }
                let (chunks, tail) = out.as_chunks_mut::<8>();
                let tail_start = n - tail.len();
                for (i, out) in chunks.iter_mut().enumerate() {
                    let mut acc = load_f32(out);
                    for (record, &x) in records.iter().zip(x) {
                        let weights = $load(&record.as_chunks::<$eight>().0[i]);
                        acc = multiply_add(weights, x, acc);
                    }
                    store_f32(out, acc);
                }
                for (i, out) in tail.iter_mut().enumerate() {
                    for (record, &x) in records.iter().zip(x) {
                        *out = f32::mul_add($read(record, tail_start + i), x, *out);
                    }
                }
            }
            out.iter_mut().for_each(|out| *out *= w.scale());
        }
    };
}
pub(crate) use sparse_float;

/// Number `i` of little-endian fp32 numbers.
#[inline(always)]
pub(crate) fn read_f32(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}
