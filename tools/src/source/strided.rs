//! Views of a storage whose elements do not lie in rows, such as `w.t()`: their elements in the
//! order of the view.
//!
//! A panel is the part of the view in which the dimension that moves least in the storage runs
//! through a range, and the dimensions inside it run through all of theirs. It lies in one piece in
//! the view, and in long runs in the storage.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::file::{ReadAt, Source, check_range};

/// Bytes of a panel, if one step of its range is not longer.
const PANEL: u64 = 4 << 20;

/// Bytes of the longest such step.
const MAX_STEP: u64 = 16 << 20;

/// Panels that are kept: one for each thread that reads.
const KEPT_PANELS: usize = 8;

/// Elements that are further apart are read one by one.
const NEAR: u64 = 512;

/// The panels that were read last, of all views of a file.
#[derive(Debug, Default)]
pub(super) struct Panels(Mutex<VecDeque<Panel>>);

#[derive(Debug)]
struct Panel {
    /// Number of the view.
    view: usize,
    /// Number of the panel in it.
    number: u64,
    bytes: Arc<Vec<u8>>,
}

/// A view, as bytes.
#[derive(Debug)]
pub(super) struct Strided {
    bytes: Source,
    /// Number of the view among those of a file.
    id: usize,
    /// First byte of its first element.
    offset: u64,
    element: u64,
    /// Sizes and strides of the dimensions outside of the one that moves least.
    outer: Vec<(u64, u64)>,
    /// The dimension that moves least.
    range: (u64, u64),
    /// The dimensions inside it.
    inner: Vec<(u64, u64)>,
    /// Steps of the range in a panel.
    steps: u64,
    panels: Arc<Panels>,
}

/// Number of elements in dimensions.
fn count(dimensions: &[(u64, u64)]) -> u64 {
    dimensions.iter().map(|&(size, _)| size).product()
}

/// Place of element number `index` of some dimensions in the storage.
fn place(dimensions: &[(u64, u64)], mut index: u64) -> u64 {
    let mut place = 0;
    for &(size, stride) in dimensions.iter().rev() {
        place += index % size * stride;
        index /= size;
    }
    place
}

impl Strided {
    /// A view of `bytes` from `offset` on, with sizes and strides in elements of `element` bytes.
    /// All of it lies inside. `None` if a panel would be too large.
    pub(super) fn new(
        bytes: Source,
        (id, panels): (usize, Arc<Panels>),
        offset: u64,
        element: u64,
        (size, stride): (&[u64], &[u64]),
    ) -> Option<Self> {
        let dimensions: Vec<_> =
            size.iter().copied().zip(stride.iter().copied()).filter(|&(size, _)| size != 1).collect();
        let at = (0..dimensions.len()).min_by_key(|&i| dimensions[i].1)?;
        let (outer, inner) = (dimensions[..at].to_vec(), dimensions[at + 1..].to_vec());
        let range = dimensions[at];
        let step = count(&inner) * element;
        let span = if range.1 <= NEAR { range.1.max(1) * element } else { element };
        let steps = (PANEL / step.max(span)).clamp(1, range.0);
        let view = Self { bytes, id, offset, element, outer, range, inner, steps, panels };
        (step <= MAX_STEP).then_some(view)
    }

    /// Bytes of a step of the range.
    fn step(&self) -> u64 {
        count(&self.inner) * self.element
    }

    /// Panels in the range.
    fn per_range(&self) -> u64 {
        self.range.0.div_ceil(self.steps)
    }

    /// The panel of this number.
    fn panel(&self, number: u64) -> io::Result<Arc<Vec<u8>>> {
        let lock = || self.panels.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |panel: &&Panel| (panel.view, panel.number) == (self.id, number);
        if let Some(panel) = lock().iter().find(is_it) {
            return Ok(Arc::clone(&panel.bytes));
        }
        let bytes = Arc::new(self.gather(number)?);
        let mut panels = lock();
        if panels.len() == KEPT_PANELS {
            panels.pop_front();
        }
        panels.push_back(Panel { view: self.id, number, bytes: Arc::clone(&bytes) });
        Ok(bytes)
    }

    fn gather(&self, number: u64) -> io::Result<Vec<u8>> {
        let first = number % self.per_range() * self.steps;
        let steps = self.steps.min(self.range.0 - first);
        let start = place(&self.outer, number / self.per_range()) + first * self.range.1;
        let (inner, element) = (count(&self.inner), self.element as usize);
        let mut panel = vec![0; (steps * self.step()) as usize];
        let mut run = Vec::new();
        for column in 0..inner {
            self.read_run(start + place(&self.inner, column), steps, &mut run)?;
            let places = (column as usize * element..).step_by(self.step() as usize);
            for (at, value) in places.zip(run.chunks_exact(element)) {
                panel[at..at + element].copy_from_slice(value);
            }
        }
        Ok(panel)
    }

    /// Reads `steps` elements of the range from `start` on.
    fn read_run(&self, start: u64, steps: u64, run: &mut Vec<u8>) -> io::Result<()> {
        let (element, stride) = (self.element as usize, self.range.1);
        let at = |place: u64| self.offset + place * self.element;
        if stride > NEAR {
            run.resize(steps as usize * element, 0);
            for (i, value) in (0..).zip(run.chunks_exact_mut(element)) {
                self.bytes.read_exact_at(value, at(start + i * stride))?;
            }
            return Ok(());
        }
        let span = ((steps - 1) * stride + 1) as usize * element;
        run.resize(span.max(steps as usize * element), 0);
        self.bytes.read_exact_at(&mut run[..span], at(start))?;
        if stride != 1 {
            for i in 1..steps as usize {
                let from = i * stride as usize * element;
                run.copy_within(from..from + element, i * element);
            }
        }
        run.truncate(steps as usize * element);
        Ok(())
    }
}

impl ReadAt for Strided {
    fn len(&self) -> u64 {
        count(&self.outer) * self.range.0 * self.step()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(self, buffer, offset)?;
        let in_range = self.range.0 * self.step();
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (range, inside) = (at / in_range, at % in_range);
            let in_panel = self.steps * self.step();
            let panel = self.panel(range * self.per_range() + inside / in_panel)?;
            let from = &panel[(inside % in_panel) as usize..];
            let count = from.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(())
    }
}
