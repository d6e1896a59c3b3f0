//! What a worker tells of itself: counters, what it waits for, health. Served on loopback.

pub mod http;

use crate::console::note;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// CPU time by stage, in nanoseconds of the threads that do the work.
#[derive(Debug, Default)]
pub struct StageCpu {
    pub consume: AtomicU64,
    pub decode: AtomicU64,
    pub partial: AtomicU64,
    pub run: AtomicU64,
    pub fold: AtomicU64,
    pub parquet: AtomicU64,
    pub commit: AtomicU64,
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec to a pointer that is valid for it.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Runs `work` and adds the CPU time that this thread spent on it.
pub fn cpu<T>(stage: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let start = thread_cpu_ns();
    let result = work();
    stage.fetch_add(thread_cpu_ns() - start, Ordering::Relaxed);
    result
}

/// How many files a table has that its readers read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct FileCounts {
    pub data: u64,
    /// Delete files, or data files with a deletion vector.
    pub deletes: u64,
    /// Of all of them.
    pub bytes: u64,
}

/// So many files are none too many for a query.
const FEW_FILES: u64 = 1_000;

/// Files of this mean size are none too small.
const SMALL_FILE_BYTES: u64 = 8 << 20;

impl FileCounts {
    /// Whether queries spend their time on opening files: there are many, and they are small.
    pub fn are_many_and_small(&self) -> bool {
        let files = self.data + self.deletes;
        files > FEW_FILES && self.bytes < files * SMALL_FILE_BYTES
    }
}

/// The numbers of one worker since it started, but for what is said to be the log's.
#[derive(Debug, Default)]
pub struct Metrics {
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub dead: AtomicU64,
    pub late: AtomicU64,
    /// Rows whose event time was beyond `max_ahead`: kept, but they moved no watermark.
    pub ahead: AtomicU64,
    pub epochs: AtomicU64,
    /// Epochs that were made and then found stale.
    pub stale: AtomicU64,
    pub commits: AtomicU64,
    pub commit_bytes: AtomicU64,
    /// Data files that commits read because they deleted rows from them.
    pub commit_files_read: AtomicU64,
    pub runs_read: AtomicU64,
    /// Values that did not fit when they were emitted, and became null.
    pub overflow: AtomicU64,
    /// Partitions that were paused because they were ahead of others.
    pub pauses: AtomicU64,
    pub open_windows: AtomicU64,
    pub backlog_bytes: AtomicU64,
    /// Files that belong to nobody and are still there after the last pass of the cleaner.
    pub orphans: AtomicU64,
    pub orphans_deleted: AtomicU64,
    pub orphan_bytes_deleted: AtomicU64,
    pub attempts_condemned: AtomicU64,
    pub ready: AtomicBool,
    pub cpu: StageCpu,
    waiting: Mutex<BTreeMap<String, String>>,
    alerts: Mutex<BTreeMap<String, String>>,
    watermarks: Mutex<BTreeMap<String, (Option<i64>, String)>>,
    lags: Mutex<BTreeMap<String, u64>>,
    /// By table and format.
    files: Mutex<BTreeMap<(String, String), FileCounts>>,
    last_commit: Mutex<Option<Instant>>,
}

impl Metrics {
    /// Something is away; said once on stderr, and in `/readyz` until [`Metrics::waiting_over`].
    pub fn waiting(&self, what: &str, why: &str) {
        if why.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        if waiting.insert(what.to_string(), why.to_string()).as_deref() != Some(why) {
            note(format_args!("waiting for {what}: {why}"));
        }
    }

    pub fn waiting_over(&self, what: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        if waiting.remove(what).is_some() {
            note(format_args!("{what}: going on"));
        }
    }

