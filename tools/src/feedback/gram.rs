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

/// Part of the largest magnitude in the first tokens that the largest code stands for, inverted.
/// Later tokens that exceed it are clamped.
const HEADROOM: f32 = 1.25;

/// Scales for [`Gram::new`], from the first tokens `[tokens, channels]`.
///
/// A channel that is 0 in all of them gets the median scale of the others.
///
/// # Panics
/// If `channels` is 0 or the tokens are not whole.
pub fn channel_scales(tokens: &[f32], channels: usize) -> Vec<f32> {
    assert!(tokens.len().is_multiple_of(channels), "{} values of {channels} channels", tokens.len());
    let mut largest = vec![0.0f32; channels];
    for token in tokens.chunks_exact(channels) {
        largest.iter_mut().zip(token).for_each(|(largest, x)| *largest = largest.max(x.abs()));
    }
    let mut active: Vec<f32> = largest.iter().copied().filter(|x| x.is_normal()).collect();
    active.sort_by(f32::total_cmp);
    let median = active.get(active.len() / 2).copied().unwrap_or(1.0);
    let of = |largest: f32| if largest.is_normal() { largest } else { median };
    largest.into_iter().map(|largest| (of(largest) * (HEADROOM / 127.0)).max(f32::MIN_POSITIVE)).collect()
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
    /// For each group of 32 channels, for each channel from its first one on, the sums with the
    /// channels of the group.
    sums: Vec<[i32; GROUP_SIZE]>,
}

impl Gram {
    /// Counts channels with one scale each ([`channel_scales`]), on up to `threads` threads.
    ///
    /// # Panics
    /// If there are no channels.
    pub fn new(kernels: &'static Kernels, threads: usize, scales: Vec<f32>) -> Self {
        assert!(!scales.is_empty(), "no channels");
        let positions = scales.len().next_multiple_of(GROUP_SIZE);
        let sums = vec![[0; GROUP_SIZE]; group_start(positions, positions / GROUP_SIZE)];
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

    /// Counts tokens `[tokens, channels]`.
    ///
    /// # Panics
    /// If the tokens are not whole, or more than [`MAX_TOKENS`] in all.
    pub fn add(&mut self, tokens: &[f32]) {
        self.add_columns(tokens, self.channels(), 0);
    }

    /// Counts the channels from `first` on of tokens `[tokens, stride]`.
    fn add_columns(&mut self, tokens: &[f32], stride: usize, first: usize) {
        assert!(tokens.len().is_multiple_of(stride), "{} values of {stride} channels", tokens.len());
        let mut rest = tokens;
        while !rest.is_empty() {
            let count = (rest.len() / stride).min(CHUNK - self.waiting);
            let (now, later) = rest.split_at(count * stride);
            self.store(now, stride, first);
            self.waiting += count;
            self.tokens += count;
            if self.waiting == CHUNK {
                self.finish();
            }
            rest = later;
        }
        assert!(self.tokens <= MAX_TOKENS, "{} tokens, at most {MAX_TOKENS}", self.tokens);
    }

    /// Stores the codes of tokens after those that wait.
    fn store(&mut self, tokens: &[f32], stride: usize, first: usize) {
        let waiting = self.waiting;
        let blocks = self.codes.chunks_mut(ROW_INTERLEAVE * CHUNK);
        let blocks = blocks.zip(self.scales.chunks(ROW_INTERLEAVE)).enumerate();
        each(self.threads, blocks, |(i, (codes, scales))| {
            let inverses: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
            for (t, token) in tokens.chunks_exact(stride).enumerate() {
                let token = &token[first + ROW_INTERLEAVE * i..][..inverses.len()];
                for (c, (x, inverse)) in token.iter().zip(&inverses).enumerate() {
                    codes[CHUNK * c + waiting + t] = code(x * inverse);
                }
            }
        });
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
            let codes: Vec<i8> =
                codes.chunks_exact(CHUNK).flat_map(|codes| &codes[..cols]).copied().collect();
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
        let g = low / GROUP_SIZE;
        let sum = self.sums[group_start(positions, g) + high - GROUP_SIZE * g][low % GROUP_SIZE];
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
    rest: &'a mut [[i32; GROUP_SIZE]],
    positions: usize,
    first: usize,
}

impl<'a> Iterator for Units<'a> {
    type Item = (usize, Vec<&'a mut [[i32; GROUP_SIZE]]>);

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.first;
        let mut groups = Vec::new();
        while self.first < self.positions.min(first + UNIT) {
            let rest = std::mem::take(&mut self.rest);
            let (group, rest) = rest.split_at_mut(self.positions - self.first);
            groups.push(group);
            (self.rest, self.first) = (rest, self.first + GROUP_SIZE);
        }
        (!groups.is_empty()).then_some((first, groups))
    }
}

/// Adds products `[channels, len]` to the sums of groups, whose last `len` channels they are with.
fn add_products(groups: Vec<&mut [[i32; GROUP_SIZE]]>, products: &[f32], len: usize) {
    for (sums, products) in groups.into_iter().zip(products.chunks(GROUP_SIZE * len)) {
        let skipped = len - sums.len();
        for (i, sums) in sums.chunks_mut(GROUP_SIZE).enumerate() {
            for (c, row) in products.chunks_exact(len).enumerate() {
                let row = &row[skipped + GROUP_SIZE * i..];
                sums.iter_mut().zip(row).for_each(|(sums, &product)| sums[c] += product as i32);
            }
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

    /// Counts tokens `[tokens, channels]`.
    ///
    /// # Panics
    /// As [`Gram::add`].
    pub fn add(&mut self, tokens: &[f32]) {
        for (i, gram) in self.grams.iter_mut().enumerate() {
            gram.add_columns(tokens, self.channels, self.width * i);
        }
    }

    /// The blocks, in the order of the channels.
    pub fn into_blocks(self) -> Vec<Gram> {
        self.grams
    }
}
