//! The scores as text and as JSON.

use std::io::{self, Write};
use std::ops::Range;

use crate::json::{Object, array, number};

use super::bootstrap::{Interval, Intervals};
use super::scores::{POSITIONS, Totals};

/// Everything that is known of the models.
pub(super) struct Report {
    /// The models' names.
    pub(super) names: Vec<String>,
    /// Each model in all texts.
    pub(super) all: Vec<Summary>,
    /// The texts by name, with each model in it.
    pub(super) texts: Vec<(String, Vec<Summary>)>,
    pub(super) has_reference: bool,
}

/// What is known of a model's predictions of some texts.
pub(super) struct Summary {
    pub(super) totals: Totals,
    /// By the position in the window.
    pub(super) positions: [Totals; POSITIONS.len()],
    /// 99 % of the tokens have at most this KL divergence.
    pub(super) kl_p99: f64,
    /// Share of the hidden units of channel mixing that are not zero.
    pub(super) live: f64,
    /// The same of the reference.
    pub(super) reference_live: Option<f64>,
    /// Number of windows that the intervals come from.
    pub(super) windows: usize,
    pub(super) intervals: Option<Intervals>,
    /// The mean KL divergence as a share of the first model's, if this is another.
    pub(super) kl_ratio: Option<f64>,
}

impl Report {
    pub(super) fn json(&self, out: &mut impl Write) -> io::Result<()> {
        let models: Vec<_> = (0..self.names.len()).map(|m| self.model_json(m)).collect();
        match &models[..] {
            [model] => writeln!(out, "{model}"),
            _ => writeln!(out, "{}", Object::new().raw("models", array(&models)).end()),
        }
    }

    fn model_json(&self, m: usize) -> String {
        let text = |(name, models): &(String, Vec<Summary>)| {
            self.summary_json(Object::new().text("text", name), &models[m]).end()
        };
        let object = self.summary_json(Object::new().text("model", &self.names[m]), &self.all[m]);
        object.raw("texts", array(self.texts.iter().map(text))).end()
    }

    /// Adds the keys of some texts.
    fn summary_json(&self, object: Object, summary: &Summary) -> Object {
        let Summary { totals, kl_p99, live, reference_live, windows, intervals, kl_ratio, .. } = summary;
        let mut object = self.totals_json(object, totals).float("live_units", *live);
        if let Some(reference_live) = reference_live {
            object = object
                .float("reference_live_units", *reference_live)
                .float("kl_p99", *kl_p99)
                .raw("windows", windows)
                .raw("mean_kl_interval", interval_json(intervals.map(|of| of.mean)));
        }
        if let Some(ratio) = kl_ratio {
            let interval = interval_json(intervals.map(|of| of.ratio));
            object = object.float("kl_ratio", *ratio).raw("kl_ratio_interval", interval);
        }
        let positions = summary.positions().map(|(range, totals)| {
            let object = Object::new().raw("from", range.start);
            self.totals_json(object, totals).end()
        });
        object.raw("positions", array(positions))
    }

    /// Adds the keys of some tokens.
    fn totals_json(&self, object: Object, totals: &Totals) -> Object {
        let nats = totals.nats.mean();
        let object = object
            .raw("tokens", totals.tokens)
            .raw("bytes", totals.bytes)
            .float("nats_per_token", nats)
            .float("nats_per_token_error", totals.nats.standard_error())
            .float("perplexity", nats.exp())
            .float("bits_per_byte", totals.bits_per_byte());
        if !self.has_reference {
            return object;
        }
        object
            .float("reference_perplexity", totals.reference_nats.mean().exp())
            .float("mean_kl", totals.kl.mean())
            .float("mean_kl_error", totals.kl.standard_error())
            .float("top1_agreement", totals.agreement())
    }

