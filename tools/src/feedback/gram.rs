//! Second moments of channels, as sums of integers.

use rwkv_edge::kernels::layout::{Activation, GROUP_SIZE, Matrix, ROW_INTERLEAVE, matrix_bytes, padded_cols};
use rwkv_edge::kernels::quant::{group_start, store_codes};
use rwkv_edge::kernels::{DType, Kernels};

use super::each;

/// Tokens that are multiplied at a time. Their sums stay below 2^24, where products with codes are
/// exact: 1024 * 127^2.
const CHUNK: usize = 1024;

/// Channels whose sums a thread computes at a time: as many vectors as share a decoded panel.
const UNIT: usize = 64;

/// The most tokens that a [`Gram`] can count: their sums fit 32 bits.
pub const MAX_TOKENS: usize = i32::MAX as usize / (127 * 127);

/// What the largest code stands for, as a multiple of the largest magnitude in the first tokens.
/// Later tokens that exceed it are clamped.
const HEADROOM: f32 = 1.25;

/// The largest magnitude of each channel in some tokens: the first ones, a thousand or two.
pub struct Ranges(Vec<f32>);

impl Ranges {
    /// Of no tokens.
    pub fn new(channels: usize) -> Self {
        Self(vec![0.0; channels])
    }

    /// Takes tokens, `[channels]` each.
    ///
    /// # Panics
    /// If a token has another number of channels.
    pub fn add(&mut self, tokens: &[&[f32]]) {
        for token in tokens {
            assert!(token.len() == self.0.len(), "{} of {} channels", token.len(), self.0.len());
            self.0.iter_mut().zip(*token).for_each(|(largest, x)| *largest = largest.max(x.abs()));
        }
    }

    /// Scales for [`Gram::new`]. A channel that is 0 in all tokens gets the median scale of the
    /// others.
    pub fn scales(&self) -> Vec<f32> {
        let mut active: Vec<f32> = self.0.iter().copied().filter(|x| x.is_normal()).collect();
        active.sort_by(f32::total_cmp);
        let median = active.get(active.len() / 2).copied().unwrap_or(1.0);
        let of = |&largest: &f32| if largest.is_normal() { largest } else { median };
        self.0.iter().map(|largest| (of(largest) * (HEADROOM / 127.0)).max(f32::MIN_POSITIVE)).collect()
    }
}

/// `H`, the mean of `x x^T` over tokens `x`, from integers: `x` is rounded to codes of 8 bits.
///
/// The sums are exact, so the order of tokens does not matter, nor how they are cut into calls.
pub struct Gram {
    kernels: &'static Kernels,
    threads: usize,
    scales: Vec<f32>,
    /// Codes of tokens that are not in `sums` yet: [`CHUNK`] of each channel.
    codes: Vec<i8>,
    waiting: usize,
    tokens: usize,
    /// For each group of 32 channels, `[32, channels from its first one on]`.
    sums: Vec<i32>,
}

impl Gram {
    /// Counts channels with one scale each ([`Ranges`]), on up to `threads` threads.
    ///
    /// # Panics
    /// If there are no channels.
    pub fn new(kernels: &'static Kernels, threads: usize, scales: Vec<f32>) -> Self {
        assert!(!scales.is_empty(), "no channels");
        let positions = scales.len().next_multiple_of(GROUP_SIZE);
        let sums = vec![0; GROUP_SIZE * group_start(positions, positions / GROUP_SIZE)];
        Self { kernels, threads, codes: vec![0; positions * CHUNK], scales, waiting: 0, tokens: 0, sums }
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.scales.len()
    }

    /// The number of tokens counted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Counts tokens, `[channels]` each.
    ///
    /// # Panics
    /// If a token has another number of channels, or there are more than [`MAX_TOKENS`] in all.
    pub fn add(&mut self, tokens: &[&[f32]]) {
        let channels = self.channels();
        assert!(
            tokens.iter().all(|token| token.len() == channels),
            "not all tokens have {channels} channels"
        );
        self.add_columns(tokens, 0);
    }

