//! Merges of byte pair encoding. Of all adjacent pairs that have a merge, the one with the lowest
//! rank is merged, of equal ones the leftmost, until no pair has a merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::section::{NONE, Reader, U32s, malformed};
use crate::error::Result;

/// Longest word, in bytes, that is merged in arrays on the stack. Longer words use a heap.
const SHORT: usize = 48;

/// The table of merges, sorted by left and right token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merges<'a> {
    /// `[n_tokens + 1]`: the merges of left token i are `start[i]..start[i + 1]`.
    start: U32s<'a>,
    /// `[n_merges]`: right tokens, rising for each left one.
    right: U32s<'a>,
    /// `[n_merges]`: the token that replaces the pair.
    merged: U32s<'a>,
    /// `[n_merges]`: the lower, the earlier.
    rank: U32s<'a>,
}

/// The merge of a pair: rank and resulting token.
#[derive(Clone, Copy)]
struct Applicable {
    rank: u32,
    merged: u32,
}

/// Stands for a pair without a merge; its rank is above all others.
const NO_MERGE: Applicable = Applicable { rank: NONE, merged: NONE };

impl<'a> Merges<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, n_tokens: usize) -> Result<Self> {
        let n_merges = reader.len()?;
        let merges = Self {
            start: reader.u32s(n_tokens + 1)?,
            right: reader.u32s(n_merges)?,
            merged: reader.u32s(n_merges)?,
            rank: reader.u32s(n_merges)?,
        };
        if !reader.checks() {
            return Ok(merges);
        }
        if !merges.start.are_offsets_to(n_merges) {
            return Err(malformed("merges: offsets do not rise from 0 to the number of merges"));
        }
        let rise = |left| merges.of(left).is_some_and(|(_, right)| right.iter().is_sorted_by(|a, b| a < b));
        if !(0..n_tokens).all(|left| rise(left as u32)) {
            return Err(malformed("merges: right tokens do not rise"));
        }
        if merges.right.iter().chain(merges.merged.iter()).any(|id| id as usize >= n_tokens) {
            return Err(malformed("merges: token outside the vocabulary"));
        }
        if merges.rank.iter().any(|rank| rank as usize >= n_merges) {
            return Err(malformed("merges: rank out of range"));
        }
        Ok(merges)
    }

    /// Start of the merges of a left token, and their right tokens.
    #[inline]
    fn of(&self, left: u32) -> Option<(usize, U32s<'a>)> {
        let (from, to) = self.start.pair(left as usize)?;
        Some((from, self.right.slice(from, to)?))
    }

    #[inline]
    fn find(&self, left: u32, right: u32) -> Applicable {
        self.of(left)
            .and_then(|(from, rights)| rights.find(right).map(|i| from + i))
            .and_then(|i| Some(Applicable { rank: self.rank.get(i)?, merged: self.merged.get(i)? }))
            .unwrap_or(NO_MERGE)
    }

    /// Appends the tokens of a word. `word` has the tokens of its bytes.
    pub(super) fn encode(&self, word: &[u32], scratch: &mut Scratch, out: &mut Vec<u32>) {
        match word {
            [] => {}
            [id] => out.push(*id),
            _ if word.len() <= SHORT => self.encode_short(word, out),
            _ => scratch.encode(self, word, out),
        }
    }

    fn encode_short(&self, word: &[u32], out: &mut Vec<u32>) {
        let mut ids = [0; SHORT];
        let mut pairs = [NO_MERGE; SHORT];
        let mut n = word.len();
        ids[..n].copy_from_slice(word);
        for i in 1..n {
            pairs[i - 1] = self.find(ids[i - 1], ids[i]);
        }
        // `pairs[i]` is the merge of `ids[i]` and `ids[i + 1]`. The last of the n ids has none.
        while let Some(at) = first_lowest(&pairs[..n - 1]) {
            ids[at] = pairs[at].merged;
            ids.copy_within(at + 2..n, at + 1);
            pairs.copy_within(at + 1..n - 1, at);
            n -= 1;
            if at > 0 {
                pairs[at - 1] = self.find(ids[at - 1], ids[at]);
            }
            if at + 1 < n {
                pairs[at] = self.find(ids[at], ids[at + 1]);
            }
        }
        out.extend_from_slice(&ids[..n]);
    }
}

#[inline]
fn first_lowest(pairs: &[Applicable]) -> Option<usize> {
    let mut best = (NONE, 0);
    for (i, pair) in pairs.iter().enumerate() {
        if pair.rank < best.0 {
            best = (pair.rank, i);
        }
    }
    (best.0 != NONE).then_some(best.1)
}

