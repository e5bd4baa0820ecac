//! Tests of the kernels: every instruction set against scalar, bit by bit; scalar against independent f64
//! arithmetic; encoding against its promises; and the checks that guard the unsafe code.

mod compare;
mod encode;
mod exp;
mod guard;
mod isa;
mod layout;
mod panics;
mod reference;
mod support;