    pub fn is_waiting(&self) -> Option<(String, String)> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner()).iter().next().map(|(a, b)| (a.clone(), b.clone()))
    }

    /// Something that the worker lives with and a person should look at: said once on stderr, and a
    /// metric until [`Metrics::alert_over`]. Readiness does not depend on it.
    pub fn alert(&self, about: &str, why: &str) {
        let mut alerts = self.alerts.lock().unwrap_or_else(|e| e.into_inner());
        if alerts.insert(about.to_string(), why.to_string()).as_deref() != Some(why) {
            note(format_args!("alert: {about}: {why}"));
        }
    }

    pub fn alert_over(&self, about: &str) {
        let mut alerts = self.alerts.lock().unwrap_or_else(|e| e.into_inner());
        if alerts.remove(about).is_some() {
            note(format_args!("{about}: the alert is over"));
        }
    }

    pub fn alerts(&self) -> BTreeMap<String, String> {
        self.alerts.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub fn committed_now(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        *self.last_commit.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
    }

    /// How long ago this worker last committed.
    pub fn last_commit(&self) -> Option<Duration> {
        self.last_commit.lock().unwrap_or_else(|e| e.into_inner()).map(|at| at.elapsed())
    }

    /// What a table's newest state says of its files, if it does.
    pub fn set_files(&self, table: &str, format: &str, files: Option<FileCounts>) {
        let mut known = self.files.lock().unwrap_or_else(|e| e.into_inner());
        let of = (table.to_string(), format.to_string());
        match files {
            Some(files) => known.insert(of, files),
            None => known.remove(&of),
        };
    }

    pub fn files(&self) -> BTreeMap<(String, String), FileCounts> {
        self.files.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// A source's watermark (microseconds) and what holds it.
    pub fn set_watermark(&self, source: &str, at_us: Option<i64>, held_by: String) {
        self.watermarks.lock().unwrap_or_else(|e| e.into_inner()).insert(source.to_string(), (at_us, held_by));
    }

    pub fn watermarks(&self) -> BTreeMap<String, (Option<i64>, String)> {
        self.watermarks.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Offsets between the log's positions and the ends of a source's partitions, whoever reads them, when its ends were
    /// asked for last. An offset is a record, but for those that transactions and compacted topics leave empty.
    pub fn set_lag(&self, source: &str, offsets: u64) {
        self.lags.lock().unwrap_or_else(|e| e.into_inner()).insert(source.to_string(), offsets);
    }

    pub fn lags(&self) -> BTreeMap<String, u64> {
        self.lags.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Prometheus text format, version 0.0.4.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let counters: &[(&str, &str, &AtomicU64)] = &[
            ("millpond_records_total", "records read and decided by this worker", &self.records),
            ("millpond_bytes_total", "bytes of keys, values and headers read", &self.bytes),
            ("millpond_dead_letters_total", "records that became dead letters", &self.dead),
            ("millpond_late_rows_total", "rows that came after their window's allowed lateness", &self.late),
            ("millpond_ahead_rows_total", "rows with an event time beyond max_ahead", &self.ahead),
            ("millpond_epochs_total", "epochs decided by this worker", &self.epochs),
            ("millpond_stale_epochs_total", "epochs made and then found stale", &self.stale),
            ("millpond_commits_total", "table commits", &self.commits),
            ("millpond_commit_bytes_total", "bytes written by table commits", &self.commit_bytes),
            ("millpond_commit_files_read_total", "data files read because rows were deleted from them", &self.commit_files_read),
            ("millpond_runs_read_total", "runs read back from the store", &self.runs_read),
            ("millpond_overflow_total", "values that did not fit when emitted and became null", &self.overflow),
            ("millpond_partition_pauses_total", "partitions paused because they were ahead of others under memory pressure", &self.pauses),
            ("millpond_open_windows", "windows that hold rows and are not dropped yet", &self.open_windows),
            ("millpond_backlog_bytes", "staged bytes that are decided and not yet in every table", &self.backlog_bytes),
            ("millpond_orphans", "files that belong to nobody, left by the cleaner's last pass", &self.orphans),
            ("millpond_orphans_deleted_total", "files that belonged to nobody and were deleted", &self.orphans_deleted),
            ("millpond_orphan_bytes_deleted_total", "their bytes", &self.orphan_bytes_deleted),
            ("millpond_attempts_condemned_total", "attempts that the log was made to refuse, so that their files could go", &self.attempts_condemned),
        ];
        for (name, help, value) in counters {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", value.load(Ordering::Relaxed));
        }
        let _ = writeln!(text, "# HELP millpond_watermark_seconds event time up to which a source is complete\n# TYPE millpond_watermark_seconds gauge");
        for (source, (at, _)) in self.watermarks() {
            if let Some(at) = at {
                let _ = writeln!(text, "millpond_watermark_seconds{{source=\"{source}\"}} {}", at as f64 / 1e6);
            }
        }
        let _ = writeln!(text, "# HELP millpond_lag_offsets offsets between the log and the ends of a source's partitions\n# TYPE millpond_lag_offsets gauge");
        for (source, offsets) in self.lags() {
            let _ = writeln!(text, "millpond_lag_offsets{{source=\"{source}\"}} {offsets}");
        }
        let files = self.files();
        let of_files: [(&str, &str, fn(&FileCounts) -> u64); 3] = [
            ("millpond_data_files", "data files that readers of a table read", |f| f.data),
            ("millpond_delete_files", "its delete files, or data files with a deletion vector", |f| f.deletes),
            ("millpond_table_bytes", "bytes of a table's data and delete files", |f| f.bytes),
        ];
        for (name, help, number) in of_files {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            for ((table, format), counts) in &files {
                let _ = writeln!(text, "{name}{{table=\"{table}\",format=\"{format}\"}} {}", number(counts));
            }
        }
        let _ = writeln!(text, "# HELP millpond_alert something that a person should look at\n# TYPE millpond_alert gauge");
        for about in self.alerts().keys() {
            let _ = writeln!(text, "millpond_alert{{about=\"{about}\"}} 1");
        }
        let _ = writeln!(text, "# HELP millpond_stage_cpu_seconds_total CPU time by stage\n# TYPE millpond_stage_cpu_seconds_total counter");
        for (stage, ns) in self.stages() {
            let _ = writeln!(text, "millpond_stage_cpu_seconds_total{{stage=\"{stage}\"}} {}", ns as f64 / 1e9);
        }
        text
    }

    /// Stage and its CPU time in nanoseconds.
    pub fn stages(&self) -> [(&'static str, u64); 7] {
        let c = &self.cpu;
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        [
            ("consume", get(&c.consume)),
            ("decode", get(&c.decode)),
            ("partial", get(&c.partial)),
            ("run", get(&c.run)),
            ("fold", get(&c.fold)),
            ("parquet", get(&c.parquet)),
            ("commit", get(&c.commit)),
        ]
    }
}
