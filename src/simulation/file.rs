//! The pipeline file of a seed: its tables, and what it says of them.

use super::reckoning::{DISTINCT, HAVING, ZONE};
use super::world::PIPELINE;
use crate::epoch::protocol_tests::Rng;
use crate::epoch::tests::loaded;
use crate::pipeline::Pipeline;
use crate::pipeline::sql::TablePlan;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock};

/// A table of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    pub what: What,
    /// From 1: a table that takes the place of another has a name of its own.
    pub nth: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Windows by key, upserted.
    Sums,
    /// Windows, append-only.
    Pairs,
    Plain,
    /// As `Sums`, of the other source.
    Tally,
    /// As `Plain`, of the other source.
    Hits,
}

impl Table {
    pub fn name(self) -> String {
        let name = format!("{:?}", self.what).to_lowercase();
        if self.nth == 1 { name } else { format!("{name}{}", self.nth) }
    }

    pub fn source(self) -> &'static str {
        if matches!(self.what, What::Tally | What::Hits) { OTHER } else { "events" }
    }

    pub fn is_plain(self) -> bool {
        matches!(self.what, What::Plain | What::Hits)
    }
}

/// The source that some files have beside `events`.
pub const OTHER: &str = "taps";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Partitioning {
    None,
    /// By a column of the rows.
    Identity,
    /// Windows by their hour, day or month, other rows by a column.
    Time(&'static str),
}

/// The pipeline file of a seed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct File {
    pub tables: Vec<Table>,
    pub formats: &'static str,
    pub lateness_min: [u64; 2],
    pub on_update: bool,
    pub idle: bool,
    pub partitioning: Partitioning,
    /// Size of all windows.
    pub window_min: u64,
    /// All windows are days of Berlin instead.
    pub zoned: bool,
    /// Windows count the different values, too.
    pub distinct: bool,
    /// Some rows of windows are not shown, as long as their sum is what it is.
    pub having: bool,
    /// Plain tables, and windows with a key, have one more column.
    pub column_added: bool,
    /// How often somebody wrote another comment and property.
    pub remarks: u64,
    /// Tables are kept small all the time; otherwise no table grows so large that anything were done.
    pub kept_small: Option<KeptSmall>,
}

/// What tables say of their upkeep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeptSmall {
    snapshots: u64,
    metadata_files: u64,
    /// So many manifests become one.
    manifests: u64,
    /// Commits between the checkpoints of a Delta table.
    commits: u64,
    log_ms: u64,
    removed_ms: u64,
}

impl KeptSmall {
    fn roll(rng: &mut Rng) -> Self {
        let log_ms = [0, 500, 3000][rng.below(3) as usize];
        let removed_ms = [0, 500, 3000][rng.below(3) as usize];
        Self { snapshots: 2 + rng.below(2), metadata_files: 1 + rng.below(3), manifests: 2 + rng.below(2), commits: 1 + rng.below(3), log_ms, removed_ms }
    }

    /// As properties of a table.
    fn text(self) -> String {
        format!(
            "history.expire.min-snapshots-to-keep: \"{}\", write.metadata.previous-versions-max: \"{}\", commit.manifest.min-count-to-merge: \"{}\", delta.checkpointInterval: \"{}\", \
             delta.logRetentionDuration: interval {} milliseconds, delta.deletedFileRetentionDuration: interval {} milliseconds",
            self.snapshots, self.metadata_files, self.manifests, self.commits, self.log_ms, self.removed_ms
        )
    }
}

/// Files that seeds begin with.
const FILES: u64 = 400;

impl File {
    /// One of so many that each can be planned once: planning SQL takes longer than a seed may.
    pub fn roll(rng: &mut Rng) -> Self {
        use What::*;
        let rng = &mut Rng(rng.below(FILES));
        let of = |all: &[What]| all.iter().map(|what| Table { what: *what, nth: 1 }).collect::<Vec<_>>();
        let nth = rng.below(6) as usize;
        let mut tables = [of(&[Sums]), of(&[Pairs]), of(&[Sums, Plain]), of(&[Sums, Pairs]), of(&[Sums]), of(&[Sums, Pairs, Plain])][nth].clone();
        let formats = ["iceberg", "delta", "iceberg, delta"][rng.below(3) as usize];
        let lateness_min = [[0, 3, 10][rng.below(3) as usize], [0, 3][rng.below(2) as usize]];
        let (on_update, idle) = (rng.chance(25), rng.chance(50));
        if rng.chance(15) {
            tables.extend([of(&[Tally]), of(&[Hits]), of(&[Tally, Hits])][rng.below(3) as usize].iter());
        }
        let window_min = [5, 2, 5, 5, 15, 2][nth];
        let time = Partitioning::Time(match lateness_min[0] {
            0 => "hour",
            3 => "day",
            _ => "month",
        });
        let partitioning = [Partitioning::None, Partitioning::None, Partitioning::Identity, time][rng.below(4) as usize];
        let (zoned, distinct, having) = (rng.chance(20), rng.chance(35), rng.chance(25));
        let kept_small = rng.chance(40).then(|| KeptSmall::roll(rng));
        Self { tables, formats, lateness_min, on_update, idle, partitioning, window_min, zoned, distinct, having, column_added: false, remarks: 0, kept_small }
    }

