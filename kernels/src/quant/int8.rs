//! The scale of Int8.

use super::ScaleOverflow;
use super::group::{Group, largest, with_scale};
use crate::fp16;
use crate::layout::GROUP_SIZE;

/// Encodes a group as Int8.
#[inline(always)]
pub(crate) fn encode(u: &[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow> {
    let amax = largest(u);
    let mut scale = fp16::from_f32(amax / 127.0);
    if !fp16::to_f32(scale).is_finite() {
        return Err(ScaleOverflow { largest: amax });
    }
    if amax > 127.5 * fp16::to_f32(scale) {
        scale += 1;
    }
    if amax <= 0.5 * fp16::to_f32(scale) {
        scale = 0;
    }
    Ok(with_scale(u, scale, -127.0, 127.0))
}