    /// Counts the channels from `first` on of tokens that have more.
    fn add_columns(&mut self, tokens: &[&[f32]], first: usize) {
        let mut rest = tokens;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(CHUNK - self.waiting));
            self.store(now, first);
            self.waiting += now.len();
            self.tokens += now.len();
            if self.waiting == CHUNK {
                self.finish();
            }
            rest = later;
        }
        assert!(self.tokens <= MAX_TOKENS, "{} tokens, at most {MAX_TOKENS}", self.tokens);
    }

    /// Stores the codes of tokens after those that wait. A line of the codes of a few channels stays
    /// in the cache while it fills.
    fn store(&mut self, tokens: &[&[f32]], first: usize) {
        let blocks = self.codes.chunks_mut(ROW_INTERLEAVE * CHUNK);
        for (i, (codes, scales)) in blocks.zip(self.scales.chunks(ROW_INTERLEAVE)).enumerate() {
            let mut inverses = [0.0; ROW_INTERLEAVE];
            inverses.iter_mut().zip(scales).for_each(|(inverse, scale)| *inverse = 1.0 / scale);
            for (t, token) in (self.waiting..).zip(tokens) {
                let mut values = [0.0; ROW_INTERLEAVE];
                let channels = &token[first + ROW_INTERLEAVE * i..][..scales.len()];
                values[..scales.len()].copy_from_slice(channels);
                for (c, (x, inverse)) in values.iter().zip(&inverses).enumerate() {
                    codes[CHUNK * c + t] = code(x * inverse);
                }
            }
        }
    }

    /// Brings the sums up to date with all tokens.
    fn finish(&mut self) {
        if self.waiting == 0 {
            return;
        }
        let cols = padded_cols(self.waiting);
        for codes in self.codes.chunks_exact_mut(CHUNK) {
            codes[self.waiting..cols].fill(0);
        }
        let (rows, sums) = self.code_rows(cols);
        let positions = self.codes.len() / CHUNK;
        let matrix = Matrix::new(DType::Int8, positions, cols, 1.0, &rows).expect("blocks of these codes");
        let [values, scales] = [vec![0.0; cols], vec![1.0; cols / GROUP_SIZE]];
        let vectors: Vec<Activation<'_>> = self
            .codes
            .chunks_exact(CHUNK)
            .zip(sums.chunks_exact(cols / GROUP_SIZE))
            .map(|(codes, sums)| Activation { values: &values, codes: &codes[..cols], scales: &scales, sums })
            .collect();
        let kernels = self.kernels;
        let units = Units { rest: &mut self.sums, positions, first: 0 };
        each(self.threads, units, |(first, sums)| {
            let vectors = &vectors[first..positions.min(first + UNIT)];
            let mut products = vec![0.0; vectors.len() * (positions - first)];
            let mut outs: Vec<&mut [f32]> = products.chunks_exact_mut(positions - first).collect();
            kernels.matmul(&mut outs, &matrix, first, vectors);
            add_products(sums, &products, positions - first);
        });
        self.waiting = 0;
    }

    /// The codes as a matrix `[channels, cols]`, and the sum of each group of 32 codes.
    fn code_rows(&self, cols: usize) -> (Vec<u8>, Vec<i32>) {
        let bytes = matrix_bytes(DType::Int8, ROW_INTERLEAVE, cols).expect("the size of a chunk");
        let blocks = self.codes.len() / CHUNK / ROW_INTERLEAVE;
        let groups = cols / GROUP_SIZE;
        let (mut rows, mut sums) = (vec![0; blocks * bytes], vec![0; blocks * ROW_INTERLEAVE * groups]);
        let outs = rows.chunks_exact_mut(bytes).zip(sums.chunks_exact_mut(ROW_INTERLEAVE * groups));
        each(self.threads, outs.zip(self.codes.chunks_exact(ROW_INTERLEAVE * CHUNK)), |(outs, codes)| {
            let codes: Vec<&[i8]> = codes.chunks_exact(CHUNK).map(|codes| &codes[..cols]).collect();
            let codes = codes.concat();
            store_codes(&codes, cols, outs.0);
            for (sum, codes) in outs.1.iter_mut().zip(codes.chunks_exact(GROUP_SIZE)) {
                *sum = codes.iter().map(|&code| i32::from(code)).sum();
            }
        });
        (rows, sums)
    }

    /// The mean square of each channel.
    pub fn diagonal(&mut self) -> Vec<f32> {
        self.finish();
        (0..self.channels()).map(|i| self.moment(i, i) as f32).collect()
    }

    /// Element `i`, `j` of `H`, of all tokens up to the last [`finish`](Self::finish); 0 for padding.
    fn moment(&self, i: usize, j: usize) -> f64 {
        let (low, high) = (i.min(j), i.max(j));
        let positions = self.codes.len() / CHUNK;
        if high >= self.channels() || self.tokens == 0 {
            return 0.0;
        }
        let (g, row) = (low / GROUP_SIZE, low % GROUP_SIZE);
        let (start, first) = (GROUP_SIZE * group_start(positions, g), GROUP_SIZE * g);
        let sum = self.sums[start + row * (positions - first) + high - first];
        f64::from(sum) * (f64::from(self.scales[i]) * f64::from(self.scales[j])) / self.tokens as f64
    }

    /// All elements of `H` by their channels, of all tokens.
    pub(super) fn moments(&mut self) -> impl Fn(usize, usize) -> f64 + Sync {
        self.finish();
        |i, j| self.moment(i, j)
    }
}

