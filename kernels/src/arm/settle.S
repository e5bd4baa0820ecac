@ Zeros in the place of small elements of a state.
@
@ void rwkv_edge_neon32_settle(float x[][8], usize count)
@
@ `count` times 8 elements (at least once); those with a magnitude below 2^-100 become 0. Magnitudes are compared as
@ integers, which order like them.
@
@   r0 x     r1 count left
@   q0, q1   elements
@   q8, q9   magnitudes, then all bits of those that are small
@   q14      the bits of 2^-100
@   q15      the sign bit

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

        .pushsection .text.rwkv_edge_neon32_settle, "ax", %progbits
        .p2align 4
        .global rwkv_edge_neon32_settle
        .hidden rwkv_edge_neon32_settle
        .type   rwkv_edge_neon32_settle, %function
rwkv_edge_neon32_settle:
        movw    r2, #0
        movt    r2, #0x0d80
        vdup.32 q14, r2
        vmov.i32 q15, #0x80000000
1:      vld1.32 {d0-d3}, [r0]
        vbic    q8, q0, q15
        vbic    q9, q1, q15
        vcgt.u32 q8, q14, q8
        vcgt.u32 q9, q14, q9
        vbic    q0, q0, q8
        vbic    q1, q1, q9
        subs    r1, r1, #1
        vst1.32 {d0-d3}, [r0]!
        bne     1b
        bx      lr
        .size   rwkv_edge_neon32_settle, . - rwkv_edge_neon32_settle
        .popsection
