//! The only place that spawns tasks and wires the stages.
