//! Names of flash-linear-attention.

/// Parts of BlinkDL's names inside a layer, and what replaces them, one after the other.
pub(crate) const IN_LAYERS: [(&str, &str); 9] = [
    (".ln0.", ".pre_norm."),
    (".ln1.", ".attn_norm."),
    (".ln2.", ".ffn_norm."),
    (".att.receptance.", ".attn.r_proj."),
    (".att.key.", ".attn.k_proj."),
    (".att.value.", ".attn.v_proj."),
    (".att.output.", ".attn.o_proj."),
    (".att.ln_x.", ".attn.g_norm."),
    (".att.", ".attn."),
];