/// The code nearest to a value, ties to even.
fn code(x: f32) -> i8 {
    /// 1.5 * 2^23: the last place of a number near it weighs 1.
    const ROUNDER: f32 = 12_582_912.0;
    (x.clamp(-127.0, 127.0) + ROUNDER).to_bits() as i8
}

/// The sums of [`UNIT`] channels at a time, with the first channel.
struct Units<'a> {
    rest: &'a mut [i32],
    positions: usize,
    first: usize,
}

impl<'a> Iterator for Units<'a> {
    type Item = (usize, Vec<&'a mut [i32]>);

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.first;
        let mut groups = Vec::new();
        while self.first < self.positions.min(first + UNIT) {
            let rest = std::mem::take(&mut self.rest);
            let (group, rest) = rest.split_at_mut(GROUP_SIZE * (self.positions - self.first));
            groups.push(group);
            (self.rest, self.first) = (rest, self.first + GROUP_SIZE);
        }
        (!groups.is_empty()).then_some((first, groups))
    }
}

/// Adds products `[channels, len]` to the sums of groups, whose last channels they are with.
fn add_products(groups: Vec<&mut [i32]>, products: &[f32], len: usize) {
    for (sums, products) in groups.into_iter().zip(products.chunks(GROUP_SIZE * len)) {
        let own = sums.len() / GROUP_SIZE;
        for (sums, products) in sums.chunks_exact_mut(own).zip(products.chunks_exact(len)) {
            sums.iter_mut().zip(&products[len - own..]).for_each(|(sum, &product)| *sum += product as i32);
        }
    }
}

/// Blocks of the diagonal of `H`: channels of different blocks count as independent.
pub struct BlockGram {
    width: usize,
    channels: usize,
    grams: Vec<Gram>,
}

impl BlockGram {
    /// Blocks of `width` channels; the last may have fewer. The rest is as for [`Gram::new`].
    ///
    /// # Panics
    /// If there are no channels, or `width` is 0.
    pub fn new(kernels: &'static Kernels, threads: usize, scales: &[f32], width: usize) -> Self {
        let grams = scales.chunks(width).map(|scales| Gram::new(kernels, threads, scales.to_vec())).collect();
        Self { width, channels: scales.len(), grams }
    }

    /// Counts tokens, `[channels]` each.
    ///
    /// # Panics
    /// As [`Gram::add`].
    pub fn add(&mut self, tokens: &[&[f32]]) {
        let channels = self.channels;
        assert!(
            tokens.iter().all(|token| token.len() == channels),
            "not all tokens have {channels} channels"
        );
        for (i, gram) in self.grams.iter_mut().enumerate() {
            gram.add_columns(tokens, self.width * i);
        }
    }

    /// The blocks, in the order of the channels.
    pub fn into_blocks(self) -> Vec<Gram> {
        self.grams
    }
}
