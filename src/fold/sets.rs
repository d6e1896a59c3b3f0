//! Groups whose sets are more than memory is for: their values are written to files by a hash, and each file is counted by itself.

use super::FoldError;
use super::rows::{Scratch, ScratchWriter, Scratches, open, spill_error};
use crate::partial::accumulate::Ids;
use crate::partial::groups::Groups;
use crate::partial::sets::{LEVELS, PARTS, Pieces, has_sets, is_set, parted};
use crate::pipeline::sql::Aggregate;
use arrow::array::ArrayRef;
use arrow::compute::kernels::numeric::add;
use arrow::datatypes::{Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;

/// Rows that are merged before memory is looked at.
const ROWS: usize = 4096;
/// Less than this is not worth parts.
pub(super) const LEAST_BYTES: usize = 16 * 1024;

/// Takes rows of state, oldest first.
pub(super) type Take<'a> = dyn FnMut(&RecordBatch) -> Result<(), FoldError> + 'a;

/// Hands on rows of state, oldest first.
pub(super) type States<'a> = dyn Fn(&mut Take<'_>) -> Result<(), FoldError> + 'a;

/// Groups in memory; once their sets are too large, all rows in one file for each part of the values.
pub(super) struct Parting {
    schema: SchemaRef,
    /// As in [`Groups::new`].
    keys: Vec<Field>,
    most_bytes: usize,
    level: u32,
    groups: Groups,
    parts: Vec<ScratchWriter>,
}

/// What came of it.
pub(super) enum Parted {
    /// The sets were small enough, or no hash takes them apart.
    Whole(Groups),
    /// To be added up by themselves, on this level: no value is in two of them, and what is no set is in the first.
    Parts(Vec<Scratch>, u32),
}

impl Parting {
    /// Rows of `schema` will be added, whose first columns are `keys`: without sets, each key once in a batch. The sets may
    /// take `most_bytes`, about.
    pub(super) fn new(aggregate: &Aggregate, schema: &SchemaRef, keys: usize, most_bytes: usize, level: u32) -> Result<Self, FoldError> {
        let keys: Vec<Field> = schema.fields()[..keys].iter().map(|f| f.as_ref().clone()).collect();
        let groups = Groups::new(aggregate, &keys)?;
        Ok(Self { schema: schema.clone(), keys, most_bytes: most_bytes.max(LEAST_BYTES), level, groups, parts: vec![] })
    }

