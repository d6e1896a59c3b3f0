//! What the columns of a windowed table show of its windows and groups, by its SQL in the log.

use super::facts::Facts;
use super::select::Select;
use super::window::Windows;
use crate::stage::TableSpec;
use std::collections::BTreeSet;

pub struct Shown {
    /// The column with the start of the window.
    pub window: Option<usize>,
    /// Columns that tell every group from every other; `None`: they do not.
    pub groups: Option<Vec<usize>>,
    /// Columns whose last digits depend on the order in which floats were added.
    pub inexact: BTreeSet<usize>,
    /// Its SQL was the same from the table's beginning on.
    pub unchanged: bool,
    /// Every record has a part in it: the SQL has no condition.
    pub takes_all: bool,
}

impl Shown {
    /// `None`: no windowed table, or one whose SQL cannot be read.
    pub fn of(facts: &Facts, spec: &TableSpec) -> Option<Self> {
        let planned = facts.plan().tables.get(&spec.name)?;
        let source = facts.plan().sources.get(&planned.source)?;
        let window = planned.window?;
        let select = Select::new(&planned.sql, &planned.source, &source.columns, Some(window), source.time_column.as_deref(), &spec.schema).ok()?;
        let before = facts.eras.iter().filter_map(|e| e.plan.tables.get(&spec.name)).filter(|t| t.born == planned.born);
        let unchanged = facts.first == 0 && before.into_iter().all(|t| t.sql == planned.sql);
        let groups = select.tells_groups_apart().then(|| select.group_output());
        Some(Self { window: select.window_output(), groups, unchanged, takes_all: unchanged && select.takes_all(), inexact: select.inexact })
    }
}

/// Starts of windows of a table that may still be corrected, as its rows show them.
pub struct Open {
    column: usize,
    windows: Windows,
    horizon: Option<i64>,
}

impl Open {
    /// Beyond the horizon as of the newest checkpoint.
    pub fn of(facts: &Facts, spec: &TableSpec, shown: &Shown) -> Option<Self> {
        let window = facts.plan().tables.get(&spec.name)?.window?;
        Some(Self { column: shown.window?, windows: Windows::new(window), horizon: facts.held_horizons.get(&spec.name).copied().flatten() })
    }

    pub fn column(&self) -> usize {
        self.column
    }

    pub fn is(&mut self, start_us: i64) -> bool {
        let (start, end) = self.windows.of(start_us);
        start == start_us && self.horizon.is_none_or(|h| end > h)
    }
}
