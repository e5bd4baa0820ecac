//! Generation: the text that follows, piece by piece, and why it ended.

use crate::error::Result;
use crate::session::Session;
use crate::text::{Status, TextStream};

/// Rules that end a text, besides the model's stop tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRules<'a, S = &'static str> {
    /// Most tokens; `None` for no limit.
    pub max_tokens: Option<u64>,
    /// The text ends before any of these.
    pub stop_texts: &'a [S],
}

impl StopRules<'static> {
    /// No limit and no stop text.
    pub const NONE: Self = Self { max_tokens: None, stop_texts: &[] };

    /// At most `n` tokens.
    pub const fn max_tokens(n: u64) -> Self {
        Self { max_tokens: Some(n), ..Self::NONE }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model chose this stop token.
    StopToken(u32),
    /// The stop text of this index was generated.
    StopText(usize),
    /// The text has as many tokens as the rules allow.
    MaxTokens,
    /// The caller [ended](Generation::end_here) it.
    Caller,
}

/// The text that follows in a session. Made by [`Session::generate`].
///
/// As an [`Iterator`] it gives each piece as a `String`. [`next_piece`](Self::next_piece) lends the
/// same pieces without allocating.
///
/// ```no_run
/// # fn main() -> rwkv_edge::Result<()> {
/// # let model = rwkv_edge::Model::open("model.rwkv", &Default::default())?;
/// # let mut session = rwkv_edge::Session::new(model, &Default::default())?;
/// use rwkv_edge::{End, StopRules};
/// session.feed_text("Once upon a time")?;
/// let mut story = session.generate(&StopRules::max_tokens(200))?;
/// for piece in &mut story {
///     print!("{}", piece?);
/// }
/// let cut_off = story.end() == Some(End::MaxTokens);
/// # Ok(())
/// # }
/// ```
pub struct Generation<'s> {
    session: &'s mut Session,
    stream: TextStream,
    max_tokens: Option<u64>,
    tokens: u64,
    end: Option<End>,
    /// Whether [`next_piece`](Self::next_piece) has returned the text that the stream held back.
    finished: bool,
    /// Bytes of earlier tokens that come first.
    first: Vec<u8>,
    /// Whether text that can go on keeps what the stream holds back.
    keeps_unshown: bool,
    piece: String,
}

impl Session {
    /// Generates the text that follows, as an iterator of pieces. It ends by `rules` or at one of
    /// the model's stop tokens.
    ///
    /// # Errors
    /// If a stop text is empty.
    pub fn generate<S: AsRef<str>>(&mut self, rules: &StopRules<'_, S>) -> Result<Generation<'_>> {
        Generation::new(self, rules)
    }
}

impl<'s> Generation<'s> {
    fn new<S: AsRef<str>>(session: &'s mut Session, rules: &StopRules<'_, S>) -> Result<Self> {
        let stream = TextStream::new(rules.stop_texts)?;
        // The most bytes that one piece can have: the bytes of a token and of an incomplete
        // character, each as U+FFFD at worst, and the text held back.
        let bytes = session.model().tokenizer().max_token_len() + 3;
        let piece = String::with_capacity(bytes * '\u{fffd}'.len_utf8() + stream.most_held());
        let max_tokens = rules.max_tokens;
        Ok(Self {
            session,
            stream,
            max_tokens,
            tokens: 0,
            end: None,
            finished: false,
            first: Vec::new(),
            keeps_unshown: false,
            piece,
        })
    }

    /// Begins with the [`unshown`](Self::unshown) bytes of the text before. Both together are then
    /// the text that one generation with the same rules would have given.
    pub fn begin_with(&mut self, unshown: &[u8]) {
        self.first = unshown.to_vec();
    }

    /// Lets a text that [`MaxTokens`](End::MaxTokens) or the [`Caller`](End::Caller) ends keep what
    /// it holds back: the bytes of an unfinished character, and text that could begin a stop text.
    pub fn keep_unshown(&mut self) {
        self.keeps_unshown = true;
    }

    /// The bytes that a text that is over has [kept](Self::keep_unshown).
    pub fn unshown(&self) -> Vec<u8> {
        self.stream.held()
    }

    /// The text of the next token; `None` if the text is over. The piece is empty if the token ends
    /// inside a character or could begin a stop text.
    ///
    /// # Errors
    /// As [`Session::next_token`].
    pub fn next_piece(&mut self) -> Result<Option<&str>> {
        self.piece.clear();
        if !self.first.is_empty() {
            self.end = pass_on(&mut self.stream, &self.first, &mut self.piece).or(self.end);
            self.first.clear();
        }
        if self.end.is_none() && self.max_tokens.is_some_and(|most| self.tokens >= most) {
            self.end = Some(End::MaxTokens);
        }
        if self.end.is_none() {
            let token = self.session.sample()?;
            let model = self.session.model();
            if model.is_stop_token(token) {
                self.end = Some(End::StopToken(token));
            } else {
                self.tokens += 1;
                self.end = pass_on(&mut self.stream, model.tokenizer().token(token), &mut self.piece);
                return Ok(Some(&self.piece));
            }
        }
        if self.finished {
            return Ok(None);
        }
        self.finished = true;
        let can_go_on = matches!(self.end, Some(End::MaxTokens | End::Caller));
        if !(can_go_on && self.keeps_unshown) {
            self.stream.finish_to(&mut self.piece);
        }
        Ok((!self.piece.is_empty()).then_some(&self.piece))
    }

    /// Ends the text here. The next piece is the text that was held back.
    pub fn end_here(&mut self) {
        self.end.get_or_insert(End::Caller);
    }

    /// Why the text ended; `None` while it goes on.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

/// Adds the text of some bytes to a piece, up to a stop text. Returns whether that ends the text.
fn pass_on(stream: &mut TextStream, bytes: &[u8], piece: &mut String) -> Option<End> {
    match stream.push_to(bytes, piece) {
        Status::Running => None,
        Status::Stopped => stream.stopped_by().map(End::StopText),
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_piece().map(|piece| piece.map(str::to_owned)).transpose()
    }
}
