//! Named points at which a test kills the process.
//!
//! `MILLPOND_FAILPOINT=name` (or `name:n` for the n-th time) makes the process kill itself there
//! with SIGKILL: no destructor runs, no buffer is flushed, as after a power cut. With `name:n:stop`
//! it stops itself with SIGSTOP instead, and goes on from there when somebody wakes it: a long
//! pause at the worst moment. Without the variable a point costs one relaxed load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every point there is, in the order in which a record meets them. A test compares this list
/// with the calls in the code.
pub const ALL: [&str; 40] = [
    "create-before-metadata",
    "create-after-metadata",
    "create-after-entry",
    "create-before-version",
    "create-after-version",
    "ingest-read",
    "ingest-closed",
    "stage-before-put",
    "stage-file-put",
    "stage-runs-put",
    "stage-done",
    "decide-before-put",
    "decide-after-put",
    "decide-answered",
    "log-created",
    "fold-before-entry",
    "fold-after-entry",
    "commit-before-stage",
    "commit-before-put",
    "commit-after-put",
    "commit-after-stage",
    "commit-before-swap",
    "commit-after-swap",
    "commit-one-format",
    "commit-done",
    "receipt",
    "receipt-given",
    "history-before-put",
    "history-after-put",
    "history-merged",
    "history-deleted",
    "merge-before-put",
    "merge-after-put",
    "checkpoint-decided",
    "checkpoint-run-deleted",
    "truncate-between",
    "clean-before-condemn",
    "clean-after-condemn",
    "clean-before-delete",
    "clean-after-delete",
];

struct Armed {
    name: String,
    nth: u64,
    signal: libc::c_int,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
static HITS: AtomicU64 = AtomicU64::new(0);

fn armed() -> &'static Option<Armed> {
    ARMED.get_or_init(|| {
        let text = std::env::var("MILLPOND_FAILPOINT").ok()?;
        let mut parts = text.split(':');
        let name = parts.next()?.to_string();
        let nth = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
        let signal = if parts.next() == Some("stop") { libc::SIGSTOP } else { libc::SIGKILL };
        Some(Armed { name, nth, signal })
    })
}

/// Dies (or stops) here if this point is armed and has been reached often enough.
pub fn hit(name: &'static str) {
    if let Some(armed) = armed()
        && armed.name == name
        && HITS.fetch_add(1, Ordering::Relaxed) + 1 == armed.nth
    {
        // SAFETY: both calls take plain integers and touch no memory of ours.
        unsafe { libc::kill(libc::getpid(), armed.signal) };
        if armed.signal == libc::SIGKILL {
            // The signal may take a moment; nothing further is done meanwhile.
            std::thread::sleep(std::time::Duration::from_secs(60));
        } else {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    fn calls(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                calls(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("failpoint.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for (at, call) in text.match_indices("failpoint::hit(") {
                    let name = text[at + call.len()..].strip_prefix('"').and_then(|rest| rest.split_once('"'));
                    let (name, _) = name.unwrap_or_else(|| panic!("{}: a point without a literal name cannot be compared", path.display()));
                    found.push(name.to_string());
                }
            }
        }
    }

    #[test]
    fn every_listed_point_is_in_the_code_once_and_every_point_in_the_code_is_listed() {
        let mut found = vec![];
        calls(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let names: BTreeSet<&str> = found.iter().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(super::ALL));
        assert_eq!(found.len(), super::ALL.len(), "a point stands in two places: {found:?}");
    }
}
