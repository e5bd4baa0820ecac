//! What a model reads while it is quantized.

#[cfg(test)]
mod text;