/// A token of a long word, linked to its neighbours. A token that was merged into its left
/// neighbour has the id `NONE`.
#[derive(Clone, Copy)]
struct Link {
    id: u32,
    previous: u32,
    next: u32,
}

/// Memory for words longer than `SHORT`. The tokens take 12 bytes per byte of the word. Each
/// waiting pair takes 8 bytes; there are at most two pairs per byte.
#[derive(Default)]
pub(super) struct Scratch {
    links: Vec<Link>,
    /// Rank and left position of pairs. Outdated pairs stay in the heap and are recognised when
    /// they are popped.
    pairs: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Scratch {
    /// The same result as [`Merges::encode_short`], in n log n steps.
    fn encode(&mut self, merges: &Merges<'_>, word: &[u32], out: &mut Vec<u32>) {
        self.links.clear();
        self.links.extend((0u32..).zip(word).map(|(i, &id)| Link {
            id,
            previous: i.wrapping_sub(1),
            next: i + 1,
        }));
        self.pairs.clear();
        for left in 0..word.len() as u32 {
            self.consider(merges, left);
        }
        while let Some(Reverse((rank, left))) = self.pairs.pop() {
            let found = self.pair(merges, left);
            if found.rank == rank {
                self.merge(left, found.merged);
                self.consider(merges, self.links[left as usize].previous);
                self.consider(merges, left);
            }
        }
        out.extend(self.links.iter().map(|link| link.id).filter(|id| *id != NONE));
    }

    /// The merge of the token at `left` and the one after it.
    fn pair(&self, merges: &Merges<'_>, left: u32) -> Applicable {
        let Some(link) = self.links.get(left as usize).filter(|link| link.id != NONE) else {
            return NO_MERGE;
        };
        self.links.get(link.next as usize).map_or(NO_MERGE, |next| merges.find(link.id, next.id))
    }

    fn consider(&mut self, merges: &Merges<'_>, left: u32) {
        let rank = self.pair(merges, left).rank;
        if rank != NONE {
            self.pairs.push(Reverse((rank, left)));
        }
    }

    fn merge(&mut self, left: u32, merged: u32) {
        let right = self.links[left as usize].next;
        let after = self.links[right as usize].next;
        self.links[right as usize].id = NONE;
        self.links[left as usize].id = merged;
        self.links[left as usize].next = after;
        if let Some(link) = self.links.get_mut(after as usize) {
            link.previous = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Rules, Tokenizer, compile};
    use super::*;

    /// Pairs of a three-letter alphabet and pairs of these. Their order makes merges compete: `bc`
    /// takes the `b` of `ab`, and then `bca` comes before `abc`.
    const PAIRS: [(&str, &str); 9] = [
        ("b", "c"),
        ("a", "b"),
        ("a", "a"),
        ("ab", "c"),
        ("bc", "a"),
        ("a", "bc"),
        ("aa", "aa"),
        ("bc", "ab"),
        ("c", "aa"),
    ];

    fn section() -> Vec<u8> {
        let mut tokens: Vec<(u32, Vec<u8>)> = (0..=255).map(|byte| (byte.into(), vec![byte])).collect();
        let mut merges = Vec::new();
        for (left, right) in PAIRS {
            let text = [left, right].concat().into_bytes();
            if tokens.iter().all(|token| token.1 != text) {
                tokens.push((tokens.len() as u32, text.clone()));
            }
            let id = |text: &[u8]| tokens.iter().find(|token| token.1 == text).unwrap().0;
            let (left, right) = (id(left.as_bytes()), id(right.as_bytes()));
            merges.push(compile::Merge { left, right, merged: id(&text) });
        }
        compile::bpe(&compile::BpeSource { tokens, merges, ..Default::default() }).unwrap()
    }

    #[test]
    fn heap_and_arrays_give_the_same_tokens() {
        let section = section();
        let Rules::Bpe(_, bpe) = Tokenizer::parse(&section).unwrap().rules else { unreachable!() };
        let merges = bpe.merges();
        let mut random = 1u32;
        let mut scratch = Scratch::default();
        let (mut n_bytes, mut n_tokens) = (0, 0);
        for i in 0..2000 {
            let word: Vec<u32> = (0..2 + i % (SHORT - 1))
                .map(|_| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    u32::from(b'a') + (random >> 16) % 3
                })
                .collect();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            merges.encode_short(&word, &mut short);
            scratch.encode(merges, &word, &mut long);
            assert_eq!(short, long, "word {word:?}");
            n_bytes += word.len();
            n_tokens += short.len();
        }
        assert!(n_tokens * 5 < n_bytes * 4, "{n_bytes} bytes became {n_tokens} tokens");
    }
}
