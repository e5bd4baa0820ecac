//! One test binary for all tests that need no process of their own. It links once, and its tests
//! share both cores.

#[path = "../common/mod.rs"]
mod common;

mod determinism;
mod digests;
mod engine;
mod format_corrupt;
mod golden;
mod layerwise;
mod model_tensors;
mod nested_head;
mod outlier;
mod quality;
mod sampler;
mod saved;
mod session;
mod state_corrupt;
mod text;
mod tokenizer_sections;