    pub(super) fn add(&mut self, aggregate: &Aggregate, batch: &RecordBatch, scratches: &mut Scratches) -> Result<(), FoldError> {
        if !has_sets(aggregate) {
            self.groups.merge(batch.columns(), batch.num_rows())?;
            return Ok(());
        }
        let pieces = Pieces::new(aggregate, batch, self.most_bytes / 16)?;
        for block in pieces.blocks(ROWS, self.most_bytes / 16, |_, _| false) {
            let rows = pieces.batch.slice(block.start, block.len());
            if !self.parts.is_empty() {
                self.write(aggregate, &rows)?;
                continue;
            }
            self.groups.merge_repeated(rows.columns(), rows.num_rows())?;
            if self.groups.accumulators.set_bytes() > self.most_bytes && self.level < LEVELS {
                self.part(aggregate, scratches)?;
            }
        }
        Ok(())
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Begins anew with what `choose` leaves of the groups. They are in memory still.
    pub(super) fn narrow(&mut self, aggregate: &Aggregate, choose: impl FnOnce(&RecordBatch) -> Result<RecordBatch, DataFusionError>) -> Result<(), FoldError> {
        let kept = std::mem::replace(&mut self.groups, Groups::new(aggregate, &self.keys)?).run(&self.schema)?;
        let kept = choose(&kept)?;
        self.groups.merge(kept.columns(), kept.num_rows())?;
        Ok(())
    }

    fn part(&mut self, aggregate: &Aggregate, scratches: &mut Scratches) -> Result<(), FoldError> {
        self.parts = (0..PARTS).map(|_| scratches.writer(&self.schema)).collect::<Result<_, _>>()?;
        let mut whole = std::mem::replace(&mut self.groups, Groups::new(aggregate, &self.keys)?);
        let rows = whole.run(&self.schema)?;
        drop(whole);
        self.write(aggregate, &rows)
    }

    fn write(&mut self, aggregate: &Aggregate, rows: &RecordBatch) -> Result<(), FoldError> {
        let pieces = Pieces::new(aggregate, rows, self.most_bytes / 16)?;
        for block in pieces.blocks(ROWS, self.most_bytes / 16, |_, _| false) {
            let parts = parted(aggregate, &pieces.batch.slice(block.start, block.len()), self.level)?;
            for (writer, rows) in self.parts.iter_mut().zip(parts).filter(|(_, rows)| rows.num_rows() > 0) {
                writer.write(&rows)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Parted, FoldError> {
        if self.parts.is_empty() {
            return Ok(Parted::Whole(self.groups));
        }
        let parts = self.parts.into_iter().map(|writer| Ok(writer.finish()?.0)).collect::<Result<_, FoldError>>()?;
        Ok(Parted::Parts(parts, self.level + 1))
    }
}

/// Hands on the rows of a file.
pub(super) fn read_rows(scratch: &Scratch, each: &mut Take<'_>) -> Result<(), FoldError> {
    for batch in open(scratch.path())? {
        each(&batch.map_err(|e| spill_error(scratch.path(), e))?)?;
    }
    Ok(())
}

/// One group, whose sets may be more than memory is for.
pub(super) struct Large<'a> {
    pub aggregate: &'a Aggregate,
    /// One row.
    pub key: Vec<ArrayRef>,
    pub states: &'a States<'a>,
    /// Memory for its sets, about.
    pub most_bytes: usize,
}

impl Large<'_> {
    /// Calls `done` with the group as far as each part of its sets goes; the first part has what is no set.
    pub(super) fn each(&self, scratches: &mut Scratches, done: &mut dyn FnMut(&mut Groups) -> Result<(), FoldError>) -> Result<(), FoldError> {
        self.level(0, self.states, scratches, done)
    }

    fn level(&self, level: u32, states: &States<'_>, scratches: &mut Scratches, done: &mut dyn FnMut(&mut Groups) -> Result<(), FoldError>) -> Result<(), FoldError> {
        let mut parting = Parting::new(self.aggregate, &self.aggregate.run, self.aggregate.keys.len(), self.most_bytes, level)?;
        states(&mut |batch| parting.add(self.aggregate, batch, scratches))?;
        match parting.finish()? {
            Parted::Whole(mut groups) if !groups.is_empty() => done(&mut groups),
            Parted::Whole(_) => Ok(()),
            Parted::Parts(parts, level) => parts.into_iter().try_for_each(|part| self.level(level, &|each| read_rows(&part, each), scratches, done)),
        }
    }

    /// The group's results, and for each call the positions whose result did not fit.
    pub(super) fn values(&self, scratches: &mut Scratches) -> Result<Values, FoldError> {
        let mut all: Option<Values> = None;
        self.each(scratches, &mut |groups| {
            let of_part = groups.accumulators.values(&Ids::Range(0..1))?;
            let Some((columns, _)) = &mut all else {
                all = Some(of_part);
                return Ok(());
            };
            for (nth, _) in self.aggregate.calls.iter().enumerate().filter(|(_, call)| is_set(call)) {
                columns[nth] = add(&columns[nth], &of_part.0[nth]).map_err(DataFusionError::from)?;
            }
            Ok(())
        })?;
        all.ok_or_else(|| DataFusionError::Internal("a large group has no rows".into()).into())
    }
}

/// Results of groups, and for each call the positions whose result did not fit.
pub(super) type Values = (Vec<ArrayRef>, Vec<Vec<usize>>);
