//! The functions that SQL may use: those of DataFusion's default set that answer the same each time they are asked.

use super::split::session;
use datafusion::logical_expr::Volatility;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Usual names of aggregates that DataFusion knows by others.
const OTHER_NAMES: [(&str, &str); 5] =
    [("variance", "var"), ("variance_samp", "var"), ("variance_pop", "var_pop"), ("variance_population", "var_pop"), ("std", "stddev")];

/// The aggregates of this version, by the names that DataFusion calls them.
const AGGREGATES: [&str; 11] = ["count", "sum", "avg", "min", "max", "bool_and", "bool_or", "stddev", "stddev_pop", "var", "var_pop"];

/// All names that a user may write for an aggregate.
pub(super) const WRITTEN: &str =
    "count, count(distinct …), sum, avg, min, max, bool_and, bool_or, stddev, stddev_pop, variance (var) and var_pop";

/// What a function's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Scalar,
    /// Its answer depends on more than its arguments.
    Volatile,
    Aggregate,
    /// DataFusion has it, this version has not.
    AggregateLater,
    Window,
    Unknown,
}

struct Registry {
    scalar: BTreeMap<String, Volatility>,
    aggregate: BTreeMap<String, bool>,
    window: BTreeSet<String>,
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let state = session();
        let mut aggregate: BTreeMap<String, bool> = state.aggregate_functions().iter().map(|(n, f)| (n.clone(), AGGREGATES.contains(&f.name()))).collect();
        aggregate.extend(OTHER_NAMES.iter().map(|(name, _)| (name.to_string(), true)));
        Registry {
            scalar: state.scalar_functions().iter().map(|(n, f)| (n.clone(), f.signature().volatility)).collect(),
            aggregate,
            window: state.window_functions().keys().cloned().collect(),
        }
    })
}

/// The name by which DataFusion knows an aggregate, where it has another one.
pub(super) fn planned_name(name: &str) -> Option<&'static str> {
    OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, planned)| *planned)
}

/// How something is written here that other systems have a function for.
pub(super) fn elsewhere(name: &str) -> Option<&'static str> {
    const OTHERS: [(&str, &str); 9] = [
        ("len", "length"),
        ("if", "case when … then … else … end"),
        ("iif", "case when … then … else … end"),
        ("isnull", "… is null"),
        ("count_if", "count(*) filter (where …)"),
        ("countif", "count(*) filter (where …)"),
        ("to_string", "cast(… as varchar)"),
        ("datediff", "date_part('day', … - …)"),
        ("any_value", "max"),
    ];
    OTHERS.iter().find(|(other, _)| *other == name).map(|(_, ours)| *ours)
}

/// `name` as the planner takes it: in lower case unless it was quoted.
pub(super) fn known(name: &str) -> Known {
    let registry = registry();
    match (registry.scalar.get(name), registry.aggregate.get(name)) {
        (Some(Volatility::Immutable), _) => Known::Scalar,
        (Some(_), _) => Known::Volatile,
        (None, Some(true)) => Known::Aggregate,
        (None, Some(false)) => Known::AggregateLater,
        (None, None) if registry.window.contains(name) => Known::Window,
        // The planner has it without a registry.
        (None, None) if name == "unnest" => Known::Scalar,
        (None, None) => Known::Unknown,
    }
}

/// The scalar functions that may be called.
#[cfg(test)]
pub(crate) fn scalar_functions() -> Vec<std::sync::Arc<datafusion::logical_expr::ScalarUDF>> {
    let mut all: Vec<_> = session().scalar_functions().values().filter(|f| f.signature().volatility == Volatility::Immutable).cloned().collect();
    all.sort_by_key(|f| f.name().to_string());
    all.dedup_by_key(|f| f.name().to_string());
    all
}

/// Every name that may be written.
pub(super) fn names() -> Vec<&'static str> {
    let registry = registry();
    let scalar = registry.scalar.iter().filter(|(_, v)| **v == Volatility::Immutable).map(|(n, _)| n.as_str());
    scalar.chain(registry.aggregate.iter().filter(|(_, has)| **has).map(|(n, _)| n.as_str())).collect()
}
