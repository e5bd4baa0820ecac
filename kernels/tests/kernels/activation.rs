//! Element-wise operations, the L2 norm and the product of three vectors on every level against
//! scalar, and their checks.

use rwkv_edge_kernels::Kernels;

use crate::compare::{canaries, check_f32, for_vectors};
use crate::panics::rejects_each_length;
use crate::support::{Report, scalar, vector_levels};

type InPlace = fn(&Kernels, &mut [f32]);

const IN_PLACE: [(&str, InPlace); 5] = [
    ("tanh", Kernels::tanh),
    ("sigmoid", Kernels::sigmoid),
    ("decay6", Kernels::decay6),
    ("decay7", Kernels::decay7),
    ("l2_normalize", Kernels::l2_normalize),
];

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn operations_in_place() {
    let mut report = Report::default();
    for_vectors(52, |shape, _, [x, _, _]| {
        for (what, op) in IN_PLACE {
            check_f32(&mut report, what, shape, x, op);
        }
    });
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn products() {
    let mut report = Report::default();
    for_vectors(53, |shape, n, [a, b, _]| {
        check_f32(&mut report, "mul", shape, &canaries(n), |kernels, out| kernels.mul(out, a, b));
        check_f32(&mut report, "silu_mul", shape, &canaries(n), |kernels, out| kernels.silu_mul(out, a, b));
    });
    report.finish();
}

#[test]
#[cfg_attr(miri, ignore = "no unsafe code on any level")]
fn dot3() {
    let mut report = Report::default();
    for_vectors(54, |shape, _, [a, b, c]| {
        let wanted = scalar().dot3(a, b, c);
        for kernels in vector_levels() {
            report.compare("dot3", kernels.isa(), shape, &[wanted], &[kernels.dot3(a, b, c)]);
        }
    });
    report.finish();
}

#[test]
fn products_reject_differing_lengths() {
    rejects_each_length(3, |kernels, v| {
        let [out, gate, x] = v else { unreachable!() };
        kernels.silu_mul(out, gate, x);
    });
    rejects_each_length(3, |kernels, v| {
        let [out, a, b] = v else { unreachable!() };
        kernels.mul(out, a, b);
    });
    rejects_each_length(3, |kernels, v| {
        let [a, b, c] = v else { unreachable!() };
        kernels.dot3(a, b, c);
    });
}
