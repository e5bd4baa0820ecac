//! Products of codes and coefficients, for registers of both widths.

/// Defines `load_sums`, `store_sums`, `add_sums`, `to_values`, `add_int4`, `add_int4n`, `add_int8`,
/// `order_int4`, `order_int4n` and `order_int8` for registers of `LANES` times 128 bits.
/// `sparse_product` takes them by these names.
///
/// The invoking module has, by these names, the type `Register` and its intrinsics, `load_i32`,
/// `store_i32`, `store_f32`, `int4n_codes`, and `multiply_add(sums, a, b)`, which adds the products
/// of the pairs of 16 bits in every 32-bit lane.
macro_rules! sparse_codes {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn load_sums<const SUMS: usize>(sums: &[[i32; 4 * LANES]; SUMS]) -> [Register; SUMS] {
            let mut acc = [zero(); SUMS];
            for (acc, sum) in acc.iter_mut().zip(sums) {
                *acc = load_i32(sum);
            }
            acc
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn store_sums<const SUMS: usize>(sums: &mut [[i32; 4 * LANES]; SUMS], acc: [Register; SUMS]) {
            for (sum, acc) in sums.iter_mut().zip(acc) {
                store_i32(sum, acc);
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn add_sums<const SUMS: usize>(
            acc: [Register; SUMS],
            sums: &[[i32; 4 * LANES]; SUMS],
        ) -> [Register; SUMS] {
            let mut acc = acc;
            for (acc, sum) in acc.iter_mut().zip(sums) {
                *acc = add(*acc, load_i32(sum));
            }
            acc
        }

        /// The sums times the scales, given by their bits.
        #[target_feature(enable = $features)]
        #[inline]
        fn to_values<const SUMS: usize>(
            sums: [Register; SUMS],
            scales: Register,
        ) -> [[f32; 4 * LANES]; SUMS] {
            let mut values = [[0.0; 4 * LANES]; SUMS];
            for (value, sum) in values.iter_mut().zip(sums) {
                store_f32(value, mul(to_floats(sum), as_floats(scales)));
            }
            values
        }

        /// Adds the four nibbles of every word, first of the first four words in each 128 bits,
        /// then of the last four: nibble 3 alone, 2 and up, 1 and up, and 0 to 2.
        ///
        /// A lower nibble keeps the higher ones above it, which saves masks. `order_int4` takes
        /// them apart again. This is exact, as integers wrap: only the sum of a single nibble has
        /// to fit 32 bits.
        #[target_feature(enable = $features)]
        #[inline]
        fn add_int4(sums: [Register; 8], a: Register, b: Register, c: Register) -> [Register; 8] {
            let mut sums = sums;
            let pairs = [unpack_low_words(a, b), unpack_high_words(a, b)];
            for (sums, words) in sums.as_chunks_mut::<4>().0.iter_mut().zip(pairs) {
                sums[0] = multiply_add(sums[0], shift_right_words::<12>(words), c);
                sums[1] = multiply_add(sums[1], shift_right_words::<8>(words), c);
                sums[2] = multiply_add(sums[2], shift_right_words::<4>(words), c);
                sums[3] = multiply_add(sums[3], and(words, splat_words(0x0fff)), c);
            }
            sums
        }

        /// Adds both codes of every word, first of the low nibbles, then of the high ones: of the
        /// first four words in each 128 bits, then of the last four. Codes are those of the table +
        /// 32. The high one comes alone, then 256 times the high one plus the low one.
        #[target_feature(enable = $features)]
        #[inline]
        fn add_int4n(sums: [Register; 8], a: Register, b: Register, c: Register) -> [Register; 8] {
            let mut sums = sums;
            let ([low_a, high_a], [low_b, high_b]) = (int4n_codes(a), int4n_codes(b));
            let pairs = [
                unpack_low_words(low_a, low_b),
                unpack_high_words(low_a, low_b),
                unpack_low_words(high_a, high_b),
                unpack_high_words(high_a, high_b),
            ];
            for (sums, words) in sums.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                sums[0] = multiply_add(sums[0], shift_right_words::<8>(words), c);
                sums[1] = multiply_add(sums[1], words, c);
            }
            sums
        }

        /// Adds both bytes of every word, first of the first four words in each 128 bits, then of
        /// the last four: the high byte alone, then 256 times the high byte plus the low byte plus
        /// 128.
        #[target_feature(enable = $features)]
        #[inline]
        fn add_int8(sums: [Register; 4], a: Register, b: Register, c: Register) -> [Register; 4] {
            let mut sums = sums;
            let pairs = [unpack_low_words(a, b), unpack_high_words(a, b)];
            for (sums, words) in sums.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                let both = xor(words, splat_words(0x80));
                sums[0] = multiply_add(sums[0], shift_right_signed_words::<8>(words), c);
                sums[1] = multiply_add(sums[1], both, c);
            }
            sums
        }

        /// Takes the nibbles of `add_int4` apart, puts the outputs in order, and subtracts 8 times
        /// the sum of coefficients from each.
        #[target_feature(enable = $features)]
        #[inline]
        fn order_int4(sums: [Register; 8], coefficients: Register) -> [Register; 8] {
            let correction = shift_left::<3>(coefficients);
            let [a, b, c, d, e, f, g, h] = sums;
            let (first, second) =
                (split_int4([a, b, c, d], correction), split_int4([e, f, g, h], correction));
            let ([l0, l1], [l2, l3]) = (zip(first[0], first[2]), zip(second[0], second[2]));
            let ([h0, h1], [h2, h3]) = (zip(first[1], first[3]), zip(second[1], second[3]));
            [l0, l1, l2, l3, h0, h1, h2, h3]
        }

        /// The sums of nibbles 0 to 3, given those of 3, of 2 + 16 * 3, of 1 + 16 * 2 + 256 * 3,
        /// and of 0 + 16 * 1 + 256 * 2.
        #[target_feature(enable = $features)]
        #[inline]
        fn split_int4(
            [from_3, from_2, from_1, from_0]: [Register; 4],
            correction: Register,
        ) -> [Register; 4] {
            let second = sub(from_2, shift_left::<4>(from_3));
            let first = sub(from_1, shift_left::<4>(from_2));
            let higher = add(first, shift_left::<4>(second));
            let zeroth = sub(from_0, shift_left::<4>(higher));
            [
                sub(zeroth, correction),
                sub(first, correction),
                sub(second, correction),
                sub(from_3, correction),
            ]
        }

        /// Takes the codes of `add_int4n` apart, puts the outputs in order, and subtracts the sum of
        /// coefficients, which counts what codes have added.
        #[target_feature(enable = $features)]
        #[inline]
        fn order_int4n([a, b, c, d, e, f, g, h]: [Register; 8], correction: Register) -> [Register; 8] {
            let order = |high, both| {
                let low = sub(both, shift_left::<8>(high));
                zip(sub(low, correction), sub(high, correction))
            };
            let ([l0, l1], [l2, l3]) = (order(a, b), order(c, d));
            let ([h0, h1], [h2, h3]) = (order(e, f), order(g, h));
            [l0, l1, l2, l3, h0, h1, h2, h3]
        }

        /// Takes the bytes of `add_int8` apart and puts the outputs in order.
        #[target_feature(enable = $features)]
        #[inline]
        fn order_int8([a, b, c, d]: [Register; 4], coefficients: Register) -> [Register; 4] {
            let correction = shift_left::<7>(coefficients);
            let low = |high, both| sub(sub(both, shift_left::<8>(high)), correction);
            let ([l0, l1], [h0, h1]) = (zip(low(a, b), a), zip(low(c, d), c));
            [l0, l1, h0, h1]
        }

        /// The numbers of both in turn, within 128 bits.
        #[target_feature(enable = $features)]
        #[inline]
        fn zip(even: Register, odd: Register) -> [Register; 2] {
            [unpack_low(even, odd), unpack_high(even, odd)]
        }
    };
}
pub(super) use sparse_codes;
