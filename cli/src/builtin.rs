//! The model that ships with the program: a small RWKV-7 trained on public-domain fairy tales.

/// Gives the bytes the alignment of the tensors in a mapped file.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static FAIRY: &Aligned<[u8]> = &Aligned(*include_bytes!("../fairy7-int8.rwkv"));

/// The bytes of the built-in `.rwkv` file, made from `models/fairy7.pth`; see `models/README.md`.
pub(crate) fn fairy() -> &'static [u8] {
    &FAIRY.0
}
