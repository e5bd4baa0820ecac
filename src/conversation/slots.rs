//! The states that a conversation keeps: allocated once, shared by forks.

use crate::error::Result;
use crate::model::{Model, State};

/// A fixed number of states. Each is free or has holders.
pub(super) struct Slots {
    slots: Vec<Slot>,
}

/// A state to return to.
pub(super) struct Slot {
    pub(super) state: State,
    /// The random numbers that follow.
    pub(super) seed: u64,
    holders: usize,
}

impl Slots {
    pub(super) fn new(model: &Model, count: usize) -> Result<Self> {
        let slot = || Ok(Slot { state: model.state_memory()?, seed: 0, holders: 0 });
        Ok(Self { slots: (0..count).map(|_| slot()).collect::<Result<_>>()? })
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// A copy of a state in a free slot, held once. `None` if no slot is free.
    ///
    /// # Errors
    /// If the state belongs to another model.
    pub(super) fn keep(&mut self, state: &State, seed: u64) -> Result<Option<usize>> {
        let Some(index) = self.slots.iter().position(|slot| slot.holders == 0) else { return Ok(None) };
        let slot = &mut self.slots[index];
        slot.state.copy_from(state)?;
        (slot.seed, slot.holders) = (seed, 1);
        Ok(Some(index))
    }

    pub(super) fn hold(&mut self, index: usize) {
        self.slots[index].holders += 1;
    }

    pub(super) fn release(&mut self, index: usize) {
        self.slots[index].holders -= 1;
    }

    pub(super) fn slot_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }
}
