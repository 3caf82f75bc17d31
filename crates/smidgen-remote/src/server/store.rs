//! Sessions on disk: what was opened, and the network and the optimiser's moments after the last
//! confirmed step.

use std::path::Path;

use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::proto::{Hash, OpenRequest, read_numbers, to_bytes};
use crate::trainer::TrainerState;

/// A session's name.
pub(super) type SessionId = [u8; 16];

type Result<T, E = redb::Error> = std::result::Result<T, E>;

type Numbers = TableDefinition<'static, SessionId, &'static [u8]>;

/// What a session was opened with, a [`Stored`].
const SESSIONS: TableDefinition<'_, SessionId, &[u8]> = TableDefinition::new("sessions");
/// The last confirmed step, its hash, and the sum of its losses if they are computed here.
type Step = (u64, Hash, Option<f64>);
const STEPS: TableDefinition<'_, SessionId, Step> = TableDefinition::new("steps");
/// The network, AdamW's means and its squares after that step, f32.
const NUMBERS: Numbers = TableDefinition::new("numbers");
const MEANS: Numbers = TableDefinition::new("means");
const SQUARES: Numbers = TableDefinition::new("squares");

/// A session as it was opened.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Stored {
    /// The name of the token that it belongs to.
    #[prost(string, tag = "1")]
    pub owner: String,
    /// The device's message.
    #[prost(message, required, tag = "2")]
    pub open: OpenRequest,
}

/// All sessions.
#[derive(Debug)]
pub(super) struct Store(Database);

/// What came of making a session.
pub(super) enum Created {
    /// It was made.
    New,
    /// It was there, with the step that it has confirmed.
    Found(Stored, u64),
    /// The owner has as many as are allowed.
    TooMany,
}

impl Store {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: &Path) -> Result<Self> {
        let store = Self(Database::create(path)?);
        let transaction = store.0.begin_write()?;
        transaction.open_table(SESSIONS)?;
        transaction.open_table(STEPS)?;
        for table in [NUMBERS, MEANS, SQUARES] {
            transaction.open_table(table)?;
        }
        transaction.commit()?;
        Ok(store)
    }

    /// How many sessions there are.
    pub fn count(&self) -> Result<u64> {
        let transaction = self.0.begin_read()?;
        let sessions = transaction.open_table(SESSIONS)?;
        Ok(sessions.iter()?.count() as u64)
    }

    /// A session.
    pub fn find(&self, id: SessionId) -> Result<Option<Stored>> {
        let transaction = self.0.begin_read()?;
        let sessions = transaction.open_table(SESSIONS)?;
        Ok(match sessions.get(id)? {
            Some(bytes) => Some(decode(bytes.value())?),
            None => None,
        })
    }

    /// The last confirmed step, 0 where there is none, its hash, and the sum of its losses.
    pub fn confirmed(&self, id: SessionId) -> Result<Step> {
        let transaction = self.0.begin_read()?;
        let steps = transaction.open_table(STEPS)?;
        Ok(steps.get(id)?.map_or_else(Default::default, |step| step.value()))
    }

    /// Makes a session, unless it is there already or its owner has `most` of them.
    pub fn create(&self, id: SessionId, session: &Stored, most: u64) -> Result<Created> {
        let transaction = self.0.begin_write()?;
        let created = {
            let mut sessions = transaction.open_table(SESSIONS)?;
            let found = match sessions.get(id)? {
                Some(bytes) => Some(decode(bytes.value())?),
                None => None,
            };
            let mut owned = 0;
            for stored in sessions.iter()? {
                owned += u64::from(decode(stored?.1.value())?.owner == session.owner);
            }
            match found {
                Some(found) => {
                    let steps = transaction.open_table(STEPS)?;
                    let step = steps.get(id)?.map_or(0, |step| step.value().0);
                    Created::Found(found, step)
                }
                None if owned >= most => Created::TooMany,
                None => {
                    sessions.insert(id, session.encode_to_vec().as_slice())?;
                    Created::New
                }
            }
        };
        transaction.commit()?;
        Ok(created)
    }

    /// What a session goes on from; None before its first confirmed step.
    pub fn state(&self, id: SessionId) -> Result<Option<TrainerState>> {
        let transaction = self.0.begin_read()?;
        let Some(steps) = transaction.open_table(STEPS)?.get(id)?.map(|step| step.value().0) else {
            return Ok(None);
        };
        let read = |table: Numbers| -> Result<Vec<f32>> {
            let table = transaction.open_table(table)?;
            let Some(bytes) = table.get(id)? else { return Ok(Vec::new()) };
            let mut numbers = vec![0.0; bytes.value().len() / 4];
            read_numbers(bytes.value(), &mut numbers);
            Ok(numbers)
        };
        let (numbers, means, squares) = (read(NUMBERS)?, read(MEANS)?, read(SQUARES)?);
        Ok(Some(TrainerState { steps, numbers, means, squares }))
    }

    /// The last confirmed step and the network's bytes after it; None before the first.
    pub fn network(&self, id: SessionId) -> Result<Option<(u64, Vec<u8>)>> {
        let transaction = self.0.begin_read()?;
        let step = transaction.open_table(STEPS)?.get(id)?.map(|step| step.value().0);
        let numbers = transaction.open_table(NUMBERS)?.get(id)?.map(|n| n.value().to_vec());
        Ok(step.zip(numbers))
    }

    /// Holds what a session goes on from. When this returns, it is on the disk.
    pub fn commit(
        &self,
        id: SessionId,
        (hash, loss): (Hash, Option<f64>),
        state: &TrainerState,
    ) -> Result<()> {
        let transaction = self.0.begin_write()?;
        transaction.open_table(STEPS)?.insert(id, (state.steps, hash, loss))?;
        for (table, numbers) in
            [(NUMBERS, &state.numbers), (MEANS, &state.means), (SQUARES, &state.squares)]
        {
            transaction.open_table(table)?.insert(id, to_bytes(numbers).as_slice())?;
        }
        Ok(transaction.commit()?)
    }

    /// Forgets a session. Returns whether it was there.
    pub fn remove(&self, id: SessionId) -> Result<bool> {
        let transaction = self.0.begin_write()?;
        let found = transaction.open_table(SESSIONS)?.remove(id)?.is_some();
        transaction.open_table(STEPS)?.remove(id)?;
        for table in [NUMBERS, MEANS, SQUARES] {
            transaction.open_table(table)?.remove(id)?;
        }
        transaction.commit()?;
        Ok(found)
    }
}

fn decode(bytes: &[u8]) -> Result<Stored> {
    Stored::decode(bytes).map_err(|e| redb::Error::Corrupted(format!("a session's settings: {e}")))
}
