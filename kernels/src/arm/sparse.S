@ Products of quantized records with a sparse vector, four records at a time.
@
@ struct set {                     four records:
@     const u8 *scales[4];          0 their scales from the block's first group on,
@     const u8 *codes[4];          16 and their codes
@     const u8 *next_scales[4];    32 those of the next four, to be prefetched
@     const u8 *next_codes[4];     48
@     float values[4];             64 the entries of the vector
@ };

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

@ void rwkv_edge_neon32_coefficients(i16 out[][4], const set *set, const float *inverse, i32 *sums, usize groups,
@                                    u32 bits of cmax)
@ void rwkv_edge_neon32_coefficients_int4n(the same)
@
@ Coefficients of the four records for each group, and adds them to the sums of each group's; in int4n times the
@ group's shift. `groups` is rounded up
@ to a multiple of 4 everywhere. Products below the normal numbers become 0 in NEON; their coefficients are 0 anyhow.
@ The caller makes sure that values and inverses are not subnormal.
@
@   r0 out     r1 set, then groups done     r2 inverse     r3 sums     r4-r7 scales     r8-r11 from there to the next
@   r12 groups
@   q0        values
@   q1, q2    a record for four groups: scales, products, coefficients
@   d6, d7    in int4n the shifts of a record, and 3 in 16 bits
@   d24-d27   coefficients of the records, in 16 bits
@   q14       sums
@   q15       inverse
@   q4, q5    -cmax, cmax
@   q6        1.5 * 2^23: added to a number it leaves the integer in the low bits

        @ \d = coefficients of the record with scales \scales and value \x.
        @ A NaN is not greater than -cmax, which it becomes.
        .macro coefficient scales, x, d, shifted
        vld1.8  {d2}, [\scales]!
        .if \shifted
        vand    d6, d2, d7
        vadd.i16 d6, d6, d6
        vsub.i16 d6, d6, d7
        .endif
        vcvt.f32.f16 q1, d2
        vmul.f32 q1, q1, \x
        vmul.f32 q1, q1, q15
        vcgt.f32 q2, q1, q4
        vbsl    q2, q1, q4
        vmin.f32 q2, q2, q5
        vadd.f32 q2, q2, q6
        vsub.i32 q2, q2, q6
        vmovn.i32 \d, q2
        .if \shifted
        vmlal.s16 q14, \d, d6
        .else
        vadd.i32 q14, q14, q2
        .endif
        .endm

        .macro coefficients name, shifted
        .pushsection .text.\name, "ax", %progbits
        .p2align 4
        .global \name
        .hidden \name
        .type   \name, %function
