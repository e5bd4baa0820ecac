//! Texts as files: saving and loading snapshots.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::format::state_file::{StateHead, StateReader, StateWriter};
use crate::format::{Output, Published, SamplingParams, StateNotes, Target};
use crate::model::{Model, State, check_model};
use crate::sampler::Sampler;
use crate::session::Snapshot;

impl State {
    /// Writes the state in the `.rwstate` format, as a text that others begin with: without a
    /// sampler. The file has [`State::bytes`] and some 150 more, and the notes.
    ///
    /// # Errors
    /// If a note is too long, or those of the writer.
    pub fn save(&self, notes: &StateNotes, mut out: impl Write) -> Result<()> {
        write(&self.head(notes), self, &mut out)
    }

    /// As [`save`](Self::save), to a file that appears whole or not at all and replaces only a
    /// saved state.
    ///
    /// # Errors
    /// As `save`. The target is unchanged then.
    pub fn save_as(&self, notes: &StateNotes, target: Target) -> Result<Published> {
        write_file(&self.head(notes), self, target)
    }

    fn head(&self, notes: &StateNotes) -> StateHead {
        StateHead {
            model_id: self.model_id(),
            tokens_read: self.tokens_read(),
            tokens_hash: self.tokens_hash(),
            pending: None,
            sampler: None,
            notes: notes.clone(),
        }
    }
}

impl Snapshot {
    /// Writes the snapshot in the `.rwstate` format. The same snapshot gives the same bytes on
    /// every machine. The file has [`State::bytes`], some 300 more, 8 for each token that the
    /// sampler counts, and the notes.
    ///
    /// # Errors
    /// If a note is too long, or those of the writer.
    pub fn save(&self, notes: &StateNotes, mut out: impl Write) -> Result<()> {
        write(&self.head(notes), &self.state, &mut out)
    }

    /// As [`save`](Self::save), to the file of `target`. It appears whole or not at all, whatever
    /// ends the process, and survives a power failure.
    ///
    /// # Errors
    /// As `save`. The target is unchanged then.
    pub fn save_as(&self, notes: &StateNotes, target: Target) -> Result<Published> {
        write_file(&self.head(notes), &self.state, target)
    }

    /// Reads a snapshot of `model`. A file without a sampler gives one with `sampling` and `seed`.
    /// Nothing is read beyond the snapshot.
    ///
    /// # Errors
    /// If the bytes are no saved state, or one of [another model](crate::ErrorKind::OtherModel) or
    /// for a newer reader, or they are cut short or damaged. Or those of the reader, or if there is
    /// no memory for a state of the model.
    pub fn load(
        model: &Model,
        sampling: SamplingParams,
        seed: u64,
        mut from: impl Read,
    ) -> Result<(Self, StateNotes)> {
        read(model, (sampling, seed), StateReader::new(&mut from, None)?)
    }

    /// As [`load`](Self::load), from a file that has nothing else.
    ///
    /// # Errors
    /// As `load`.
    pub fn open(
        model: &Model,
        sampling: SamplingParams,
        seed: u64,
        path: impl AsRef<Path>,
    ) -> Result<(Self, StateNotes)> {
        let path = path.as_ref();
        let open = || {
            let mut file = File::open(path)?;
            let found = file.metadata()?;
            let len = found.is_file().then_some(found.len());
            read(model, (sampling, seed), StateReader::new(&mut file, len)?)
        };
        open().map_err(|error| error.with_path(path))
    }

    fn head(&self, notes: &StateNotes) -> StateHead {
        let sampler = Some(self.sampler.saved());
        StateHead { pending: self.pending, sampler, ..self.state.head(notes) }
    }
}

fn write(head: &StateHead, state: &State, out: &mut dyn Write) -> Result<()> {
    StateWriter::new(head, &|sink| state.values(sink))?.write(out)?;
    Ok(())
}

fn write_file(head: &StateHead, state: &State, target: Target) -> Result<Published> {
    let values = |sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| state.values(sink);
    let writer = StateWriter::new(head, &values)?;
    let path = target.path().to_owned();
    let mut output = Output::create(target, writer.file_len())?;
    writer.write(&mut output).map_err(|error| Error::from(error).with_path(path))?;
    output.publish()
}

fn read(
    model: &Model,
    (sampling, seed): (SamplingParams, u64),
    reader: StateReader<'_>,
) -> Result<(Snapshot, StateNotes)> {
    let (config, head) = (model.config(), reader.head());
    check_model(head.model_id, model.file().model_id())?;
    reader.check_values(State::bytes(config) as u64)?;
    let mut snapshot = Snapshot::new(model, sampling, seed)?;
    let damaged = |error: Error| Error::malformed(format!("state: {error}"));
    if let Some(sampler) = &head.sampler {
        snapshot.sampler = Sampler::resume(sampler, config.n_vocab).map_err(damaged)?;
    }
    head.pending.iter().try_for_each(|&token| model.check_token(token)).map_err(damaged)?;
    snapshot.pending = head.pending;
    let head = reader.read_values(snapshot.state.values_mut())?;
    snapshot.state.set_tokens(head.tokens_read, head.tokens_hash);
    Ok((snapshot, head.notes))
}
