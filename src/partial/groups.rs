//! Groups: keys with accumulators.

use super::accumulate::{Accumulators, Ids};
use crate::pipeline::sql::Aggregate;
use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use std::sync::Arc;

/// Numbers keys in the order of their first appearance. Null is a key like any other.
pub struct Keys {
    fields: Vec<Field>,
    kept: Kept,
}

enum Kept {
    /// There is one key of no columns, or none yet.
    NoColumns(bool),
    Hashed(Box<dyn GroupValues>),
    /// In the order of their numbers, each once: cheaper than a hash table as long as nothing is looked up.
    Listed(Vec<ArrayRef>, usize),
}

impl Keys {
    pub fn new(fields: &[Field]) -> Self {
        let none = fields.iter().map(|f| arrow::array::new_empty_array(f.data_type())).collect();
        let kept = if fields.is_empty() { Kept::NoColumns(false) } else { Kept::Listed(none, 0) };
        Self { fields: fields.to_vec(), kept }
    }

    pub fn len(&self) -> usize {
        match &self.kept {
            Kept::NoColumns(there) => *there as usize,
            Kept::Hashed(g) => g.len(),
            Kept::Listed(_, n) => *n,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of each row's key, into `ids`.
    pub fn intern(&mut self, columns: &[ArrayRef], rows: usize, ids: &mut Vec<usize>) -> Result<()> {
        match &mut self.kept {
            Kept::NoColumns(there) => {
                *there |= rows > 0;
                ids.clear();
                ids.resize(rows, 0);
                return Ok(());
            }
            Kept::Hashed(_) => {}
            Kept::Listed(listed, n) => {
                let mut groups = new_group_values(Arc::new(Schema::new(self.fields.clone())), &GroupOrdering::None)?;
                if *n > 0 {
                    groups.intern(listed, ids)?;
                    if groups.len() != *n {
                        return Err(DataFusionError::Internal(format!("expected {n} different keys, found {}", groups.len())));
                    }
                }
                self.kept = Kept::Hashed(groups);
            }
        }
        let Kept::Hashed(groups) = &mut self.kept else { unreachable!("made above") };
        if rows == 0 {
            ids.clear();
            return Ok(());
        }
        groups.intern(columns, ids)
    }

    /// Takes over keys that are known to differ, when there are none yet.
    pub fn take_over(&mut self, columns: &[ArrayRef], rows: usize) {
        match &mut self.kept {
            Kept::NoColumns(there) => *there |= rows > 0,
            kept => *kept = Kept::Listed(columns.to_vec(), rows),
        }
    }

    /// All keys in the order of their numbers. They stay.
    pub fn list(&mut self) -> Result<Vec<ArrayRef>> {
        if let Kept::Hashed(groups) = &mut self.kept {
            let n = groups.len();
            let columns = if n == 0 {
                self.fields.iter().map(|f| arrow::array::new_empty_array(f.data_type())).collect()
            } else {
                groups.emit(EmitTo::All)?
            };
            self.kept = Kept::Listed(columns, n);
        }
        Ok(match &self.kept {
            Kept::Listed(columns, _) => columns.clone(),
            _ => vec![],
        })
    }

    pub fn bytes(&self) -> usize {
        match &self.kept {
            Kept::NoColumns(_) => 0,
            Kept::Hashed(g) => g.size(),
            Kept::Listed(columns, _) => columns.iter().map(|c| c.get_array_memory_size()).sum(),
        }
    }
}

/// Keys and the state of a table's aggregates for each.
pub struct Groups {
    pub keys: Keys,
    pub accumulators: Accumulators,
    ids: Vec<usize>,
}

impl Groups {
    /// `keys` are [`Aggregate::keys`], or have `window_start` before them.
    pub fn new(aggregate: &Aggregate, keys: &[Field]) -> Result<Self> {
        Ok(Self { keys: Keys::new(keys), accumulators: Accumulators::new(aggregate)?, ids: vec![] })
    }

    /// Groups of these keys, each of which comes once, without a row so far. Their numbers are the keys' places.
    pub fn of_keys(aggregate: &Aggregate, columns: &[ArrayRef], rows: usize) -> Result<Self> {
        let mut groups = Self::new(aggregate, &aggregate.keys)?;
        groups.keys.take_over(columns, rows);
        let states = &aggregate.run.fields()[aggregate.keys.len()..];
        let empty: Vec<ArrayRef> = states.iter().map(|f| arrow::array::new_empty_array(f.data_type())).collect();
        groups.accumulators.merge(&empty, &[], rows)?;
        Ok(groups)
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds rows of [`Aggregate::input`]; their keys are the first columns.
    pub fn update(&mut self, aggregate: &Aggregate, batch: &RecordBatch) -> Result<()> {
        let width = self.keys.fields.len();
        self.keys.intern(&batch.columns()[..width], batch.num_rows(), &mut self.ids)?;
        self.accumulators.update(aggregate, batch, &self.ids, self.keys.len())
    }

    /// Adds a run: key columns, then state. Returns the number of each row's group.
    pub fn merge(&mut self, columns: &[ArrayRef], rows: usize) -> Result<&[usize]> {
        let (keys, state) = columns.split_at(self.keys.fields.len());
        if self.keys.is_empty() {
            // A run has each key once: nothing to look up.
            self.keys.take_over(keys, rows);
            self.ids.clear();
            self.ids.extend(0..rows);
        } else {
            self.keys.intern(keys, rows, &mut self.ids)?;
        }
        self.accumulators.merge(state, &self.ids, self.keys.len())?;
        Ok(&self.ids)
    }

    /// As [`Groups::merge`], for rows in which a key may come more than once.
    pub fn merge_repeated(&mut self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        let (keys, state) = columns.split_at(self.keys.fields.len());
        self.keys.intern(keys, rows, &mut self.ids)?;
        self.accumulators.merge(state, &self.ids, self.keys.len())
    }

    /// All groups as a run: key columns, then state.
    pub fn run(&mut self, schema: &arrow::datatypes::SchemaRef) -> Result<RecordBatch> {
        let n = self.len();
        let mut columns = self.keys.list()?;
        columns.extend(self.accumulators.state(&Ids::Range(0..n))?);
        let options = RecordBatchOptions::new().with_row_count(Some(n));
        Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
    }

    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.accumulators.bytes() + self.ids.capacity() * 8
    }
}
