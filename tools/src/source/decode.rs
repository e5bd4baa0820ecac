//! Little-endian elements of the four float types, and blocks of quantized ones, to `f32`.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::gguf;
use super::tensor::SourceDType;

/// Decodes `out.len()` elements, the first of which is element `skip` of the first block. `bytes`
/// holds exactly their blocks; the other types have blocks of one element.
///
/// BF16, F16 and F32 convert exactly (signalling NaNs may turn quiet); F64 rounds to nearest.
pub(super) fn decode(dtype: SourceDType, bytes: &[u8], skip: usize, out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), (skip + out.len()).div_ceil(dtype.block_len()) * dtype.size());
    match dtype {
        SourceDType::Block(block) => gguf::decode(block, bytes, skip, out),
        SourceDType::BF16 => {
            for (value, &raw) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16);
            }
        }
        SourceDType::F16 => decode_f16(bytes, out),
        SourceDType::F32 => {
            for (value, &raw) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(raw);
            }
        }
        SourceDType::F64 => {
            for (value, &raw) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(raw) as f32;
            }
        }
    }
}

/// In blocks, because the conversion with the CPU's own instructions works on slices of `f16`.
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    const BLOCK: usize = 512;
    let mut block = [f16::ZERO; BLOCK];
    for (bytes, out) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
        let block = &mut block[..out.len()];
        for (half, &raw) in block.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(raw);
        }
        block.convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a binary float of `exponent_bits` and `fraction_bits`, by its definition.
    fn by_definition(bits: u16, exponent_bits: u32, fraction_bits: u32) -> f64 {
        let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1u32 << fraction_bits);
        let exponent = i32::from(bits >> fraction_bits & ((1 << exponent_bits) - 1));
        let bias = (1 << (exponent_bits - 1)) - 1;
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            e if e == (1 << exponent_bits) - 1 && fraction == 0.0 => f64::INFINITY,
            e if e == (1 << exponent_bits) - 1 => f64::NAN,
            e => (1.0 + fraction) * 2f64.powi(e - bias),
        };
        if bits >> 15 == 1 { -magnitude } else { magnitude }
    }

    fn check_all_patterns(dtype: SourceDType, exponent_bits: u32, fraction_bits: u32) {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        decode(dtype, &bytes, 0, &mut out);
        for (bits, found) in (0..=u16::MAX).zip(out) {
            let expected = by_definition(bits, exponent_bits, fraction_bits);
            let same = f64::from(found) == expected && found.is_sign_negative() == (bits >> 15 == 1);
            assert!(
                same || (found.is_nan() && expected.is_nan()),
                "{dtype} {bits:#06x}: {found} is not {expected}"
            );
        }
    }

    #[test]
    fn every_bf16_decodes_exactly() {
        check_all_patterns(SourceDType::BF16, 8, 7);
    }

    #[test]
    fn every_f16_decodes_exactly() {
        check_all_patterns(SourceDType::F16, 5, 10);
    }

    #[test]
    fn f32_keeps_its_bits() {
        let patterns = [0, 0x8000_0000, 1, 0x0080_0000, 0x3f80_0001, 0x7f7f_ffff, 0x7f80_0000, 0xffc1_2345];
        let bytes: Vec<u8> = patterns.iter().copied().flat_map(u32::to_le_bytes).collect();
        let mut out = [0.0; 8];
        decode(SourceDType::F32, &bytes, 0, &mut out);
        assert_eq!(out.map(f32::to_bits), patterns);
    }

    #[test]
    fn f64_rounds_to_nearest_even() {
        let ulp = f64::from(f32::EPSILON);
        let cases = [
            (1.0 + 0.5 * ulp, 1.0),
            (1.0 + 0.75 * ulp, 1.0 + f32::EPSILON),
            (1.0 + 1.5 * ulp, 1.0 + 2.0 * f32::EPSILON),
            (1e300, f32::INFINITY),
            (-1e-300, -0.0),
            (1e-45, f32::from_bits(1)),
        ];
        for (wide, expected) in cases {
            let mut out = [7.0];
            decode(SourceDType::F64, &f64::to_le_bytes(wide), 0, &mut out);
            assert_eq!(out[0].to_bits(), f32::to_bits(expected), "{wide}");
        }
    }

    #[test]
    fn lengths_around_the_f16_block_decode_every_element() {
        for len in [0, 1, 511, 512, 513, 1024, 1500] {
            let bytes: Vec<u8> = (0..len as u16).flat_map(u16::to_le_bytes).collect();
            let mut out = vec![-1.0; len];
            decode(SourceDType::F16, &bytes, 0, &mut out);
            assert!(
                out.iter().zip(0..).all(|(&found, bits)| found == f16::from_bits(bits).to_f32()),
                "{len}"
            );
        }
    }
}
