@ Products of block rows of quantized matrices: 16 rows with a whole vector.
@
@ void rwkv_edge_neon32_int4_rows(float acc[16], const u8 *blocks, usize count, const i8 *codes,
@                                 const float *scales, const i32 *sums)
@ void rwkv_edge_neon32_int4n_rows(the same)
@ void rwkv_edge_neon32_int8_rows(the same)
@
@ `count` blocks (at least 1), with the codes, scales and sums of as many column blocks of the vector. `acc` gets
@ the sums before the tensor scale. The multiply-adds of floats run in NEON, so the caller makes sure that no
@ subnormal number can appear.
@
@ A group of 32 columns is multiplied in two halves of 8 rows, so that its sums leave room for the codes.
@
@   r0 acc        r1 weight scales, then next block    r2 blocks left     r3 codes     r4 scales    r5 sums
@   r6 bytes from line to line                         r7, r8 rows 0..3 and 4..7 of the half in the current line
@   r12 8 * sum of the group
@   d0-d7    quad j of the group's codes, twice: a D register of weights is two rows of four columns
@   q4-q7    weights and products, in int4 q4 = 15 everywhere
@   q8-q11   integer sums of the half: two rows in each
@   q12-q15  acc of the 16 rows; in int4n q12, q13 acc of the half, q14 the table of codes, q15 = 3 in 16 bits

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

        @ Pushes what must be kept, takes the arguments from the stack, and clears acc.
        .macro rows_begin
        push    {r4-r8, lr}
        vpush   {d8-d15}
        ldr     r4, [sp, #88]
        ldr     r5, [sp, #92]
        mov     r6, #64
        vmov.i32 q12, #0
        vmov.i32 q13, #0
        vmov.i32 q14, #0
        vmov.i32 q15, #0
        .endm

        .macro rows_end
        vst1.32 {d24-d27}, [r0]!
        vst1.32 {d28-d31}, [r0]
        vpop    {d8-d15}
        pop     {r4-r8, pc}
        .endm

        @ Prefetches four lines, `ahead` bytes after the group's first or, once a half of int8 is done, after its end.
        .macro prefetch ahead
        pld     [r7, #\ahead]
        pld     [r7, #\ahead + 64]
        pld     [r7, #\ahead + 128]
        pld     [r7, #\ahead + 192]
        .endm

        @ The quads of a group.
        .macro load_codes
        vld1.32 {d0[]}, [r3]!
        vld1.32 {d1[]}, [r3]!
        vld1.32 {d2[]}, [r3]!
        vld1.32 {d3[]}, [r3]!
        vld1.32 {d4[]}, [r3]!
        vld1.32 {d5[]}, [r3]!
        vld1.32 {d6[]}, [r3]!
        vld1.32 {d7[]}, [r3]!
        .endm

        @ \acc0, \acc1 += weight scale * scale * dot, with the dots of 8 rows in q8, q9, the weight scales in q10 and
        @ the group's scale in d14.
        .macro add_dots acc0, acc1
        vcvt.f32.f16 q11, d21
        vcvt.f32.f16 q10, d20
        vcvt.f32.s32 q8, q8
        vcvt.f32.s32 q9, q9
        vmul.f32 q10, q10, d14[0]
        vmul.f32 q11, q11, d14[0]
        vfma.f32 \acc0, q10, q8
        vfma.f32 \acc1, q11, q9
        .endm

        @ A line of int4: \mul is vmull for the first one, which starts the sums. Sums of 8 products of at most
        @ 15 * 127 fit 16 bits. Loads the next line if \more.
        .macro int4_line mul, low, high, more
        vand    q7, q5, q4
        vshr.u8 q5, q5, #4
        \mul\().s8 q8, d14, \low
        \mul\().s8 q9, d15, \low
        vand    q7, q6, q4
        vmlal.s8 q8, d10, \high
        vmlal.s8 q9, d11, \high
        .if \more
        vld1.8  {d10-d11}, [r7], r6
        .endif
        vshr.u8 q6, q6, #4
        \mul\().s8 q10, d14, \low
        \mul\().s8 q11, d15, \low
        vmlal.s8 q10, d12, \high
        vmlal.s8 q11, d13, \high
        .if \more
        vld1.8  {d12-d13}, [r8], r6
        .endif
        .endm

        @ 8 rows of a group of int4. Two neighbours of the 16-bit sums still fit 16 bits, four do not.
        .macro int4_half acc0, acc1
        vld1.8  {d10-d11}, [r7], r6
        vld1.8  {d12-d13}, [r8], r6
        int4_line vmull, d0, d1, 1
        int4_line vmlal, d2, d3, 1
        int4_line vmlal, d4, d5, 1
        int4_line vmlal, d6, d7, 0
        vpadd.i16 d16, d16, d17
        vpadd.i16 d17, d18, d19
        vpadd.i16 d18, d20, d21
        vpadd.i16 d19, d22, d23
        vdup.32 q7, r12
        vld1.8  {d20-d21}, [r1]!
        vpaddl.s16 q8, q8
        vpaddl.s16 q9, q9
        vsub.i32 q8, q8, q7
        vsub.i32 q9, q9, q7
        vld1.32 {d14[]}, [r4]
        add_dots \acc0, \acc1
        .endm

        .macro int4_group
        prefetch 512
        load_codes
        ldr     r12, [r5], #4
        lsl     r12, r12, #3
        int4_half q12, q13
        sub     r7, r7, #224
        sub     r8, r8, #224
        int4_half q14, q15
        sub     r7, r7, #32
        sub     r8, r8, #32
        add     r4, r4, #4
        .endm

        .pushsection .text.rwkv_edge_neon32_int4_rows, "ax", %progbits
        .p2align 4
        .global rwkv_edge_neon32_int4_rows
        .hidden rwkv_edge_neon32_int4_rows
        .type   rwkv_edge_neon32_int4_rows, %function
rwkv_edge_neon32_int4_rows:
        rows_begin
        vmov.i8 q4, #15
1:      add     r7, r1, #64
        add     r8, r1, #80
        int4_group
        int4_group
        mov     r1, r7
        subs    r2, r2, #1
        bne     1b
        rows_end
        .size   rwkv_edge_neon32_int4_rows, . - rwkv_edge_neon32_int4_rows
        .popsection

        @ A line of int4n. Sums of 8 products of at most 32 * 127 fit 16 bits.
        .macro int4n_line mul, low, high, more
        vand    q7, q5, q4
        vshr.u8 q5, q5, #4
        vtbl.8  d14, {d28, d29}, d14
        vtbl.8  d15, {d28, d29}, d15
        vtbl.8  d10, {d28, d29}, d10
        vtbl.8  d11, {d28, d29}, d11
        \mul\().s8 q8, d14, \low
        \mul\().s8 q9, d15, \low
        vand    q7, q6, q4
        vmlal.s8 q8, d10, \high
        vmlal.s8 q9, d11, \high
        .if \more
        vld1.8  {d10-d11}, [r7], r6
        .endif
        vshr.u8 q6, q6, #4
        vtbl.8  d14, {d28, d29}, d14
        vtbl.8  d15, {d28, d29}, d15
        vtbl.8  d12, {d28, d29}, d12
        vtbl.8  d13, {d28, d29}, d13
        \mul\().s8 q10, d14, \low
        \mul\().s8 q11, d15, \low
        vmlal.s8 q10, d12, \high
        vmlal.s8 q11, d13, \high
        .if \more
        vld1.8  {d12-d13}, [r8], r6
        .endif
        .endm

        @ 8 rows of a group of int4n, whose acc is at r0. Two neighbours of the 16-bit sums need 32 bits.
        .macro int4n_half
        vld1.8  {d10-d11}, [r7], r6
        vld1.8  {d12-d13}, [r8], r6
        vld1.32 {d24-d27}, [r0]
        int4n_line vmull, d0, d1, 1
        int4n_line vmlal, d2, d3, 1
        int4n_line vmlal, d4, d5, 1
        int4n_line vmlal, d6, d7, 0
        vpaddl.s16 q8, q8
        vpaddl.s16 q9, q9
        vpaddl.s16 q10, q10
        vpaddl.s16 q11, q11
        vpadd.i32 d16, d16, d17
        vpadd.i32 d17, d18, d19
        vpadd.i32 d18, d20, d21
        vpadd.i32 d19, d22, d23
        vld1.8  {d20-d21}, [r1]!
        vdup.16 d22, r12
        vand    q7, q10, q15            @ the shifts: twice the two lowest bits, minus 3
        vadd.i16 q7, q7, q7
        vsub.i16 q7, q7, q15
        vmlal.s16 q8, d14, d22
        vmlal.s16 q9, d15, d22
        vld1.32 {d14[]}, [r4]
        add_dots q12, q13
        vst1.32 {d24-d27}, [r0]!
        .endm

        .macro int4n_group
        prefetch 512
        load_codes
        ldr     r12, [r5], #4
        int4n_half
        sub     r7, r7, #224
        sub     r8, r8, #224
        int4n_half
        sub     r7, r7, #32
        sub     r8, r8, #32
        sub     r0, r0, #64
        add     r4, r4, #4
        .endm

        .pushsection .text.rwkv_edge_neon32_int4n_rows, "ax", %progbits
        .p2align 4
        .global rwkv_edge_neon32_int4n_rows
        .hidden rwkv_edge_neon32_int4n_rows
        .type   rwkv_edge_neon32_int4n_rows, %function
rwkv_edge_neon32_int4n_rows:
        rows_begin
        vst1.32 {d24-d27}, [r0]!
        vst1.32 {d28-d31}, [r0]
        sub     r0, r0, #32
        vmov.i8 q4, #15
        vmov.i16 q15, #3
        load_int4n_table d28, d29, r7, r8
1:      add     r7, r1, #64
        add     r8, r1, #80
        int4n_group
        int4n_group
        mov     r1, r7
        subs    r2, r2, #1
        bne     1b
        vpop    {d8-d15}
        pop     {r4-r8, pc}
        .size   rwkv_edge_neon32_int4n_rows, . - rwkv_edge_neon32_int4n_rows
        .popsection

        @ 4 rows of two lines of int8: two products, of at most 128 * 127, fit 16 bits. \add is vpaddl for the first
        @ two lines, which starts the sums. Loads the next two lines from \next if there are any.
        .macro int8_lines add, x0, x1, sum0, sum1, next
        vmull.s8 q6, d8, \x0
        vmull.s8 q7, d9, \x0
        .ifnb \next
        vld1.8  {d8-d9}, [\next], r6
        .endif
        vmlal.s8 q6, d10, \x1
        vmlal.s8 q7, d11, \x1
        .ifnb \next
        vld1.8  {d10-d11}, [\next], r6
        .endif
        \add\().s16 \sum0, q6
        \add\().s16 \sum1, q7
        .endm

        @ 8 rows of a group of int8.
        .macro int8_half acc0, acc1
        vld1.8  {d8-d9}, [r7], r6
        vld1.8  {d10-d11}, [r7], r6
        int8_lines vpaddl, d0, d1, q8, q9, r8
        int8_lines vpaddl, d0, d1, q10, q11, r7
        int8_lines vpadal, d2, d3, q8, q9, r8
        int8_lines vpadal, d2, d3, q10, q11, r7
        int8_lines vpadal, d4, d5, q8, q9, r8
        int8_lines vpadal, d4, d5, q10, q11, r7
        int8_lines vpadal, d6, d7, q8, q9, r8
        int8_lines vpadal, d6, d7, q10, q11
        vpadd.i32 d16, d16, d17
        vpadd.i32 d17, d18, d19
        vpadd.i32 d18, d20, d21
        vpadd.i32 d19, d22, d23
        vld1.8  {d20-d21}, [r1]!
        vld1.32 {d14[]}, [r4]
        add_dots \acc0, \acc1
        .endm

        .macro int8_group
        prefetch 512
        load_codes
        int8_half q12, q13
        prefetch 256
        sub     r7, r7, #480
        sub     r8, r8, #480
        int8_half q14, q15
        sub     r7, r7, #32
        sub     r8, r8, #32
        add     r4, r4, #4
        .endm

        .pushsection .text.rwkv_edge_neon32_int8_rows, "ax", %progbits
        .p2align 4
        .global rwkv_edge_neon32_int8_rows
        .hidden rwkv_edge_neon32_int8_rows
        .type   rwkv_edge_neon32_int8_rows, %function
rwkv_edge_neon32_int8_rows:
        rows_begin
1:      add     r7, r1, #64
        add     r8, r1, #80
        int8_group
        int8_group
        mov     r1, r7
        subs    r2, r2, #1
        bne     1b
        rows_end
        .size   rwkv_edge_neon32_int8_rows, . - rwkv_edge_neon32_int8_rows
        .popsection
