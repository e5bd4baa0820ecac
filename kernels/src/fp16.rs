//! Half precision: conversions in integer and fp32 arithmetic, which vectorise on every target.

/// The value of an fp16 bit pattern. Exact; subnormals, infinities and NaNs included.
#[inline(always)]
pub(crate) fn to_f32(half: u16) -> f32 {
    /// Moves the exponent bias from fp16's 15 to fp32's 127.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let half = u32::from(half);
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * REBIAS;
    let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (half & 0x8000) << 16)
}

/// The nearest fp16 bit pattern, ties to even. Values from 65520 on become infinite.
#[inline(always)]
pub(crate) fn from_f32(value: f32) -> u16 {
    /// The bits of 2^-14 and 2^16: the range where the fp16 exponent is an ordinary one.
    const NORMAL: u32 = 113 << 23;
    const INFINITE: u32 = 143 << 23;
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // The last place of a number in 0.5..1 weighs 2^-24, as the last place of an fp16 subnormal
    // does.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0x0fff + odd) >> 13;
    let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let finite = if magnitude < NORMAL { subnormal } else { normal };
    let half = if magnitude >= INFINITE { special } else { finite };
    ((bits >> 16) & 0x8000 | half & 0x7fff) as u16
}

/// The fp16 number at position `i` of little-endian bytes.
#[inline(always)]
pub(crate) fn read(bytes: &[u8], i: usize) -> f32 {
    to_f32(read_bits(bytes, i))
}

/// The bits of the number that [`read`] gives.
#[inline(always)]
pub(crate) fn read_bits(bytes: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
}
