//! The SHA-256 of a file, to compare with the one that its publisher shows.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The SHA-256 of a file in hexadecimal digits.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_hex(path: &Path) -> Result<String> {
    let read = || {
        let (mut file, mut digest, mut block) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut block)? {
                0 => return std::io::Result::Ok(digest.finalize()),
                len => digest.update(&block[..len]),
            }
        }
    };
    let digest = read().with_context(|| path.display().to_string())?;
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
