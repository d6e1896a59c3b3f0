//! The command line: one file per verb; human and `--json` output come from one value.

mod descriptors;
pub mod footprint;
mod formats;
mod load;
mod properties;
mod query;
mod run;
mod schema;
mod status;
mod validate;
mod verify;

use crate::console::{self, note};
use crate::pipeline::{Level, Pipeline, Problem};
use crate::stage::names;
use crate::worker::{Clock, WorkerError};
use clap::{Parser, Subcommand};
use load::load;
use std::fmt::Display;
use std::io::{self, Write};

/// Done.
pub const OK: i32 = 0;
/// A bug, or trouble that has no better code.
pub const FAILED: i32 = 1;
/// Wrong arguments (clap's own).
pub const USAGE: i32 = 2;
/// `verify`: a table, a file or the log is not as it must be.
pub const DIFFERENT: i32 = 3;
/// `verify`: nothing wrong was found, and a part could not be proven.
pub const UNPROVEN: i32 = 4;
/// Something that is needed is away: the broker, the lake.
pub const UNAVAILABLE: i32 = 69;
/// Refused, because going on would lose or double rows.
pub const REFUSED: i32 = 75;
/// The pipeline file is wrong, or asks for what this version lacks.
pub const CONFIG: i32 = 78;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 verify found a difference; 4 verify found none and could not \
prove everything; 69 broker or lake not reachable; 75 refused, because going on would lose or double rows; 78 the pipeline file is wrong \
or asks for what this version lacks; 130 ended at once by a second signal.";

/// Carries Kafka topics into Iceberg and Delta tables, exactly once, with event-time windows.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a pipeline until it is stopped (Ctrl-C or SIGTERM drains; a second one ends at once, nothing is lost)
    Run(run::Arguments),
    /// Show where a pipeline stands: positions, watermarks, windows, stamps of its tables
    Status(status::Arguments),
    /// Query the pipeline's tables, and its log as millpond.epochs and millpond.commits
    Query(query::Arguments),
    /// Check a pipeline file: every error at once, then what only a connection can tell
    Validate(validate::Arguments),
    /// Prove the tables right: log, files and keys; with --deep row by row against the source
    Verify(verify::Arguments),
    /// Print a JSON Schema of the pipeline file, for an editor's completion
    Schema {
        /// It is JSON with and without this
        #[arg(long)]
        json: bool,
    },
}

/// Parses the process's arguments, does what they say, returns the exit code.
pub fn main() -> i32 {
    let verb = match Arguments::try_parse() {
        Ok(arguments) => arguments.verb,
        Err(e) => return explain(&e),
    };
    if let Err(why) = descriptors::raise() {
        note(format_args!("error: cannot start: {why}"));
        return FAILED;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            note(format_args!("error: cannot start: {e}"));
            return FAILED;
        }
    };
    let code = runtime.block_on(async {
        match verb {
            Verb::Run(a) => run::main(a).await,
            Verb::Status(a) => status::main(a).await,
            Verb::Query(a) => query::main(a).await,
            Verb::Validate(a) => validate::main(a).await,
            Verb::Verify(a) => verify::main(a).await,
            Verb::Schema { json: _ } => schema::main(),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

/// Help, the version, or what is wrong with the arguments.
fn explain(e: &clap::Error) -> i32 {
    let shown = e.print();
    if e.use_stderr() {
        return e.exit_code();
    }
    match console::is_read(shown.and_then(|()| io::stdout().flush())) {
        Ok(_) => OK,
        Err(why) => unwritten(&why, OK),
    }
}

/// Prints a verb's answer, and returns its exit code: `code`, unless that says that all is well and the answer was lost.
fn answer(text: impl Display, code: i32) -> i32 {
    match console::answer(text.to_string().as_bytes()) {
        Ok(_) => code,
        Err(why) => unwritten(&why, code),
    }
}

fn unwritten(why: &io::Error, code: i32) -> i32 {
    note(format_args!("error: cannot write the answer to stdout: {why}"));
    if code == OK { FAILED } else { code }
}

/// The system's clock, which nothing but a worker's edge asks.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        chrono::Utc::now().timestamp_millis()
    }
}

/// Whether the pipeline ever ran here. Asking makes no folder.
fn has_run(pipeline: &Pipeline) -> bool {
    pipeline.lake.root.join(names::state_folder(&pipeline.name)).join("log").is_dir()
}

/// Prints problems, and returns the exit code for them.
fn report(problems: &[Problem], json: bool) -> i32 {
    if json {
        return answer(format_args!("{}\n", serde_json::json!({ "ok": false, "problems": problems, "notes": [] })), CONFIG);
    }
    tell(problems);
    CONFIG
}

/// Problems on stderr, and how many there are.
fn tell(problems: &[Problem]) {
    problems.iter().for_each(note);
    let errors = problems.iter().filter(|p| p.level == Level::Error).count();
    if errors > 0 {
        note(format_args!("{errors} problem{}", if errors == 1 { "" } else { "s" }));
    }
}

fn code_of(e: &WorkerError) -> i32 {
    match e {
        WorkerError::Refused(_) => REFUSED,
        WorkerError::Misdeclared(_) => CONFIG,
        WorkerError::Unavailable(_) => UNAVAILABLE,
        WorkerError::StartOver(_) | WorkerError::RunGone(_) | WorkerError::Stopped | WorkerError::Internal(_) => FAILED,
    }
}

/// Why a verb came to nothing, and the exit code for it.
struct Failure(i32, String);

impl From<WorkerError> for Failure {
    fn from(e: WorkerError) -> Self {
        Self(code_of(&e), e.to_string())
    }
}

/// Prints why a verb ended, and returns its exit code.
fn fail(failure: impl Into<Failure>, json: bool) -> i32 {
    let Failure(code, why) = failure.into();
    if json {
        return answer(format_args!("{}\n", serde_json::json!({ "ok": false, "error": why })), code);
    }
    note(format_args!("error: {why}"));
    code
}
