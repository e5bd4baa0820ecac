//! Why a vocabulary cannot be used.

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabError {
    /// The file cannot be read; says its path.
    #[error(transparent)]
    File(rwkv_edge::Error),
    /// A line of a World vocabulary is wrong.
    #[error("line {line}: {problem}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A tokenizer.json is not JSON.
    #[error("not a usable tokenizer.json: {error}")]
    Json {
        /// Where and why.
        error: serde_json::Error,
    },
    /// A tokenizer.json lacks a part, or has one of the wrong type.
    #[error("not a usable tokenizer.json: {0}")]
    Malformed(String),
    /// A tokenizer.json asks for something else than byte-level BPE as GPT-NeoX 20B uses it, or
    /// words as the MIDI models use them.
    #[error(
        "not a usable tokenizer.json: {0} is not supported; only byte-level BPE with the pattern of GPT-2, and \
         words between white space, are"
    )]
    Unsupported(String),
    /// The file is no vocabulary.
    #[error("{0}")]
    Unrecognised(String),
    /// The tokens contradict each other.
    #[error(transparent)]
    Compile(#[from] rwkv_edge::Error),
}

/// Result with a [`VocabError`].
pub type Result<T, E = VocabError> = std::result::Result<T, E>;
