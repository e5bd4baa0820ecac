//! Tests of the kernels: every instruction set against scalar, bit by bit; scalar against
//! independent f64 arithmetic; encoding against its promises; and the checks that guard the unsafe
//! code.

mod activation;
// Only safe code runs in these, too much of it for Miri.
#[cfg(not(miri))]
mod activation_reference;
mod compare;
#[cfg(not(miri))]
mod encode;
mod environment;
#[cfg(not(miri))]
mod exp;
#[cfg(not(miri))]
mod feedback;
#[cfg(not(miri))]
mod golden;
mod guard;
mod isa;
mod layout;
mod panics;
#[cfg(not(miri))]
mod reference;
mod support;
mod wkv;
#[cfg(not(miri))]
mod wkv_reference;
