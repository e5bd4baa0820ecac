//! The portable bodies again, compiled for AVX2 and FMA. The compiler vectorises them and keeps
//! their bits.

use crate::layout::{GROUP_SIZE, ROW_INTERLEAVE, Records};
use crate::quant::feedback::{self, GroupRows, Outputs, Rounded, Rows};
use crate::quant::{self, Group, ScaleOverflow, Tile};
use crate::scalar;
use crate::table::SoftmaxStats;

macro_rules! instantiate {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $module:ident;)*) => {
        $(#[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments, reason = "as many as the kernel has")]
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            $module::$name($($arg),*)
        })*
    };
}

instantiate! {
    fn dequantize_record(out: &mut [f32], w: &Records<'_>, index: usize) = scalar;
    fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) = scalar;
    fn lerp(out: &mut [f32], a: &[f32], b: &[f32], t: &[f32]) = scalar;
    fn wkv4(
        y: &mut [f32], k: &[f32], v: &[f32], time_first: &[f32], time_decay: &[f32],
        aa: &mut [f32], bb: &mut [f32], pp: &mut [f32]
    ) = scalar;
    fn relu_squared(x: &mut [f32]) = scalar;
    fn largest_magnitude(x: &[f32]) -> f32 = scalar;
    fn max(x: &[f32]) -> f32 = scalar;
    fn add(x: &mut [f32], y: &[f32]) = scalar;
    fn softmax(out: &mut [f32], x: &[f32]) -> SoftmaxStats = scalar;
    fn tanh(x: &mut [f32]) = scalar;
    fn sigmoid(x: &mut [f32]) = scalar;
    fn silu_mul(out: &mut [f32], gate: &[f32], x: &[f32]) = scalar;
    fn mul(out: &mut [f32], a: &[f32], b: &[f32]) = scalar;
    fn decay6(x: &mut [f32]) = scalar;
    fn decay7(x: &mut [f32]) = scalar;
    fn l2_normalize(x: &mut [f32]) = scalar;
    fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 = scalar;
    fn encode_int8(values: &[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow> = quant;
    fn encode_int4(values: &[f32; GROUP_SIZE]) -> Result<Group, ScaleOverflow> = quant;
    fn carry_rows(targets: &mut [Rows], errors: &[Rows; GROUP_SIZE], factors: &[[f32; GROUP_SIZE]]) = feedback;
    fn carry_outputs(
        targets: &mut [Outputs], errors: &[Outputs; GROUP_SIZE], factors: &[[f32; GROUP_SIZE]]
    ) = feedback;
    fn round_int8(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) = feedback;
    fn round_int4(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) = feedback;
    fn round_int4n(group: &GroupRows<'_>, scales: &[u16; ROW_INTERLEAVE], rounded: &mut Rounded) = feedback;
    fn subtract_products(
        tile: &mut Tile, a: &[[f32; GROUP_SIZE]], b: &[[f32; GROUP_SIZE]], d: &[f32]
    ) = feedback;
}