    pub(super) fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let several = self.names.len() > 1;
        for (m, (name, all)) in self.names.iter().zip(&self.all).enumerate() {
            if several {
                writeln!(out, "{}model             {name}", if m > 0 { "\n" } else { "" })?;
            }
            self.summary_text(out, all)?;
            let positions = all.positions().map(|(range, totals)| (position_name(&range), totals));
            self.table(out, "position", positions)?;
            let texts = self.texts.iter().map(|(name, models)| (name.clone(), &models[m].totals));
            self.table(out, "text", texts)?;
        }
        Ok(())
    }

    fn summary_text(&self, out: &mut impl Write, summary: &Summary) -> io::Result<()> {
        let Summary { totals, kl_p99, live, reference_live, windows, intervals, kl_ratio, .. } = summary;
        let nats = totals.nats.mean();
        writeln!(out, "tokens            {}", totals.tokens)?;
        writeln!(out, "bytes             {}", totals.bytes)?;
        writeln!(out, "nats/token        {nats:.5} +- {:.5}", totals.nats.standard_error())?;
        write!(out, "perplexity        {:.4}", nats.exp())?;
        if self.has_reference {
            let change = (nats - totals.reference_nats.mean()).exp() - 1.0;
            write!(out, ", {:+.2} % of the reference's", 100.0 * change)?;
        }
        writeln!(out, "\nbits/byte         {:.5}", totals.bits_per_byte())?;
        let live = 100.0 * live;
        let Some(reference_live) = reference_live else {
            return writeln!(out, "live units        {live:.2} %");
        };
        let (kl, error) = (totals.kl.mean(), totals.kl.standard_error());
        writeln!(out, "mean KL           {kl:.6} +- {error:.6} nats")?;
        if let Some(Intervals { mean: Interval { low, high }, .. }) = intervals {
            writeln!(out, "  95 % interval   {low:.6} to {high:.6}, from {windows} windows")?;
        }
        writeln!(out, "  99 % of tokens  {kl_p99:.5} at most")?;
        if let Some(ratio) = kl_ratio {
            write!(out, "  of the first's  {ratio:.4}")?;
            if let Some(Intervals { ratio: Interval { low, high }, .. }) = intervals {
                write!(out, ", {low:.4} to {high:.4}")?;
            }
            writeln!(out)?;
        }
        writeln!(out, "top-1 agreement   {:.2} %", 100.0 * totals.agreement())?;
        writeln!(out, "live units        {live:.2} %, {:.2} % in the reference", 100.0 * reference_live)
    }

    /// Shows parts of the tokens beside each other, if there are several.
    fn table<'a>(
        &self,
        out: &mut impl Write,
        head: &str,
        rows: impl Iterator<Item = (String, &'a Totals)>,
    ) -> io::Result<()> {
        let rows: Vec<_> = rows.collect();
        if rows.len() < 2 {
            return Ok(());
        }
        let width = rows.iter().map(|(name, _)| name.chars().count() + 2).fold(17, usize::max);
        write!(out, "{head:<width$} {:>9} {:>11}", "tokens", "nats/token")?;
        if self.has_reference {
            write!(out, " {:>10} {:>9}", "mean KL", "top-1")?;
        }
        for (name, totals) in rows {
            let width = width - 2;
            write!(out, "\n  {name:<width$} {:>9} {:>11.5}", totals.tokens, totals.nats.mean())?;
            if self.has_reference {
                write!(out, " {:>10.6} {:>7.2} %", totals.kl.mean(), 100.0 * totals.agreement())?;
            }
        }
        writeln!(out)
    }
}

impl Summary {
    /// The ranges of positions that have tokens.
    fn positions(&self) -> impl Iterator<Item = (Range<usize>, &Totals)> {
        let ends = POSITIONS.into_iter().skip(1).chain([usize::MAX]);
        let ranges = POSITIONS.into_iter().zip(ends).map(|(start, end)| start..end);
        ranges.zip(&self.positions).filter(|(_, totals)| totals.tokens > 0)
    }
}

fn position_name(range: &Range<usize>) -> String {
    match range.end {
        usize::MAX => format!("from {}", range.start),
        end => format!("{} to {}", range.start, end - 1),
    }
}

fn interval_json(interval: Option<Interval>) -> String {
    let numbers = |Interval { low, high }| array([low, high].map(number));
    interval.map_or("null".into(), numbers)
}
