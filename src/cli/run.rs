//! `millpond run FILE`.

use super::{Failure, OK, SystemClock, answer, fail, footprint, load, report, tell};
use crate::console::note;
use crate::observe::{Metrics, http};
use crate::worker::surroundings::System;
use crate::worker::{self, RunOptions, WorkerError, progress};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

const EXAMPLES: &str = "Examples:
  millpond run spend.yaml                       until it is stopped
  millpond run spend.yaml --until-end --final   what the topics hold now, then every window is closed
  millpond run spend.yaml --accept              once, after the file was set back to an older one on purpose";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The pipeline file
    file: PathBuf,
    /// End when the tables hold everything that the source's partitions hold now
    #[arg(long)]
    until_end: bool,
    /// Then close every open window: no more rows are expected
    #[arg(long = "final", requires = "until_end")]
    last: bool,
    /// Go back to an older pipeline file on purpose, or begin a table anew under the name of one that was taken out.
    /// For one run: a service that always starts with it lets two versions of the file alternate
    #[arg(long)]
    accept: bool,
    /// Progress and the summary as JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Seconds that stopping may take to bring the tables up to what was decided
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    deadline: u64,
    /// Read own runs back from the lake instead of handing them over in memory (for tests: the result is the same)
    #[arg(long, hide = true)]
    reread_runs: bool,
}

pub async fn main(a: Arguments) -> i32 {
    let loaded = match load(&a.file) {
        Ok(loaded) => loaded,
        Err(problems) => return report(&problems, a.json),
    };
    tell(&loaded.warnings);
    footprint::keep_within(loaded.pipeline.memory_bytes);
    let metrics = Arc::new(Metrics::default());
    if let Some(at) = loaded.pipeline.listen {
        match http::serve(at, metrics.clone()).await {
            Ok(bound) => note(format_args!("metrics on http://{bound}/metrics")),
            Err(e) => return fail(WorkerError::Unavailable(format!("cannot listen on {at}: {e}; change observe.listen")), a.json),
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(stop.clone(), metrics.clone());
    let shown = tokio::spawn(progress::show(metrics.clone(), a.json));
    let options = RunOptions { until_end: a.until_end, last: a.last, reread_runs: a.reread_runs, deadline: Duration::from_secs(a.deadline), accept: a.accept };
    let world = Arc::new(System { clock: Arc::new(SystemClock) });
    let start = Instant::now();
    let sources: Vec<String> = loaded.pipeline.sources.iter().map(|s| s.name.clone()).collect();
    let variables = loaded.pipeline.variables.clone();
    let working = tokio::spawn(worker::run(loaded.pipeline, loaded.plans, options, metrics.clone(), world, stop.clone()));
    let done = tokio::select! {
        done = working => done.unwrap_or_else(|e| Err(WorkerError::Internal(e.to_string()))),
        () = stopped_early(&stop, &metrics) => Ok(()),
    };
    shown.abort();
    if let Err(e) = done {
        let Failure(code, why) = e.into();
        return fail(Failure(code, variables.hide_values(&why)), a.json);
    }
    let mut summary = progress::summary(&metrics);
    let seconds = start.elapsed().as_secs_f64();
    summary["seconds"] = seconds.into();
    let mut text = format!("{summary}\n");
    if !a.json {
        let rows = metrics.records.load(Ordering::Relaxed);
        let get = |name: &str| summary[name].as_u64().unwrap_or(0);
        text = format!(
            "{rows} rows in {seconds:.1} s ({:.0} rows/s), {} epochs, {} commits, {} bytes written, {} late, {} dead\n",
            rows as f64 / seconds,
            get("epochs"),
            get("commits"),
            get("commit_bytes"),
            get("late"),
            get("dead")
        );
        if get("dead") > 0 {
            for source in &sources {
                text += &format!("why dead: millpond query {} 'select _reason, try_cast(_value as varchar) as _value from {source}__dead limit 5'\n", in_shell(&a.file));
            }
        }
    }
    answer(text, OK)
}

/// A path as a shell takes it.
fn in_shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "_-./+,@%:".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// How long a worker that is still starting may take to end by itself.
const EARLY: Duration = Duration::from_millis(300);

/// Resolves when the worker was stopped before it had begun: there is nothing to drain, and what it waits for (a broker
/// that does not answer) may take long. To end it there is what a kill does: the next start goes on from the log.
async fn stopped_early(stop: &AtomicBool, metrics: &Metrics) {
    loop {
        tokio::time::sleep(EARLY).await;
        if stop.load(Ordering::Relaxed) && !metrics.ready.load(Ordering::Relaxed) {
            tokio::time::sleep(EARLY).await;
            return;
        }
    }
}

/// The first signal drains, the second one ends the process at once: the log has all that counts.
fn watch_signals(stop: Arc<AtomicBool>, metrics: Arc<Metrics>) {
    // Before anything begins: a signal that came first would be lost where whoever started the process ignores it.
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.swap(true, Ordering::Relaxed) {
                note("\nended at once; nothing is lost");
                // SAFETY: takes a number and does not return. Not `exit`, for the reason that `main` names.
                unsafe { libc::_exit(130) };
            }
            if metrics.ready.load(Ordering::Relaxed) {
                note("\nstopping: bringing the tables up to what was decided (again: end at once)");
            } else {
                note("\nstopping: it had not begun");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, word) in [("a/p-1.yaml", "a/p-1.yaml"), ("a b.yaml", "'a b.yaml'"), ("it's.yaml", r"'it'\''s.yaml'"), ("$x.yaml", "'$x.yaml'")] {
            assert_eq!(in_shell(Path::new(path)), word);
        }
    }
}
