//! One pass of all models over the texts.

use std::iter;
use std::ops::Range;
use std::path::Path;

use anyhow::{Result, ensure};
use rwkv_edge::printable::Printable;
use rwkv_edge::{Model, Traffic, input};

use crate::args::model_name;
use crate::memory::Demand;
use crate::progress::Progress;
use crate::utf16::hint_at_utf16;

use super::bootstrap::Windows;
use super::csv::Table;
use super::readers::{Readers, Reference};
use super::report::{Report, Summary};
use super::scores::{LogSoftmax, Norm, Prediction, Scores};
use super::windows::{Cut, Tokens, Window};
use super::{EvalArgs, STRETCH};

/// Places of a model's scores: those in this text, and those in the texts before it.
const TEXT: usize = 0;
const ALL: usize = 1;

/// A text to predict.
pub(super) struct Text {
    name: String,
    tokens: Tokens,
}

impl Text {
    /// Reads all texts, as long as there is memory for them.
    pub(super) fn read_all(args: &EvalArgs, model: &Model, demand: &Demand) -> Result<Vec<Self>> {
        let mut left = args.compute.kernels.memory.text_limit(model, demand)?;
        let (cut, max_tokens) = (args.cut()?, args.max_tokens);
        let texts = args.texts.iter().map(|path| {
            let bytes = input::read_text(path, left)?;
            left -= bytes.len() as u64;
            Self::new(path, &bytes, model, (cut, max_tokens))
        });
        texts.collect()
    }

    fn new(
        path: &Path,
        bytes: &[u8],
        model: &Model,
        (cut, max_tokens): (Cut, Option<usize>),
    ) -> Result<Self> {
        hint_at_utf16(bytes);
        let start = &model.chat().start_tokens;
        let mut tokens = model.encode_prompt(bytes)?;
        tokens.truncate(max_tokens.map_or(tokens.len(), |n| n.saturating_add(start.len())));
        let tokens = Tokens::new(tokens, start, cut);
        ensure!(tokens.scored().any(|n| n > 0), "{}: too short to predict anything", path.display());
        Ok(Self { name: Printable(path.display()).to_string(), tokens })
    }

    /// Number of units that are drawn by the bootstrap.
    fn stretches(&self, stretch: usize) -> usize {
        self.tokens.scored().map(|n| n.div_ceil(stretch)).sum()
    }
}

/// Models that read the texts, and their scores so far.
pub(super) struct Pass<'a> {
    model: &'a Model,
    readers: Readers,
    /// Tokens that the bootstrap draws together: those of a window, or of a stretch of this length.
    stretch: usize,
    windows: Windows,
    /// The models' names.
    names: Vec<String>,
    /// The scores of each model.
    scores: Vec<[Scores; 2]>,
    /// The KL divergence of each model in this stretch.
    kl: Vec<f64>,
    table: Option<Table>,
    progress: Progress,
    /// Predictions of all models so far.
    done: usize,
}

impl<'a> Pass<'a> {
    pub(super) fn new(args: &EvalArgs, model: &'a Model, readers: Readers, texts: &[Text]) -> Result<Self> {
        let (first, others) = args.models();
        let paths = iter::once(first).chain(others.iter().map(|path| Some(path.as_path())));
        let names: Vec<_> = paths.map(model_name).collect();
        let stretch = args.cut()?.window.unwrap_or(STRETCH);
        let stretches = texts.iter().map(|text| text.stretches(stretch)).sum();
        let tokens: usize = texts.iter().flat_map(|text| text.tokens.scored()).sum();
        Ok(Self {
            model,
            stretch,
            windows: Windows::with_capacity(names.len(), stretches),
            scores: names.iter().map(|_| [Scores::new(), Scores::new()]).collect(),
            kl: vec![0.0; names.len()],
            table: args.csv.as_deref().map(Table::create).transpose()?,
            progress: Progress::new(tokens * names.len()),
            done: 0,
            readers,
            names,
        })
    }

