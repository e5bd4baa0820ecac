//! Models of the instructions of `shim`, lane by lane, for Miri.

use core::arch::aarch64::*;

use crate::fp16;

/// The lanes of a register.
fn lanes<From, To, const N: usize>(from: From) -> [To; N] {
    const { assert!(size_of::<From>() == size_of::<[To; N]>()) };
    // SAFETY: vectors and arrays of integers or floats have all bit patterns, and the sizes are
    // equal.
    unsafe { core::mem::transmute_copy(&from) }
}

/// The register with these lanes.
fn vector<From, To, const N: usize>(from: [From; N]) -> To {
    const { assert!(size_of::<To>() == size_of::<[From; N]>()) };
    // SAFETY: as in `lanes`.
    unsafe { core::mem::transmute_copy(&from) }
}

pub(super) fn broadcast(codes: &[[i8; 4]; 4]) -> [int8x16_t; 4] {
    codes.map(|codes| vector([codes; 4]))
}

pub(super) fn half_to_f32(halves: uint16x8_t) -> [float32x4_t; 2] {
    let halves: [u16; 8] = lanes(halves);
    let (values, _) = halves.as_chunks::<4>();
    [vector(values[0].map(fp16::to_f32)), vector(values[1].map(fp16::to_f32))]
}

pub(super) fn look_up(table: int8x16_t, positions: int8x16_t) -> int8x16_t {
    let (table, positions): ([i8; 16], [i8; 16]) = (lanes(table), lanes(positions));
    vector(positions.map(|i| table[i as usize]))
}

pub(super) fn look_up_parts(table: &[[i8; 16]; 7], positions: int8x16_t) -> int8x16_t {
    let positions: [i8; 16] = lanes(positions);
    vector(positions.map(|i| table.as_flattened()[i as usize]))
}

pub(super) fn add_pairs(acc: int32x4_t, x: int16x8_t) -> int32x4_t {
    let (acc, x): ([i32; 4], [i16; 8]) = (lanes(acc), lanes(x));
    vector::<i32, _, 4>(core::array::from_fn(|i| {
        acc[i].wrapping_add(i32::from(x[2 * i]) + i32::from(x[2 * i + 1]))
    }))
}

pub(super) fn sdot_rows<const QUAD: usize>(
    sums: [int32x4_t; 4],
    w: [int8x16_t; 4],
    x: int8x16_t,
) -> [int32x4_t; 4] {
    let x: [[i8; 4]; 4] = lanes(x);
    core::array::from_fn(|r| sdot(sums[r], w[r], vector([x[QUAD]; 4])))
}

pub(super) fn sdot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let (acc, w, x): ([i32; 4], [[i8; 4]; 4], [[i8; 4]; 4]) = (lanes(acc), lanes(w), lanes(x));
    vector::<i32, _, 4>(core::array::from_fn(|i| {
        w[i].iter().zip(x[i]).fold(acc[i], |acc, (&w, x)| acc.wrapping_add(i32::from(w) * i32::from(x)))
    }))
}

pub(super) fn smmla(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let (acc, w, x): ([i32; 4], [[i8; 8]; 2], [[i8; 8]; 2]) = (lanes(acc), lanes(w), lanes(x));
    vector::<i32, _, 4>(core::array::from_fn(|i| {
        let products = w[i / 2].iter().zip(x[i % 2]);
        products.fold(acc[i], |acc, (&w, x)| acc.wrapping_add(i32::from(w) * i32::from(x)))
    }))
}
