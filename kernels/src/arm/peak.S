@ Multiply-accumulates of bytes on registers and nothing else.
@
@ void rwkv_edge_neon32_multiply_accumulate(usize rounds)
@
@ `rounds` rounds (at least 1) of 96 each. Each instruction is done for all sums before the next one, as small cores wait
@ for results.
@
@   r0 rounds left    q0 weights    q1 codes    q2-q7 products of 16 bits    q8-q13 sums

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

        .pushsection .text.rwkv_edge_neon32_multiply_accumulate, "ax", %progbits
        .p2align 4
        .global rwkv_edge_neon32_multiply_accumulate
        .hidden rwkv_edge_neon32_multiply_accumulate
        .type   rwkv_edge_neon32_multiply_accumulate, %function
rwkv_edge_neon32_multiply_accumulate:
        vpush   {d8-d15}
        vmov.i8 q0, #3
        vmov.i8 q1, #1
        .irp    sum, q8, q9, q10, q11, q12, q13
        vmov.i32 \sum, #0
        .endr
1:      .irp    product, q2, q3, q4, q5, q6, q7
        vmull.s8 \product, d0, d2
        .endr
        .irp    product, q2, q3, q4, q5, q6, q7
        vmlal.s8 \product, d1, d3
        .endr
        vpadal.s16 q8, q2
        vpadal.s16 q9, q3
        vpadal.s16 q10, q4
        vpadal.s16 q11, q5
        vpadal.s16 q12, q6
        vpadal.s16 q13, q7
        subs    r0, r0, #1
        bne     1b
        vpop    {d8-d15}
        bx      lr
        .size   rwkv_edge_neon32_multiply_accumulate, . - rwkv_edge_neon32_multiply_accumulate
        .popsection