    /// Reads the texts. The table of tokens appears if all went well.
    pub(super) fn run(mut self, texts: Vec<Text>) -> Result<Report> {
        let (start, mut summaries) = (self.readers.traffic(), Vec::new());
        for Text { name, tokens } in texts {
            let (before, first) = (self.readers.traffic(), self.windows.len());
            tokens.for_each(|window| self.read_window(&name, &window))?;
            summaries.push((name, self.summaries(TEXT, &before, first)));
            for [text, all] in &mut self.scores {
                all.merge(text);
                *text = Scores::new();
            }
        }
        let all = self.summaries(ALL, &start, 0);
        self.table.map(Table::publish).transpose()?;
        Ok(Report {
            names: self.names,
            all,
            texts: summaries,
            has_reference: self.readers.reference.is_some(),
        })
    }

    fn read_window(&mut self, text: &str, window: &Window<'_>) -> Result<()> {
        let Window { tokens, first, .. } = *window;
        let block = if self.readers.reference.is_some() { Reference::TOKENS } else { self.stretch };
        self.readers.begin(&tokens[..first - 1])?;
        for start in (first..tokens.len()).step_by(self.stretch) {
            let end = tokens.len().min(start + self.stretch);
            self.kl.fill(0.0);
            for start in (start..end).step_by(block) {
                self.read_block(text, window, start..end.min(start + block))?;
            }
            self.windows.push(end - start, &self.kl);
        }
        Ok(())
    }

    /// Predicts the tokens with these indices from those before them.
    fn read_block(&mut self, text: &str, window: &Window<'_>, indices: Range<usize>) -> Result<()> {
        let Self { readers, model, names, scores, kl, table, progress, done, .. } = self;
        let Readers { judged, reference } = readers;
        let known = &window.tokens[indices.start - 1..indices.end - 1];
        reference.iter_mut().try_for_each(|reference| reference.read(known))?;
        let (reference, tokenizer) = (reference.as_ref(), model.tokenizer());
        for (m, reader) in judged.iter_mut().enumerate() {
            let [scores, _] = &mut scores[m];
            reader.read(known, |i, logits| {
                let (index, logits) = (indices.start + i, LogSoftmax::new(logits, Norm::of(logits)));
                let token = window.tokens[index];
                let place = (window.position(index), token, tokenizer.token(token).len());
                let prediction =
                    Prediction::new(place, logits, reference.map(|reference| reference.after(i)));
                scores.add(&prediction);
                kl[m] += prediction.kl();
                *done += 1;
                progress.show(*done, || format!(", {:.4} nats/token", scores.totals.nats.mean()));
                let place = (&*names[m], text, window.number);
                Ok(table.iter_mut().try_for_each(|table| table.add(place, &prediction))?)
            })?;
        }
        Ok(())
    }

    /// What is known of each model by its scores at `place`. The windows begin with `first`. Before
    /// them the engines had read `before`.
    fn summaries(&self, place: usize, before: &[Traffic], first: usize) -> Vec<Summary> {
        let range = first..self.windows.len();
        let intervals = self.readers.reference.as_ref().and_then(|_| self.windows.intervals(range.clone()));
        let live = |(after, before): (Traffic, &Traffic)| {
            let read = after - *before;
            read.active_columns as f64 / read.columns as f64
        };
        let live: Vec<_> = self.readers.traffic().into_iter().zip(before).map(live).collect();
        let reference = live.get(self.names.len()).copied();
        let kl = |m: usize| self.scores[m][place].totals.kl.mean();
        let models = self.scores.iter().enumerate();
        let summary = |(m, scores): (usize, &[Scores; 2])| Summary {
            totals: scores[place].totals,
            positions: scores[place].positions,
            kl_p99: scores[place].kl.quantile(0.99),
            live: live[m],
            reference_live: reference,
            windows: range.len(),
            intervals: intervals.as_ref().map(|intervals| intervals[m]),
            kl_ratio: (m > 0).then(|| kl(m) / kl(0)),
        };
        models.map(summary).collect()
    }
}
