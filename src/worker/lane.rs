//! A lane: one thread (or task) that takes raw batches through decode, transform and partial to what an
//! epoch stages. A partition always goes through the same lane, so that its rows stay in order.

use crate::decode::{self, Decoder};
use crate::epoch::entry::Counts;
use crate::observe::{Metrics, cpu};
use crate::partial::Partials;
use crate::pipeline::sql::TablePlan;
use crate::pipeline::{SourceSpec, TableFormatKind};
use crate::source::RawBatch;
use crate::stage::names;
use crate::stage::formats::{FileNames, TableStager};
use crate::stage::dead::DeadRows;
use crate::partial::Run;
use crate::stage::{DataFile, TableSpec};
use crate::time;
use crate::transform::Transform;
use arrow::array::TimestampMicrosecondArray;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// What a lane must know of one source and the tables that read it.
pub struct SourceLayout {
    pub spec: SourceSpec,
    pub topic: String,
    pub tables: Vec<TableLayout>,
    pub dead: Arc<TableSpec>,
}

pub struct TableLayout {
    pub plan: Arc<TablePlan>,
    pub spec: Arc<TableSpec>,
}

/// What one epoch assumes, for every lane alike.
#[derive(Clone, Default)]
pub struct EpochTerms {
    pub attempt: Uuid,
    pub read_at_ms: i64,
    /// Windowed table to the window end up to which its rows are staged raw, to be judged by the fold.
    pub judge_at: BTreeMap<String, Option<i64>>,
}

pub enum LaneCommand {
    Begin(EpochTerms),
    Batch { source: usize, batch: RawBatch },
    Close(oneshot::Sender<Result<LanePart, LaneError>>),
}

/// What a lane has to give to an epoch.
#[derive(Default)]
pub struct LanePart {
    pub runs: Vec<Run>,
    pub files: Vec<(String, TableFormatKind, DataFile, Bytes)>,
    /// Source and partition to the highest event time within the cap.
    pub max_event_us: BTreeMap<(usize, i32), i64>,
    pub counts: BTreeMap<usize, Counts>,
}

/// The epoch cannot be made: not a fault of the data, which becomes dead letters.
#[derive(Debug, thiserror::Error)]
#[error("{table}: {why}")]
pub struct LaneError {
    pub table: String,
    pub why: String,
}

pub fn lane_error(table: &str, why: impl ToString) -> LaneError {
    LaneError { table: table.to_string(), why: why.to_string() }
}

struct SourceLane {
    layout: Arc<SourceLayout>,
    decoder: Box<dyn Decoder>,
    time: Option<usize>,
    /// For each table: which of the decoder's columns it reads.
    projections: Vec<Vec<usize>>,
    tables: Vec<TableLane>,
    dead: DeadRows,
}

enum TableLane {
    Windowed(Option<Partials>),
    Plain { transform: Transform, stager: Option<TableStager> },
}

pub struct Lane {
    pipeline: String,
    nth: usize,
    sources: Vec<SourceLane>,
    terms: EpochTerms,
    part: LanePart,
    metrics: Arc<Metrics>,
    /// Bytes that the open epoch holds in this lane.
    held: Arc<std::sync::atomic::AtomicU64>,
    failed: Option<LaneError>,
}

impl Lane {
    pub fn new(pipeline: String, nth: usize, layouts: &[Arc<SourceLayout>], metrics: Arc<Metrics>, held: Arc<std::sync::atomic::AtomicU64>) -> Result<Self, LaneError> {
        let sources = layouts.iter().map(|l| SourceLane::new(l.clone())).collect::<Result<_, _>>()?;
        Ok(Self { pipeline, nth, sources, terms: EpochTerms::default(), part: LanePart::default(), metrics, held, failed: None })
    }

