@ Products of block rows of float matrices: 16 rows with a whole vector.
@
@ void rwkv_edge_neon32_f32_rows(float acc[16], const u8 *lines, usize groups, const float *values)
@ void rwkv_edge_neon32_f16_rows(the same)
@
@ `groups` times 32 columns (at least once), a line of 16 weights for each. `acc` gets the sums before the tensor
@ scale. NEON loads (at any address), moves and widens halves, which is exact for all of them; the arithmetic is
@ VFP's, which keeps subnormal numbers.
@
@   r0 acc     r1 lines     r2 groups left     r3 values     r12 columns of the group left
@   s0       the column's value
@   s4-s15   weights
@   s16-s31  partial sums of the 16 rows (q4-q7)
@   q8, q9   weights as halves
@   q12-q15  acc

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

        @ \p0..\p3 += weights \w0..\w3 times the value.
        .macro fma4 p0, p1, p2, p3, w0, w1, w2, w3
        vfma.f32 \p0, \w0, s0
        vfma.f32 \p1, \w1, s0
        vfma.f32 \p2, \w2, s0
        vfma.f32 \p3, \w3, s0
        .endm

        .macro add4 a0, a1, a2, a3, b0, b1, b2, b3
        vadd.f32 \a0, \a0, \b0
        vadd.f32 \a1, \a1, \b1
        vadd.f32 \a2, \a2, \b2
        vadd.f32 \a3, \a3, \b3
        .endm

        @ Rows 0..12 with the weights of s4-s15, then those that \last puts into s4-s7.
        .macro fma16 last:vararg
        fma4    s16, s17, s18, s19, s4, s5, s6, s7
        \last
        fma4    s20, s21, s22, s23, s8, s9, s10, s11
        fma4    s24, s25, s26, s27, s12, s13, s14, s15
        fma4    s28, s29, s30, s31, s4, s5, s6, s7
        .endm

        .macro f32_line
        vld1.8  {d2-d5}, [r1]!
        vld1.8  {d6-d7}, [r1]!
        pld     [r1, #512]
        fma16   vld1.8 {d2-d3}, [r1]!
        .endm

        .macro f16_line
        vld1.8  {d16-d19}, [r1]!
        vcvt.f32.f16 q1, d16
        vcvt.f32.f16 q2, d17
        vcvt.f32.f16 q3, d18
        pld     [r1, #512]
        fma16   vcvt.f32.f16 q1, d19
        .endm

        .macro float_rows name, line
        .pushsection .text.\name, "ax", %progbits
        .p2align 4
        .global \name
        .hidden \name
        .type   \name, %function
\name:
        vpush   {d8-d15}
        vmov.i32 q12, #0
        vmov.i32 q13, #0
        vmov.i32 q14, #0
        vmov.i32 q15, #0
1:      vmov.i32 q4, #0
        vmov.i32 q5, #0
        vmov.i32 q6, #0
        vmov.i32 q7, #0
        mov     r12, #32
2:      vldmia  r3!, {s0}
        \line
        subs    r12, r12, #1
        bne     2b
        vmov    q0, q12
        vmov    q1, q13
        vmov    q2, q14
        vmov    q3, q15
        add4    s0, s1, s2, s3, s16, s17, s18, s19
        add4    s4, s5, s6, s7, s20, s21, s22, s23
        add4    s8, s9, s10, s11, s24, s25, s26, s27
        add4    s12, s13, s14, s15, s28, s29, s30, s31
        vmov    q12, q0
        vmov    q13, q1
        vmov    q14, q2
        vmov    q15, q3
        subs    r2, r2, #1
        bne     1b
        vst1.32 {d24-d27}, [r0]!
        vst1.32 {d28-d31}, [r0]
        vpop    {d8-d15}
        bx      lr
        .size   \name, . - \name
        .popsection
        .endm

        float_rows rwkv_edge_neon32_f32_rows, f32_line
        float_rows rwkv_edge_neon32_f16_rows, f16_line
