//! `millpond verify FILE`.

use super::{DIFFERENT, FAILED, Failure, OK, REFUSED, UNAVAILABLE, UNPROVEN, USAGE, answer, fail, has_run, load, report as report_problems};
use crate::pipeline::{Pipeline, SourceSpec, Variables};
use crate::stage::names;
use crate::store::local::DurableLocal;
use crate::verify::{Finding, Lake, Options, Report, VerifyError, verify};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// Files that belong to nothing, for people; programs are told all.
const ORPHANS_SHOWN: usize = 20;

#[derive(clap::Args)]
pub struct Arguments {
    /// The pipeline file
    file: PathBuf,
    /// Read the source again over the logged offsets, compute every table anew and compare rows
    #[arg(long)]
    deep: bool,
    /// Only this table
    #[arg(long)]
    table: Option<String>,
    /// Only windows that start, and plain rows whose event time lies, at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME", requires = "deep")]
    from: Option<String>,
    /// … and before this time
    #[arg(long, value_name = "TIME", requires = "deep")]
    to: Option<String>,
    /// Compare about this percentage of windows and plain rows
    #[arg(long, value_name = "PERCENT", requires = "deep", value_parser = clap::value_parser!(u8).range(1..=100))]
    sample: Option<u8>,
    /// No worker runs: a table that has not taken every entry of the log is a difference
    #[arg(long)]
    caught_up: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub async fn main(a: Arguments) -> i32 {
    let loaded = match load(&a.file) {
        Ok(loaded) => loaded,
        Err(problems) => return report_problems(&problems, a.json),
    };
    match run(&loaded.pipeline, &a).await {
        Ok(mut found) => {
            hide(&mut found, &loaded.pipeline.variables);
            let code = code(&found);
            match a.json {
                true => answer(format_args!("{}\n", serde_json::json!({ "ok": found.is_right(), "proven": found.is_proven(), "report": found })), code),
                false => answer(text(&found), code),
            }
        }
        Err(Failure(code, why)) => fail(Failure(code, shown(&why, &loaded.pipeline.variables)), a.json),
    }
}

fn shown(text: &str, variables: &Variables) -> String {
    variables.hide_within(&variables.hide_values(text))
}

/// What is said of the SQL may quote it. Rows are shown as the tables hold them.
fn hide(found: &mut Report, variables: &Variables) {
    let texts = found.findings.iter_mut().map(|f| &mut f.text).chain(&mut found.unprovable).chain(&mut found.unchecked).chain(&mut found.notes);
    texts.for_each(|text| *text = shown(text, variables));
}

fn code(found: &Report) -> i32 {
    match () {
        () if !found.is_right() => DIFFERENT,
        () if !found.unchecked.is_empty() => REFUSED,
        () if !found.is_proven() => UNPROVEN,
        () => OK,
    }
}

fn time(text: &Option<String>, flag: &str) -> Result<Option<i64>, Failure> {
    let parse = |t: &String| {
        chrono::DateTime::parse_from_rfc3339(t)
            .map(|t| t.timestamp_micros())
            .map_err(|e| Failure(USAGE, format!("{flag} {t} is no time: {e}; expected a form like 2026-01-31T10:00:00Z")))
    };
    text.as_ref().map(parse).transpose()
}

async fn run(pipeline: &Arc<Pipeline>, a: &Arguments) -> Result<Report, Failure> {
    if !has_run(pipeline) {
        return Err(Failure(FAILED, VerifyError::NothingYet(pipeline.name.clone()).to_string()));
    }
    let root = &pipeline.lake.root;
    let local = DurableLocal::open(root).map_err(|e| Failure(UNAVAILABLE, format!("cannot open lake.root {}: {e}", root.display())))?;
    let root = local.root().to_path_buf();
    let lake = Lake::new(Arc::new(local), root, names::state_folder(&pipeline.name));
    let options = Options {
        deep: a.deep,
        table: a.table.clone(),
        from_us: time(&a.from, "--from")?,
        to_us: time(&a.to, "--to")?,
        sample_percent: a.sample.filter(|s| *s < 100),
        caught_up: a.caught_up,
    };
    if let (Some(from), Some(to)) = (options.from_us, options.to_us)
        && from >= to
    {
        return Err(Failure(USAGE, "nothing lies between --from and --to: expected --from to be earlier than --to".into()));
    }
    // A consumer group of its own: the workers keep their partitions.
    let reader = format!("{}-verify-{}", pipeline.name, Uuid::now_v7().simple());
    let open = |spec: &SourceSpec| crate::source::open(spec, &reader, "verify");
    let shown = !a.json && std::io::stderr().is_terminal();
    let progress = |read: u64, total: u64| {
        if shown {
            let tenths = (read * 30).checked_div(total).unwrap_or(30) as usize;
            let end = if read == total { "\n" } else { "" };
            let _ = write!(std::io::stderr(), "\r[{}{}] {read} of {total} records{end}", "#".repeat(tenths), "-".repeat(30 - tenths));
        }
    };
    verify(pipeline, &lake, &options, &open, &progress).await.map_err(|e| {
        let code = match e {
            VerifyError::NothingYet(_) => FAILED,
            VerifyError::NoTable(_) => USAGE,
            VerifyError::Refused(_) => REFUSED,
            VerifyError::Unavailable(_) => UNAVAILABLE,
        };
        Failure(code, e.to_string())
    })
}

fn text(report: &Report) -> String {
    let mut lines = vec![];
    for table in &report.tables {
        let compared = table.compared.map_or(String::new(), |n| format!(", {n} rows equal to the source"));
        lines.push(format!("{} table {}: entry {}, {} files, {} rows{compared}", table.format, table.table, table.entry, table.files, table.rows));
    }
    for note in &report.notes {
        lines.push(format!("note: {note}"));
    }
    if !report.orphans.is_empty() {
        lines.push(format!("note: {} files belong to nothing:", report.orphans.len()));
        lines.extend(report.orphans.iter().take(ORPHANS_SHOWN).map(|path| format!("  {path}")));
        let more = report.orphans.len().saturating_sub(ORPHANS_SHOWN);
        lines.extend((more > 0).then(|| format!("  … and {more} more (--json names all)")));
    }
    for what in &report.unprovable {
        lines.push(format!("cannot be proven: {what}"));
    }
    for what in &report.unchecked {
        lines.push(format!("could not check: {what}"));
    }
    for finding in &report.findings {
        lines.extend(finding_text(finding));
    }
    let entries = report.entries.map_or(String::new(), |(first, last)| format!(", entries {first} to {last}"));
    lines.push(match (report.findings.len(), report.unprovable.len()) {
        (0, _) if !report.unchecked.is_empty() => format!("pipeline {}: nothing wrong was found, and {} tables could not be checked{entries}", report.pipeline, report.unchecked.len()),
        (0, 0) => format!("pipeline {} is right{entries}{}", report.pipeline, if report.deep { "" } else { " as far as its structure shows (--deep compares rows)" }),
        (0, n) => format!("pipeline {}: nothing wrong was found, and {n} things could not be proven{entries}", report.pipeline),
        (n, _) => format!("pipeline {} is WRONG: {n} findings{entries}", report.pipeline),
    });
    lines.push(String::new());
    lines.join("\n")
}

fn finding_text(finding: &Finding) -> Vec<String> {
    let place = match (&finding.table, finding.format, finding.entry) {
        (Some(table), Some(format), _) => format!("{format} table {table}: "),
        (_, _, Some(entry)) => format!("log entry {entry}: "),
        _ => String::new(),
    };
    let mut lines = vec![format!("WRONG [{}] {place}{}", finding.kind, finding.text)];
    for row in &finding.rows {
        let window = row.window.as_ref().map_or(String::new(), |w| format!(", window {w}"));
        lines.push(format!("  {}{window}", row.key));
        lines.extend(row.expected.as_ref().map(|e| format!("    expected {e}")));
        lines.extend(row.found.as_ref().map(|f| format!("    found    {f}")));
        if !row.offsets.is_empty() {
            let more = if row.records > row.offsets.len() as u64 { format!(", … ({} records)", row.records) } else { String::new() };
            lines.push(format!("    from     {}{more}", row.offsets.join(", ")));
        }
    }
    if finding.count > finding.rows.len() as u64 && !finding.rows.is_empty() {
        lines.push(format!("  … and {} more", finding.count - finding.rows.len() as u64));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong is told before what could not be checked, and that before what cannot be proven.
    #[test]
    fn a_table_that_cannot_be_checked_hides_nothing() {
        let mut report = Report { pipeline: "p".into(), ..Report::default() };
        assert_eq!(code(&report), OK);
        report.unprovable.push("table old".into());
        assert_eq!(code(&report), UNPROVEN);
        report.unchecked.push("table odd: why".into());
        assert!(code(&report) == REFUSED && !report.is_proven());
        let told = text(&report);
        assert!(told.contains("could not check: table odd: why\n") && told.contains("nothing wrong was found, and 1 tables could not be checked"), "{told}");
        report.findings.push(Finding::new("row-extra", "why"));
        assert!(code(&report) == DIFFERENT && text(&report).contains("pipeline p is WRONG: 1 findings"));
    }
}
