//! Stream compaction: the entries of a vector that pass a test, one after the other.
//!
//! ```text
//! for each register of entries
//!     set = the lanes that pass                       a bit for each
//!     store the register with these lanes in front    the next store overwrites the others
//!     n += number of lanes in the set
//! the entries that are left, one by one
//! ```
//!
//! A table has the order of lanes for every set. It replaces branches, which processors mispredict
//! on random data. The outputs are as long as the input: no more entries pass than were read, so a
//! whole register always fits behind those that passed.

/// Defines `nonzero` and `reaching` with registers of `$lanes` entries.
///
/// The invoking module has, by these names, `load_f32`, `store_f32`, `store_u32`,
/// `first_positions()`, `advance` of positions by a register, and the type `LaneSet` with
/// `nonzero`, `reaching`, `count`, `compress_f32` and `compress_u32`.
macro_rules! compact {
    ($features:literal, $lanes:literal) => {
        #[target_feature(enable = $features)]
        pub(super) fn nonzero(indices: &mut [u32], values: &mut [f32], x: &[f32]) -> usize {
            let mut n = 0;
            let mut positions = first_positions();
            let (chunks, tail) = x.as_chunks::<$lanes>();
            for chunk in chunks {
                let x = load_f32(chunk);
                let set = LaneSet::nonzero(x);
                if let (Some(indices), Some(values)) =
                    (indices[n..].first_chunk_mut::<$lanes>(), values[n..].first_chunk_mut::<$lanes>())
                {
                    store_u32(indices, set.compress_u32(positions));
                    store_f32(values, set.compress_f32(x));
                }
                n += set.count();
                positions = advance(positions);
            }
            let first = x.len() - tail.len();
            for (i, &v) in tail.iter().enumerate() {
                indices[n] = (first + i) as u32;
                values[n] = v;
                n += usize::from(v != 0.0);
            }
            n
        }

        #[target_feature(enable = $features)]
        pub(super) fn reaching(
            indices: &mut [u32],
            x: &[f32],
            bounds: &[f32],
            norm: f32,
            least: f32,
        ) -> usize {
            let mut n = 0;
            let mut positions = first_positions();
            let (chunks, tail) = x.as_chunks::<$lanes>();
            for (x, bounds) in chunks.iter().zip(bounds.as_chunks().0) {
                let set = LaneSet::reaching(load_f32(x), load_f32(bounds), norm, least);
                if let Some(indices) = indices[n..].first_chunk_mut::<$lanes>() {
                    store_u32(indices, set.compress_u32(positions));
                }
                n += set.count();
                positions = advance(positions);
            }
            let first = x.len() - tail.len();
            for (i, (&x, &bound)) in tail.iter().zip(&bounds[first..]).enumerate() {
                indices[n] = (first + i) as u32;
                n += usize::from(!$crate::scalar::compact::below(x, bound, norm, least));
            }
            n
        }
    };
}
pub(crate) use compact;