    /// Works until the sender is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<LaneCommand>) {
        while let Some(command) = commands.recv().await {
            match command {
                LaneCommand::Begin(terms) => self.begin(terms),
                LaneCommand::Batch { source, batch } => {
                    if self.failed.is_none()
                        && let Err(e) = self.take(source, &batch)
                    {
                        self.failed = Some(e);
                    }
                    self.held.store(self.bytes() as u64, Ordering::Relaxed);
                }
                LaneCommand::Close(reply) => {
                    let part = match self.failed.take() {
                        Some(e) => Err(e),
                        None => self.close(),
                    };
                    self.held.store(0, Ordering::Relaxed);
                    let _ = reply.send(part);
                }
            }
        }
    }

    fn begin(&mut self, terms: EpochTerms) {
        self.terms = terms;
        self.part = LanePart::default();
        self.failed = None;
        for source in &mut self.sources {
            source.dead = DeadRows::default();
            let layouts = source.layout.tables.iter().zip(&source.projections);
            for (table, (layout, columns)) in source.tables.iter_mut().zip(layouts) {
                match table {
                    TableLane::Windowed(partials) => match Partials::new(layout.plan.clone(), columns.clone()) {
                        Ok(fresh) => *partials = Some(fresh),
                        Err(e) => self.failed = Some(lane_error(&layout.plan.table, e)),
                    },
                    TableLane::Plain { stager, .. } => *stager = None,
                }
            }
        }
    }

    fn stager(pipeline: &str, attempt: Uuid, nth: usize, spec: &Arc<TableSpec>) -> Result<TableStager, LaneError> {
        let file_names = || -> FileNames {
            let mut file = 0;
            Box::new(move || {
                file += 1;
                names::epoch_file(attempt, nth, file)
            })
        };
        TableStager::new(pipeline, spec, file_names).map_err(|e| lane_error(&spec.name, e))
    }

    fn take(&mut self, nth: usize, raw: &RawBatch) -> Result<(), LaneError> {
        let source = &mut self.sources[nth];
        let layout = source.layout.clone();
        let decoded = cpu(&self.metrics.cpu.decode, || source.decoder.decode(raw));
        let counts = self.part.counts.entry(nth).or_default();
        counts.records += raw.records.len() as u64;
        counts.bytes += raw.bytes.len() as u64;
        counts.dead += decoded.dead.len() as u64;
        let name = layout.topic.as_str();
        for (record, reason) in &decoded.dead {
            source.dead.push(name, raw, *record, reason, None);
        }
        if let (Some(column), Some(watermark)) = (source.time, &layout.spec.watermark) {
            let times = decoded.batch.column(column).as_any().downcast_ref::<TimestampMicrosecondArray>();
            let times = times.ok_or_else(|| lane_error(&layout.spec.name, "the watermark column is no timestamp"))?;
            let mut highest = None;
            for (row, &at) in times.values().iter().enumerate() {
                let cap = time::cap_us(raw.records[decoded.rows[row] as usize].timestamp_ms, self.terms.read_at_ms, watermark.max_ahead_us);
                if at <= cap {
                    highest = highest.max(Some(at));
                } else {
                    counts.ahead += 1;
                }
            }
            if let Some(highest) = highest {
                let slot = self.part.max_event_us.entry((nth, raw.partition)).or_insert(highest);
                *slot = (*slot).max(highest);
            }
        }
        for ((table, columns), layout) in source.tables.iter_mut().zip(&source.projections).zip(&layout.tables) {
            let plan = &layout.plan;
            let failed: Vec<(u32, String)> = match table {
                TableLane::Windowed(partials) => {
                    let Some(partials) = partials else { continue };
                    let judge_at = self.terms.judge_at.get(&plan.table).copied().flatten();
                    cpu(&self.metrics.cpu.partial, || partials.add(&decoded, raw, name, judge_at)).map_err(|e| lane_error(&plan.table, e))?
                }
                TableLane::Plain { transform, stager } => {
                    let batch = decoded.batch.project(columns).map_err(|e| lane_error(&plan.table, e))?;
                    let done = cpu(&self.metrics.cpu.partial, || transform.apply(&batch)).map_err(|e| lane_error(&plan.table, e))?;
                    if done.batch.num_rows() > 0 {
                        let stager = match stager {
                            Some(stager) => stager,
                            None => stager.insert(Self::stager(&self.pipeline, self.terms.attempt, self.nth, &layout.spec)?),
                        };
                        cpu(&self.metrics.cpu.parquet, || stager.write(&done.batch)).map_err(|e| lane_error(&plan.table, e))?;
                    }
                    done.failed.into_iter().map(|(row, why)| (decoded.rows[row as usize], why)).collect()
                }
            };
            counts.dead += failed.len() as u64;
            for (record, reason) in failed {
                source.dead.push(name, raw, record, &reason, Some(&plan.table));
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let of = |t: &TableLane| match t {
            TableLane::Windowed(Some(p)) => p.bytes(),
            TableLane::Windowed(None) => 0,
            TableLane::Plain { stager, .. } => stager.as_ref().map_or(0, |s| s.bytes()),
        };
        self.sources.iter().map(|s| s.dead.bytes + s.tables.iter().map(of).sum::<usize>()).sum()
    }

    fn close(&mut self) -> Result<LanePart, LaneError> {
        let mut part = std::mem::take(&mut self.part);
        for source in &mut self.sources {
            let layout = source.layout.clone();
            for (table, layout) in source.tables.iter_mut().zip(&layout.tables) {
                match table {
                    TableLane::Windowed(partials) => {
                        if let Some(partials) = partials.take() {
                            part.runs.extend(cpu(&self.metrics.cpu.run, || partials.finish()).map_err(|e| lane_error(&layout.plan.table, e))?);
                        }
                    }
                    TableLane::Plain { stager, .. } => {
                        if let Some(stager) = stager.take() {
                            let files = cpu(&self.metrics.cpu.parquet, || stager.finish()).map_err(|e| lane_error(&layout.spec.name, e))?;
                            part.files.extend(files.into_iter().map(|(format, f, b)| (layout.spec.name.clone(), format, f, b)));
                        }
                    }
                }
            }
            if let Some(batch) = std::mem::take(&mut source.dead).finish().map_err(|e| lane_error(&layout.dead.name, e))? {
                let mut stager = Self::stager(&self.pipeline, self.terms.attempt, self.nth, &layout.dead)?;
                stager.write(&batch).map_err(|e| lane_error(&layout.dead.name, e))?;
                let files = stager.finish().map_err(|e| lane_error(&layout.dead.name, e))?;
                part.files.extend(files.into_iter().map(|(format, f, b)| (layout.dead.name.clone(), format, f, b)));
            }
        }
        Ok(part)
    }
}

impl SourceLane {
    fn new(layout: Arc<SourceLayout>) -> Result<Self, LaneError> {
        let spec = &layout.spec;
        let column = |name: &str| spec.columns.iter().position(|c| c.name == name);
        let time_column = spec.watermark.as_ref().and_then(|w| column(&w.column));
        let mut used: Vec<usize> = vec![];
        let mut wanted: Vec<usize> = time_column.into_iter().collect();
        for table in &layout.tables {
            for name in &table.plan.scan {
                wanted.push(column(name).ok_or_else(|| lane_error(&table.plan.table, format!("no column {name} in source {}", spec.name)))?);
            }
        }
        for column in wanted {
            if !used.contains(&column) {
                used.push(column);
            }
        }
        let place = |declared: usize| used.iter().position(|u| *u == declared).unwrap_or_default();
        let projections = layout.tables.iter().map(|t| t.plan.scan.iter().filter_map(|n| column(n)).map(place).collect()).collect();
        let decoder = decode::open(spec.format, &spec.columns, &used, time_column, spec.max_depth).map_err(|e| lane_error(&spec.name, e))?;
        let tables = layout.tables.iter().map(|t| match t.plan.window {
            Some(_) => TableLane::Windowed(None),
            None => TableLane::Plain { transform: Transform::new(t.plan.clone()), stager: None },
        });
        Ok(Self { decoder, time: time_column.map(place), projections, tables: tables.collect(), dead: DeadRows::default(), layout })
    }
}