    pub fn sources(&self) -> Vec<&'static str> {
        let other = self.tables.iter().any(|t| t.source() == OTHER);
        if other { vec!["events", OTHER] } else { vec!["events"] }
    }

    pub fn text(&self) -> String {
        let idle = if self.idle { "300ms" } else { "never" };
        let mut text = format!("pipeline: {PIPELINE}\nsources:\n");
        for source in self.sources() {
            let _ = write!(
                text,
                "  {source}:\n    kafka: {{brokers: \"nowhere:1\", topic: {source}, start: earliest}}\n    format: json\n    \
                 columns: {{id: int64, k: string not null, at: timestamp, v: int64}}\n    watermark: {{column: at, delay: 1m, idle_after: {idle}, max_ahead: 6h}}\n"
            );
        }
        text += "tables:\n";
        let emit = if self.on_update { "on_update" } else { "on_close" };
        for table in &self.tables {
            let source = table.source();
            let windowed = |more: &str| {
                let size = if self.zoned { format!("interval '1 day', {ZONE}") } else { format!("interval '{} minutes'", self.window_min) };
                let distinct = if self.distinct { format!(", {DISTINCT} as d") } else { String::new() };
                let having = if self.having { HAVING } else { "" };
                format!("select window_start, k, sum(v) as s, count(*) as n{distinct}{more} from tumble({source}, {size}) where v > 0 group by window_start, k{having}")
            };
            let more = |more: &'static str| if self.column_added { more } else { "" };
            let _ = writeln!(text, "  {}:", table.name());
            let _ = match table.what {
                What::Sums | What::Tally => write!(text, "    sql: {}\n    key: [window_start, k]\n    allowed_lateness: {}m\n    emit: {emit}\n", windowed(more(", sum(v) * 2 as w")), self.lateness_min[0]),
                What::Pairs => write!(text, "    sql: {}\n    allowed_lateness: {}m\n    emit: {emit}\n", windowed(""), self.lateness_min[1]),
                What::Plain | What::Hits => writeln!(text, "    sql: select id, k, v{} from {source}", more(", v * 2 as w")),
            };
            let _ = match self.partitioning {
                Partitioning::None => Ok(()),
                Partitioning::Time(unit) if !table.is_plain() => writeln!(text, "    partition_by: [\"{unit}(window_start)\"]"),
                _ => writeln!(text, "    partition_by: [k]"),
            };
            let _ = writeln!(text, "    formats: [{}]", self.formats);
            let remark = (self.remarks > 0).then(|| format!("remark: \"{}\"", self.remarks));
            let properties: Vec<String> = remark.into_iter().chain(self.kept_small.map(KeptSmall::text)).collect();
            if !properties.is_empty() {
                let _ = writeln!(text, "    properties: {{{}}}", properties.join(", "));
            }
            if self.remarks > 0 {
                let _ = writeln!(text, "    comment: remark {}", self.remarks);
            }
        }
        text + "lake: {root: ./lake}\nepoch: {every: 200ms}\ncommit: {every: 800ms}\n"
    }

    /// Planned once: planning SQL costs more than a seed may.
    pub fn planned(&self) -> (Pipeline, Vec<Arc<TablePlan>>) {
        type Known = Mutex<BTreeMap<File, (Pipeline, Vec<Arc<TablePlan>>)>>;
        static KNOWN: OnceLock<Known> = OnceLock::new();
        let mut known = KNOWN.get_or_init(Known::default).lock().unwrap_or_else(|e| e.into_inner());
        known.entry(self.clone()).or_insert_with(|| loaded(&self.text())).clone()
    }
}
