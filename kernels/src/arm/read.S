@ Reading and nothing else.
@
@ u64 rwkv_edge_neon32_read(const u8 *bytes, usize part, usize streams)
@
@ All words of `streams` parts (at least 1) of `part` lines each, side by side from `bytes` on, xored.
@
@   r0 line of the first part     r1 lines left     r2 streams     r3 bytes of a part - 32
@   r12 line of the current part  r4 streams left
@   q0-q3 a line                  q8-q11 xor of the lines

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

        .pushsection .text.rwkv_edge_neon32_read, "ax", %progbits
        .p2align 4
        .global rwkv_edge_neon32_read
        .hidden rwkv_edge_neon32_read
        .type   rwkv_edge_neon32_read, %function
rwkv_edge_neon32_read:
        push    {r4, lr}
        vmov.i32 q8, #0
        vmov.i32 q9, #0
        vmov.i32 q10, #0
        vmov.i32 q11, #0
        lsl     r3, r1, #6
        sub     r3, r3, #32
        cmp     r1, #0
        beq     3f
1:      mov     r12, r0
        mov     r4, r2
2:      pld     [r12, #512]
        vld1.8  {d0-d3}, [r12]!
        vld1.8  {d4-d7}, [r12], r3
        veor    q8, q8, q0
        veor    q9, q9, q1
        veor    q10, q10, q2
        veor    q11, q11, q3
        subs    r4, r4, #1
        bne     2b
        add     r0, r0, #64
        subs    r1, r1, #1
        bne     1b
3:      veor    q8, q8, q9
        veor    q10, q10, q11
        veor    q8, q8, q10
        veor    d16, d16, d17
        vmov    r0, r1, d16
        pop     {r4, pc}
        .size   rwkv_edge_neon32_read, . - rwkv_edge_neon32_read
        .popsection
