//! Where a text is cut: windows that begin from the initial state, and which of their tokens count.

/// How texts are cut.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Tokens of a window; `None` for the whole text.
    pub(super) window: Option<usize>,
    /// Tokens at the start of a window that are read but not scored.
    pub(super) skip: usize,
}

/// The tokens of a text, behind the model's start tokens.
pub(super) struct Tokens {
    /// The tokens of a window are preceded by those of the window before, which has been read. The
    /// start tokens take their place.
    tokens: Vec<u32>,
    start: Vec<u32>,
    cut: Cut,
}

/// A window: tokens that are read from the initial state.
pub(super) struct Window<'a> {
    /// Counted from 0 in each text.
    pub(super) number: usize,
    /// Start tokens and the tokens of the text.
    pub(super) tokens: &'a [u32],
    /// Index in `tokens` of the first token that is scored.
    pub(super) first: usize,
    /// Number of start tokens.
    start: usize,
}

impl Window<'_> {
    /// Position in the window of the token with this index in `tokens`.
    pub(super) fn position(&self, index: usize) -> usize {
        index - self.start
    }
}

impl Tokens {
    /// `tokens` begins with the start tokens `start`.
    pub(super) fn new(tokens: Vec<u32>, start: &[u32], cut: Cut) -> Self {
        Self { tokens, start: start.to_vec(), cut }
    }

    /// Number of tokens of the text.
    fn len(&self) -> usize {
        self.tokens.len() - self.start.len()
    }

    /// Tokens of a whole window.
    fn window_len(&self) -> usize {
        self.cut.window.unwrap_or(self.len()).max(1)
    }

    /// Position of the first token of a window that is scored. Without start tokens nothing predicts
    /// the first one.
    fn first(&self) -> usize {
        self.cut.skip.max(usize::from(self.start.is_empty()))
    }

    /// Number of scored tokens in each window. The last window may be too short to have any.
    pub(super) fn scored(&self) -> impl Iterator<Item = usize> {
        let (len, each, first) = (self.len(), self.window_len(), self.first());
        (0..len).step_by(each).map(move |at| each.min(len - at).saturating_sub(first))
    }

    /// The windows with scored tokens, in order. Each is made where the tokens before it have been.
    pub(super) fn for_each<E>(mut self, mut each: impl FnMut(Window<'_>) -> Result<(), E>) -> Result<(), E> {
        let (start, first, step) = (self.start.len(), self.first(), self.window_len());
        let end = self.len();
        for (number, at) in (0..end).step_by(step).enumerate() {
            let len = step.min(end - at);
            let tokens = &mut self.tokens[at..at + start + len];
            tokens[..start].copy_from_slice(&self.start);
            if len > first {
                each(Window { number, tokens, first: start + first, start })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens that are read before the first scored one, and the scored ones with their positions.
    type Parts = (Vec<u32>, Vec<(usize, u32)>);

    /// The windows of a text of `len` tokens.
    fn windows(start: &[u32], len: u32, cut: Cut) -> Vec<Parts> {
        let tokens = Tokens::new(start.iter().copied().chain(100..100 + len).collect(), start, cut);
        let scored: Vec<_> = tokens.scored().filter(|&n| n > 0).collect();
        let mut windows = Vec::new();
        let each = |window: Window<'_>| {
            let tokens = (window.first..window.tokens.len()).map(|i| (window.position(i), window.tokens[i]));
            assert_eq!(window.number, windows.len());
            windows.push((window.tokens[..window.first].to_vec(), tokens.collect::<Vec<_>>()));
            Ok::<_, ()>(())
        };
        tokens.for_each(each).unwrap();
        assert_eq!(scored, windows.iter().map(|(_, tokens)| tokens.len()).collect::<Vec<_>>());
        windows
    }

    #[test]
    fn windows_cover_each_token_once() {
        for start in [&[0][..], &[1, 2, 3]] {
            for window in [Some(1), Some(2), Some(7), Some(20), Some(21), None] {
                let windows = windows(start, 20, Cut { window, skip: 0 });
                let tokens: Vec<_> = windows.iter().flat_map(|(_, tokens)| tokens).map(|&(_, t)| t).collect();
                assert_eq!(tokens, (100..120).collect::<Vec<_>>(), "{window:?}");
                assert!(windows.iter().all(|(before, tokens)| before == start && tokens[0].0 == 0));
            }
        }
    }

    #[test]
    fn skipped_tokens_are_read_but_not_scored() {
        let windows = windows(&[0], 10, Cut { window: Some(4), skip: 2 });
        // The last window has two tokens, so none is scored.
        let expected =
            [(vec![0, 100, 101], vec![(2, 102), (3, 103)]), (vec![0, 104, 105], vec![(2, 106), (3, 107)])];
        assert_eq!(windows, expected);
    }

    #[test]
    fn nothing_predicts_the_first_token_without_start_tokens() {
        let whole = Cut { window: None, skip: 0 };
        assert_eq!(windows(&[], 3, whole), [(vec![100], vec![(1, 101), (2, 102)])]);
        let cut = Cut { window: Some(2), skip: 0 };
        assert_eq!(windows(&[], 5, cut), [(vec![100], vec![(1, 101)]), (vec![102], vec![(1, 103)])]);
        assert_eq!(windows(&[], 0, whole), []);
        assert_eq!(windows(&[], 1, whole), []);
    }
}
