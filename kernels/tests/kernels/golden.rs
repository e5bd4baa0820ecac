//! Pinned results: the numeric contract of the crate documentation, as fingerprints of outputs.
//!
//! A mismatch on one machine only is a fault of that machine's kernels or compiler. A mismatch on
//! all is a change of the contract, which breaks the self-tests of model files in the world.

use rwkv_edge_kernels::{DType, Isa, Kernels, Sparse, exp, sigmoid};

use crate::support::{Bytes, Fill, Input, Rng, TestMatrix, TestRecords, fingerprint, sparse_product};

/// Fingerprint of floats; all NaNs count as one.
fn print_of(values: &[f32]) -> u64 {
    let bits = |&v: &f32| if v.is_nan() { [0xff; 4] } else { v.to_bits().to_le_bytes() };
    fingerprint(&values.iter().flat_map(bits).collect::<Vec<u8>>())
}

/// Runs `op` on every available level and compares with `wanted`.
fn check(what: &str, wanted: u64, op: impl Fn(&Kernels) -> Vec<f32>) {
    for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
        let got = print_of(&op(kernels));
        assert_eq!(got, wanted, "{what} {}: got {got:#018x}", kernels.isa());
    }
}

/// 777 values of all kinds, one kind after the other.
fn mixed(seed: u64) -> Vec<f32> {
    Fill::ALL.iter().flat_map(|fill| fill.vector(111, &mut Rng(seed))).collect()
}

#[test]
fn exp_and_sigmoid_are_pinned() {
    let floats = || (0..=u32::MAX).step_by(4099).map(f32::from_bits);
    assert_eq!(print_of(&floats().map(exp).collect::<Vec<_>>()), 0x9fde_4394_cc65_b4c8, "exp");
    assert_eq!(print_of(&floats().map(sigmoid).collect::<Vec<_>>()), 0xd4aa_dd9c_206c_8387, "sigmoid");
}

#[test]
fn quantize_is_pinned() {
    check("quantize", 0xadc2_c998_10d0_e55f, |kernels| {
        let input = Input::new(&mixed(70), kernels);
        let integers = input.codes.iter().map(|&q| i32::from(q)).chain(input.sums.iter().copied());
        input.scales.iter().copied().chain(integers.map(|q| q as f32)).collect()
    });
}

#[test]
fn matvec_is_pinned() {
    for (dtype, wanted) in DType::ALL.into_iter().zip([
        0xb776_c55c_c0d8_af30,
        0xe2fe_7d1e_650c_e01a,
        0x5ea0_b577_384f_d353,
        0xe39d_21e3_794c_d527,
        0xaab8_5a69_1993_8555,
    ]) {
        let w = TestMatrix::new(dtype, 77, 200, Bytes::Encoded, &mut Rng(71));
        check(&format!("matvec {dtype}"), wanted, |kernels| {
            let mut out = vec![0.0; 77];
            kernels.matvec(&mut out, &w.view(), 0, Input::new(&Rng(72).normals(200), kernels).view());
            out
        });
    }
}

#[test]
fn sparse_product_is_pinned() {
    for (dtype, wanted) in DType::ALL.into_iter().zip([
        0xd58f_fcf6_5ba5_39bb,
        0x0cc5_469a_62d0_aaa7,
        0x1b17_578c_287e_3e93,
        0xded6_470e_98a5_71a1,
        0x67c3_3ea4_bc50_7cbf,
    ]) {
        let w = TestRecords::new(dtype, 5000, 77, Bytes::Encoded, &mut Rng(73));
        let indices: Vec<u32> = (0..5000).collect();
        let values = Rng(74).normals(5000);
        check(&format!("sparse product {dtype}"), wanted, |kernels| {
            // The largest coefficient is 32767 for few entries and smaller for many.
            let mut out = vec![0.0; 2 * 77];
            for (out, active) in out.chunks_mut(77).zip([100, 5000]) {
                let x = Sparse { indices: &indices[..active], values: &values[..active] };
                sparse_product(kernels, out, &w, x, 700);
            }
            out
        });
    }
}

#[test]
fn vector_operations_are_pinned() {
    type Op = fn(&Kernels, &mut [f32], [&[f32]; 3]);
    let operations: [(&str, u64, Op); 5] = [
        ("layer_norm", 0x847a_c260_b965_89ae, |kernels, out, [x, w, b]| {
            kernels.layer_norm(out, x, w, b, 1e-5)
        }),
        ("lerp", 0x372e_5d6d_3941_de04, |kernels, out, [a, b, t]| kernels.lerp(out, a, b, t)),
        ("relu_squared", 0x084e_a5b3_f86e_e33d, |kernels, out, [x, _, _]| {
            out.copy_from_slice(x);
            kernels.relu_squared(out);
        }),
        ("add", 0xb07b_8fbe_68c0_2215, |kernels, out, [x, y, _]| {
            out.copy_from_slice(x);
            kernels.add(out, y);
        }),
        ("softmax", 0x9fce_3a7a_0650_0f7e, |kernels, out, [x, _, _]| {
            let stats = kernels.softmax(out, x);
            out[0] += stats.max + stats.sum;
        }),
    ];
    for (what, wanted, op) in operations {
        check(what, wanted, |kernels| {
            // Reductions over values of all kinds would only give NaNs.
            let reduces = ["layer_norm", "softmax"].contains(&what);
            let input = |seed| if reduces { Rng(seed).normals(777) } else { mixed(seed) };
            let (a, b, c) = (input(75), input(76), input(77));
            let mut out = vec![0.0; 777];
            op(kernels, &mut out, [&a, &b, &c]);
            out
        });
    }
}

#[test]
fn wkv4_is_pinned() {
    check("wkv4", 0x199b_3b87_34ce_392e, |kernels| {
        let n = 777;
        let (k, v, u) = (mixed(78), mixed(79), Rng(80).normals(n));
        let decay: Vec<f32> = Rng(81).normals(n).iter().map(|w| -w.abs()).collect();
        let mut out = vec![0.0; 4 * n];
        out[3 * n..].fill(-1e30);
        for (k, v) in [(&k, &v), (&v, &u), (&u, &k)] {
            let (y, rest) = out.split_at_mut(n);
            let (aa, rest) = rest.split_at_mut(n);
            let (bb, pp) = rest.split_at_mut(n);
            kernels.wkv4(y, k, v, &u, &decay, aa, bb, pp);
        }
        out
    });
}

#[test]
fn the_later_of_two_zeros_is_the_larger() {
    for kernels in Isa::ALL.iter().filter_map(|&isa| Kernels::for_isa(isa)) {
        for (first, second) in [(0.0, -0.0), (-0.0, 0.0)] {
            let mut x = [-1.0; 32];
            (x[0], x[16]) = (first, second);
            let max = kernels.softmax(&mut [0.0; 32], &x).max;
            assert_eq!(max.to_bits(), f32::to_bits(second), "{}", kernels.isa());
        }
    }
}
