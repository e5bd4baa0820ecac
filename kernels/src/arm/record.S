@ Products of Int4 records with a dense vector.
@
@ void rwkv_edge_neon32_record_dot(float lanes[8], const u8 *runs, const u8 *weight_scales, usize sets,
@                                  const i8 *codes, const float *scales, const i32 *sums)
@
@ `sets` times 8 groups (at least once), group i of each in lane i, every lane from 0. The multiply-adds of floats
@ run in NEON, so the caller makes sure that no subnormal number can appear.
@
@   r0 lanes     r1 runs     r2 weight scales     r3 sets left     r4 codes     r5 scales     r6 sums
@   q0, q1    codes of a group
@   q2, q3    its high and low nibbles
@   q8, q11   products
@   q9, q10   sums of four groups
@   q12, q13  lanes
@   q14       8 times the sums of codes; scales
@   q15       15 everywhere

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

        @ \sum = four partial sums of a group, each of 8 products of at most 15 * 127.
        .macro group sum
        vld1.8  {d4-d5}, [r1]!
        vld1.8  {d0-d3}, [r4]!
        vand    q3, q2, q15
        vshr.u8 q2, q2, #4
        vmull.s8 q8, d6, d0
        vmull.s8 q11, d4, d2
        vmlal.s8 q8, d7, d1
        vmlal.s8 q11, d5, d3
        vadd.i16 q8, q8, q11
        vpadd.i16 \sum, d16, d17
        .endm

        @ Four groups, whose lanes are \lanes.
        .macro half_set lanes
        group   d18
        group   d19
        group   d20
        group   d21
        vld1.32 {d28-d29}, [r6]!
        vpaddl.s16 q9, q9
        vpaddl.s16 q10, q10
        vshl.i32 q14, q14, #3
        vpadd.i32 d18, d18, d19
        vpadd.i32 d19, d20, d21
        vld1.8  {d20}, [r2]!
        vsub.i32 q9, q9, q14
        vld1.32 {d28-d29}, [r5]!
        vcvt.f32.f16 q10, d20
        vcvt.f32.s32 q9, q9
        vmul.f32 q10, q10, q14
        vfma.f32 \lanes, q10, q9
        .endm

        .pushsection .text.rwkv_edge_neon32_record_dot, "ax", %progbits
        .p2align 4
        .global rwkv_edge_neon32_record_dot
        .hidden rwkv_edge_neon32_record_dot
        .type   rwkv_edge_neon32_record_dot, %function
rwkv_edge_neon32_record_dot:
        push    {r4-r6, lr}
        ldr     r4, [sp, #16]
        ldr     r5, [sp, #20]
        ldr     r6, [sp, #24]
        vmov.i8 q15, #15
        vmov.i32 q12, #0
        vmov.i32 q13, #0
1:      pld     [r1, #256]
        pld     [r1, #320]
        half_set q12
        half_set q13
        subs    r3, r3, #1
        bne     1b
        vst1.32 {d24-d27}, [r0]
        pop     {r4-r6, pc}
        .size   rwkv_edge_neon32_record_dot, . - rwkv_edge_neon32_record_dot
        .popsection
