//! The arithmetic of RWKV models: quantized matrix-vector products, norms, activations and
//! recurrences, with the same bits on every instruction set.
//!
//! [`Kernels`] holds one function per operation at one level of vector instructions ([`Isa`]).
//! [`layout`] describes the bytes of weight tensors. [`quant`] describes how they are encoded. The
//! crate knows slices and shapes: no files, no layers, no threads. It allocates nothing.
//!
//! ```
//! use rwkv_edge_kernels::quant::TENSOR_SCALE;
//! use rwkv_edge_kernels::{ActivationMut, DType, Kernels, Matrix, matrix_bytes, padded_cols};
//!
//! let kernels = Kernels::best();
//! // Two rows of three weights, as Int8.
//! let mut data = vec![0; matrix_bytes(DType::Int8, 2, 3).unwrap()];
//! let rows = [1.0, 0.5, 0.0, -1.0, 0.0, 2.0];
//! kernels.encode_block_row(DType::Int8, &rows, 3, None, TENSOR_SCALE, &mut data)?;
//! let w = Matrix::new(DType::Int8, 2, 3, TENSOR_SCALE, &data)?;
//!
//! let padded = padded_cols(3);
//! let mut x = ActivationMut {
//!     values: &mut vec![0.0; padded],
//!     codes: &mut vec![0; padded],
//!     scales: &mut vec![0.0; padded / 32],
//!     sums: &mut vec![0; padded / 32],
//! };
//! x.values[..3].copy_from_slice(&[1.0, 2.0, 3.0]);
//!
//! kernels.quantize(&mut x);
//! let mut y = [0.0; 2];
//! kernels.matvec(&mut y, &w, 0, x.view());
//! assert!((y[0] - 2.0).abs() < 0.05 && (y[1] - 5.0).abs() < 0.05);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The numeric contract
//!
//! This section is normative. An implementation for another instruction set gives these bits for
//! all inputs, finite or not. Only the sign and the payload of NaNs are free. No other number
//! depends on them. Whoever hands results out gives all NaNs the bits `0x7FC00000`, as sessions do
//! with logits and states.
//!
//! ## Terms
//!
//! - All float operations are IEEE 754 single precision, rounded to nearest even, in the default
//!   environment: subnormal numbers are kept. A caller that may run in another environment calls
//!   [`default_float_environment`] first. Each written operation rounds once. `fma(a, b, c)` is
//!   `a * b + c` with one rounding. It is used where it is written and nowhere else. Sums are never
//!   reordered.
//! - `max(a, b)` is `a` if `a > b`, else `b`. `min(a, b)` is `a` if `a < b`, else `b`. If one of
//!   the two is a NaN, the result is therefore `b`.
//! - `f32(h)` of an fp16 or integer `h` is its value; exact for fp16, rounded for integers beyond
//!   2^24.
//! - `code(x, limit)` is `min(max(x, -limit), limit)` rounded to an integer, ties to even. A NaN
//!   gives `-limit`.
//! - `top(x...)` is the largest of the magnitudes `|x|`, compared as integers by their bits. A NaN
//!   is larger than everything, so it is the result if there is one.
//! - `settled(x)` is 0 if `|x| < 2^-100`, else `x`, which may be a NaN. Every new element of a
//!   recurrent state that may decay goes through it. The element then ends as 0 and not as a
//!   subnormal number, with which many processors are slow (`docs/DESIGN.md`, States that decay).
//! - Integers are two's complement of 32 bits and wrap. Nothing wraps within the ranges that
//!   [`layout`] and [`quant`] state.
//! - A *group* is 32 consecutive columns or outputs, `g` its number.
//! - *16 lanes*: element `i` belongs to lane `i mod 16`. A lane takes its elements in ascending
//!   order. Then lane `i` and lane `i + 8` are combined, in this order, for `i < 8`; then `i` and
//!   `i + 4`, `i + 2`, `i + 1`. Lanes without elements keep their start value and take part.
//!
//! ## `exp`
//!
//! ```text
//! x = min(88, max(-87, x))                              a NaN stays a NaN
//! z = fma(x, 1.442695, 12582912)                        1.442695 = 0x3fb8aa3b
//! n = z - 12582912
//! r = fma(n, 1.9046542e-9, fma(n, -0.6931472, x))       0x3102e308, 0xbf317218
//! p = 0.001381454                                       0x3ab511e8
//! p = fma(r, p, 0.008368745)                            0x3c091d10
//! p = fma(r, p, 0.04166839)                             0x3d2aac79
//! p = fma(r, p, 0.16666521)                             0x3e2aaa49
//! p = fma(r, p, 0.49999994)                             0x3efffffe
//! p = fma(r, p, 1)
//! p = fma(r, p, 1)
//! exp(x) = p * 2^n                                      2^n made from its exponent bits
//! ```
//!
//! The error is below 1 ulp for -87..=88. `exp(0)` is exactly 1. For arguments within ±0.03 the
//! function is monotone. Elsewhere neighbours may be out of order by the last bit.
//! `sigmoid(x) = 1 / (1 + exp(-x))`.
//!
//! ## `tanh`
//!
//! With `n` and `r` of `exp(-2 |x|)`, and `q` its `p` before the last `fma`:
//!
//! ```text
//! m = fma(r * q, 2^n, 2^n - 1)                          exp(-2 |x|) - 1
//! tanh(x) = m / (2 + m) with the sign of x
//! ```
//!
//! The error is below 3 ulp everywhere.
//!
//! ## `quantize`
//!
//! For every group, with `amax = top(values)`. If `amax < 2^-100`, codes, scale and sum are 0.
//! Otherwise:
//!
//! ```text
//! code_k = code(value_k * (127 / amax), 127)     scale = amax / 127     sum = sum of the codes
//! ```
//!
//! ## `matvec`
//!
//! For every row, with groups in ascending order from `acc = 0`, `s` the group's weight scale:
//!
//! ```text
//! Int8, Int4,  dot = sum of weight code * activation code, as integers
//! Int4n        acc = fma(f32(s) * scale_g, f32(dot), acc)
//! F32, F16     p = 0; then p = fma(f32(w_k), value_k, p) for the group's 32 columns, k ascending
//!              acc = acc + p
//! y = acc * tensor_scale
//! ```
//!
//! Int4 takes `dot` as `sum(nibble * code) - 8 * sum_g`, Int4n as
//! `sum(INT4N_TABLE[nibble] * code) + int4n_shift(s) * sum_g`. Activation codes of -128 give unspecified
//! results; `quantize` never makes them. Weight codes of -128 count as -128. A row depends on
//! nothing but its weights and the input: not on `first_row`, `out.len()` or other rows. `matmul`
//! gives for each of its vectors what `matvec` gives.
//!
//! ## `nonzero`
//!
//! Keeps `x_i` if `x_i != 0`: a NaN is kept, zeros of both signs are not.
//!
//! ## `max`, `largest_magnitude`, `reaching`
//!
//! Exact, as comparisons are. Of zeros of both signs `max` may give either. `reaching` keeps `i`
//! unless `x_i + bound_i * norm`, rounded after each operation, is less than `least`.
//!
//! ## `sparse_matvec`
//!
//! From `y_i = 0`, with the entries in the order given: `y_i = fma(f32(w_ji), x_j, y_i)`. At the
//! end `y_i = y_i * tensor_scale`.
//!
//! ## `sparse_accumulate` and `sparse_finish`
//!
//! `q` is 15 for Int4, 35 for Int4n and 127 for Int8, `n` the number of entries of the whole vector
//! (at least 1), `s_jg` the scale and `u_ji` the stored code (Int4: the nibble, code + 8; Int4n: the
//! code of the table). The caller gives `largest` and `bound_g`.
//!
//! ```text
//! cmax  = min(32767, max(1, floor(floor((2^31 - 1) / q) / n)))
//! m_g   = largest * bound_g
//! inv_g = 0 if m_g < 2^-100, else cmax / m_g
//! c_jg  = code((x_j * f32(s_jg)) * inv_g, cmax)
//! acc_i = sum of c_jg * u_ji, as integers           Int4: minus 8 * sum of c_jg
//!                                                   Int4n: plus sum of c_jg * int4n_shift(s_jg)
//! y_i   = f32(acc_i) * ((m_g / cmax) * tensor_scale)
//! ```
//!
//! The integer sums are exact (`docs/DESIGN.md`, Exact sparsity in integers). So the order of the
//! entries does not matter, nor how they are cut into calls, nor entries of value 0 as long as
//! `cmax` is 32767. With `largest = top(x_j for all entries j)` and `bound_g` not below any
//! magnitude of a scale, a coefficient is clamped only where rounding took it past `cmax`.
//!
//! ## `dequantize_record`
//!
//! Quantized: `f32(code) * (f32(scale) * tensor_scale)`. F32 and F16: `f32(w) * tensor_scale`.
//!
//! ## `record_dots`
//!
//! `dot` is that of `matvec` for Int4. Group `g` belongs to lane `g mod 8`. Every lane starts as 0
//! and takes its groups in ascending order.
//!
//! ```text
//! lane = fma(f32(s_g) * scale_g, f32(dot_g), lane)
//! y    = (sum of the lanes) * tensor_scale               lane i and i + 4, then i + 2, then i + 1
//! ```
//!
//! ## `layer_norm`
//!
//! ```text
//! mean     = sum(x_i) / n                                16 lanes from 0
//! variance = sum / n, with acc = fma(d, d, acc)          16 lanes from 0, d = x_i - mean
//! out_i    = fma((x_i - mean) * (1 / sqrt(variance + eps)), weight_i, bias_i)
//! ```
//!
//! ## `norm_shift`
//!
//! `layer_norm`; then for each output `lerp(h_prev, h, mix)`, or `lerp(h, h_prev, mix)` if the mix
//! weighs the previous token; then `quantize`.
//!
//! ## `softmax`
//!
//! ```text
//! max   = max(x_i)                                       16 lanes from -infinity,
//!                                                        lane = max(lane, x_i)
//! e_i   = exp(x_i - max)
//! sum   = sum(e_i)                                       16 lanes from 0
//! out_i = e_i / sum
//! ```
//!
//! ## `wkv4`
//!
//! For every channel. `factors(d)` is `(1, exp(-|d|))` if `d >= 0`, else, as for a NaN,
//! `(exp(-|d|), 1)`.
//!
//! ```text
//! e1, e2 = factors(pp - (time_first + k))
//! y  = fma(e1, aa, e2 * v) / fma(e1, bb, e2)
//! d  = pp + time_decay
//! e1, e2 = factors(d - k)
//! aa = settled(fma(e1, aa, e2 * v))
//! bb = fma(e1, bb, e2)                                  at least 1 after the first step
//! pp = max(d, k)
//! ```
//!
//! ## Element-wise
//!
//! `lerp`: `fma(t, b - a, a)`. `relu_squared`: `m * m` with `m = max(x, 0)`, so that a NaN gives 0.
//! `add`: `x + y`. `mul`: `a * b`. `silu_mul`: `(gate * sigmoid(gate)) * x`. `decay6`:
//! `exp(-exp(x))`. `decay7`: `exp(-0.606531 * sigmoid(x))`, the constant being 0xbf1b459e.
//!
//! ## `wkv6`, `wkv7`, `l2_normalize`, `dot3`
//!
//! As written at [`Kernels::wkv6`], [`Kernels::wkv7`], [`Kernels::l2_normalize`] and
//! [`Kernels::dot3`].
//!
//! # Adding an instruction set
//!
//! 1. Add the level to [`Isa`], with its name and its detection.
//! 2. Add its table to `Kernels::for_isa`: a constant that takes, by struct update, what it does
//!    not improve from the level that it builds on.
//! 3. Where compilers vectorise an operation well, instantiate the scalar body with the level's
//!    features. Where a macro of `generic` has the body, invoke it. Write the rest by hand, as safe
//!    functions whose loads and stores know their lengths by type.
//!
//! The tests compare every available level with scalar, and scalar with pinned results. Set
//! `RWKV_EDGE_EXPECT_ISA` to the name of a level to be sure that they ran on it.

#![deny(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "arm")]
mod arm;
mod dispatch;
mod environment;
mod fp16;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod generic;
mod isa;
pub mod layout;
mod math;
pub mod quant;
mod scalar;
mod table;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use environment::{FloatEnvironment, default_float_environment};
pub use isa::{Isa, ParseIsaError};
pub use layout::*;
pub use math::{exp, settled, sigmoid, tanh};
pub use table::{Kernels, MAX_READ_STREAMS, SoftmaxStats};