\name:
        push    {r4-r11, lr}
        vpush   {d8-d13}
        ldr     r12, [sp, #84]
        ldr     lr, [sp, #88]
        vdup.32 q5, lr
        vneg.f32 q4, q5
        movw    lr, #0
        movt    lr, #0x4b40
        vdup.32 q6, lr
        .if \shifted
        vmov.i16 d7, #3
        .endif
        add     lr, r1, #64
        vld1.32 {d0-d1}, [lr]
        add     lr, r1, #32
        ldm     lr, {r8-r11}
        ldm     r1, {r4-r7}
        sub     r8, r8, r4
        sub     r9, r9, r5
        sub     r10, r10, r6
        sub     r11, r11, r7
        mov     r1, #0
1:      tst     r1, #31                 @ 32 scales make a line
        bne     2f
        pld     [r4, r8]
        pld     [r5, r9]
        pld     [r6, r10]
        pld     [r7, r11]
2:      vld1.32 {d30-d31}, [r2]!
        vld1.32 {d28-d29}, [r3]
        coefficient r4, d0[0], d24, \shifted
        coefficient r5, d0[1], d25, \shifted
        coefficient r6, d1[0], d26, \shifted
        coefficient r7, d1[1], d27, \shifted
        vst1.32 {d28-d29}, [r3]!
        vst4.16 {d24-d27}, [r0]!
        add     r1, r1, #4
        cmp     r1, r12
        blo     1b
        vpop    {d8-d13}
        pop     {r4-r11, pc}
        .size   \name, . - \name
        .popsection
        .endm

        coefficients rwkv_edge_neon32_coefficients, 0
        coefficients rwkv_edge_neon32_coefficients_int4n, 1

@ void rwkv_edge_neon32_add_int4(i32 sums[][32], const set *set, const i16 coefficients[][4], usize groups)
@ void rwkv_edge_neon32_add_int4n(the same)
@ void rwkv_edge_neon32_add_int8(the same)
@
@ Adds coefficient times code of the four records to the sums of `groups` groups (at least one).
@
@   r0 sums     r1 set, then groups done     r2 coefficients     r3 groups     r4-r7 codes
@   r8-r11 from there to the next codes      r12 sums to store
@   d0        coefficients of the records
@   q1-q6     codes; in int4n q5 is their table
@   q7        15 everywhere
@   q8-q15    sums of the group

        @ 16-bit codes in \a-\d (as two halves each) times coefficient \c, added to the sums.
        .macro add_products c, a0, a1, b0, b1, c0, c1, d0, d1
        vmlal.s16 q8, \a0, \c
        vmlal.s16 q9, \a1, \c
        vmlal.s16 q10, \b0, \c
        vmlal.s16 q11, \b1, \c
        vmlal.s16 q12, \c0, \c
        vmlal.s16 q13, \c1, \c
        vmlal.s16 q14, \d0, \c
        vmlal.s16 q15, \d1, \c
        .endm

        .macro add_int4 codes, c
        vld1.8  {d2-d3}, [\codes]!
        vand    q2, q1, q7
        vshr.u8 q1, q1, #4
        vmovl.u8 q3, d4
        vmovl.u8 q4, d5
        vmovl.u8 q5, d2
        vmovl.u8 q6, d3
        add_products \c, d6, d7, d8, d9, d10, d11, d12, d13
        .endm

        .macro add_int4n codes, c
        vld1.8  {d2-d3}, [\codes]!
        vand    q2, q1, q7
        vshr.u8 q1, q1, #4
        vtbl.8  d4, {d10, d11}, d4
        vtbl.8  d5, {d10, d11}, d5
        vtbl.8  d2, {d10, d11}, d2
        vtbl.8  d3, {d10, d11}, d3
        vmovl.s8 q3, d4
        vmovl.s8 q4, d5
        vmlal.s16 q8, d6, \c
        vmlal.s16 q9, d7, \c
        vmlal.s16 q10, d8, \c
        vmlal.s16 q11, d9, \c
        vmovl.s8 q3, d2
        vmovl.s8 q4, d3
        vmlal.s16 q12, d6, \c
        vmlal.s16 q13, d7, \c
        vmlal.s16 q14, d8, \c
        vmlal.s16 q15, d9, \c
        .endm

        .macro add_int8 codes, c
        vld1.8  {d2-d5}, [\codes]!
        vmovl.s8 q3, d2
        vmovl.s8 q4, d3
        vmovl.s8 q5, d4
        vmovl.s8 q6, d5
        add_products \c, d6, d7, d8, d9, d10, d11, d12, d13
        .endm

        @ \in_line + 1 groups make a line. \before comes first.
        .macro add_codes name, add, in_line, before:vararg
        .pushsection .text.\name, "ax", %progbits
        .p2align 4
        .global \name
        .hidden \name
        .type   \name, %function
\name:
        push    {r4-r11, lr}
        vpush   {d8-d15}
        vmov.i8 q7, #15
        \before
        add     r12, r1, #48
        ldm     r12, {r8-r11}
        add     r12, r1, #16
        ldm     r12, {r4-r7}
        sub     r8, r8, r4
        sub     r9, r9, r5
        sub     r10, r10, r6
        sub     r11, r11, r7
        mov     r1, #0
1:      tst     r1, #\in_line
        bne     2f
        pld     [r4, r8]
        pld     [r5, r9]
        pld     [r6, r10]
        pld     [r7, r11]
2:      mov     r12, r0
        vld1.16 {d0}, [r2]!
        vld1.32 {d16-d19}, [r0]!
        vld1.32 {d20-d23}, [r0]!
        vld1.32 {d24-d27}, [r0]!
        vld1.32 {d28-d31}, [r0]!
        \add    r4, d0[0]
        \add    r5, d0[1]
        \add    r6, d0[2]
        \add    r7, d0[3]
        vst1.32 {d16-d19}, [r12]!
        vst1.32 {d20-d23}, [r12]!
        vst1.32 {d24-d27}, [r12]!
        vst1.32 {d28-d31}, [r12]
        add     r1, r1, #1
        cmp     r1, r3
        blo     1b
        vpop    {d8-d15}
        pop     {r4-r11, pc}
        .size   \name, . - \name
        .popsection
        .endm

        add_codes rwkv_edge_neon32_add_int4, add_int4, 3
        add_codes rwkv_edge_neon32_add_int4n, add_int4n, 3, load_int4n_table d10, d11, r8, r9
        add_codes rwkv_edge_neon32_add_int8, add_int8, 1
