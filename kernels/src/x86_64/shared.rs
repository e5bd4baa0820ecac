//! The scalar bodies again, compiled for AVX2 and FMA: the compiler vectorises them, and gives the same bits.

use crate::layout::{ActivationMut, Records};
use crate::scalar;
use crate::table::SoftmaxStats;

macro_rules! instantiate {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(#[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments, reason = "as many as the kernel has")]
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            scalar::$name($($arg),*)
        })*
    };
}

instantiate! {
    fn quantize(x: &mut ActivationMut<'_>);
    fn dequantize_record(out: &mut [f32], w: &Records<'_>, index: usize);
    fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32);
    fn lerp(out: &mut [f32], a: &[f32], b: &[f32], t: &[f32]);
    fn wkv4(
        y: &mut [f32], k: &[f32], v: &[f32], time_first: &[f32], time_decay: &[f32],
        aa: &mut [f32], bb: &mut [f32], pp: &mut [f32]
    );
    fn sigmoid_mul(out: &mut [f32], gate: &[f32], x: &[f32]);
    fn relu_squared(x: &mut [f32]);
    fn add(x: &mut [f32], y: &[f32]);
    fn softmax(out: &mut [f32], x: &[f32]) -> SoftmaxStats;
}
