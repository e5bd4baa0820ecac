@ The table of Int4n's codes, for `int.S` and `sparse.S`.

        .syntax unified
        .arch   armv7-a
        .arm
        .fpu    neon-vfpv4

        @ The 16 codes in two registers, by way of two others.
        .macro load_int4n_table low, high, a, b
        movw    \a, #0xe6e0             @ -32 -26 -21 -16 -12 -9 -6 -3
        movt    \a, #0xf0eb
        movw    \b, #0xf7f4
        movt    \b, #0xfdfa
        vmov    \low, \a, \b
        movw    \a, #0x0300             @ 0 3 6 10 13 17 22 28
        movt    \a, #0x0a06
        movw    \b, #0x110d
        movt    \b, #0x1c16
        vmov    \high, \a, \b
        .endm
