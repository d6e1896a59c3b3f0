//! The real binary, run as a user runs it, on a pipeline of the test's own.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A pipeline file and the folder in which its commands run and its lake lies.
pub struct Pipeline {
    pub dir: PathBuf,
    runs: AtomicU64,
}

impl Pipeline {
    pub fn new(dir: PathBuf, yaml: &str) -> Self {
        fs::create_dir_all(&dir).expect("a folder for the pipeline");
        fs::write(dir.join("pipeline.yaml"), yaml).expect("the pipeline file");
        Self { dir, runs: AtomicU64::new(0) }
    }

    /// `millpond run` with these options, killing itself at `failpoint` when one is given.
    pub fn start(&self, options: &[&str], failpoint: Option<&str>) -> Running {
        let told = self.dir.join(format!("run-{}.err", self.runs.fetch_add(1, Ordering::Relaxed)));
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.arg("run").arg("pipeline.yaml").args(options).current_dir(&self.dir);
        command.env_remove("MILLPOND_FAILPOINT").stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&told).expect("a file for stderr"));
        if let Some(point) = failpoint {
            command.env("MILLPOND_FAILPOINT", point);
        }
        Running { child: command.spawn().expect("millpond starts"), told }
    }

    /// Runs until it ends by itself, which must be well.
    pub fn complete(&self, options: &[&str]) {
        let mut run = self.start(options, None);
        let status = run.wait(Duration::from_secs(120));
        assert!(status.success(), "{}: run {options:?} ended with {status}: {}", self.dir.display(), run.told());
    }

    /// Runs until the failpoint kills it: a point that is not reached fails the test.
    pub fn killed_at(&self, options: &[&str], failpoint: &str) {
        let mut run = self.start(options, Some(failpoint));
        let status = run.wait(Duration::from_secs(120));
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{}: {failpoint} did not kill the run, which ended with {status}: {}", self.dir.display(), run.told());
    }

    /// The rows of a query as `millpond query --json` prints them.
    pub fn query(&self, format: &str, sql: &str) -> Result<Vec<serde_json::Value>, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        let out = command.args(["query", "pipeline.yaml", sql, "--json", "--format", format]).env_remove("MILLPOND_FAILPOINT").current_dir(&self.dir).output().expect("millpond runs");
        if !out.status.success() {
            return Err(format!("query ended with {}: {}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)));
        }
        let text = String::from_utf8(out.stdout).expect("UTF-8");
        Ok(text.lines().map(|l| serde_json::from_str(l).expect("a row of JSON")).collect())
    }

    /// Numbers of the one row that a query gives.
    pub fn numbers<const N: usize>(&self, format: &str, sql: &str, names: [&str; N]) -> [u64; N] {
        let found = self.query(format, sql).unwrap();
        names.map(|name| found[0][name].as_u64().or_else(|| found[0][name].as_str()?.parse().ok()).unwrap_or_else(|| panic!("{format}: {sql}: {found:?}")))
    }

    /// The exit code of `millpond verify` with these options, and what it said.
    pub fn verify(&self, options: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        let out = command.arg("verify").arg("pipeline.yaml").args(options).env_remove("MILLPOND_FAILPOINT").current_dir(&self.dir).output().expect("millpond runs");
        (out.status.code(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
    }

    /// The numbers of the log's objects, ascending.
    pub fn log(&self, pipeline: &str) -> Vec<u64> {
        let folder = self.dir.join("lake/_millpond").join(pipeline).join("log");
        let Ok(found) = fs::read_dir(folder) else { return vec![] };
        let mut numbers: Vec<u64> = found.filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".json")?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }
}

/// A worker; killed when it is dropped.
pub struct Running {
    child: Child,
    told: PathBuf,
}

impl Running {
    pub fn id(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child is not reaped before the value is dropped or waited for: the id is its own.
        unsafe { libc::kill(self.id(), signal) };
    }

    /// Until it has stopped itself at a failpoint.
    pub fn wait_to_stop(&mut self, patience: Duration) {
        until(patience, "the run stops itself", || {
            assert!(self.ended().is_none(), "the run ended before it stopped itself: {}", self.told());
            fs::read_to_string(format!("/proc/{}/stat", self.id())).is_ok_and(|s| s.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
        });
    }

    /// What it has said on stderr so far.
    pub fn told(&self) -> String {
        fs::read_to_string(&self.told).unwrap_or_default()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Until it has ended; a run that takes longer fails the test.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(start.elapsed() < patience, "the run has not ended within {patience:?}: {}", self.told());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Until stderr holds `text`.
    pub fn wait_to_be_told(&mut self, text: &str, patience: Duration) {
        until(patience, &format!("stderr says `{text}`"), || {
            assert!(self.ended().is_none(), "the run ended before it said `{text}`: {}", self.told());
            self.told().contains(text)
        });
    }

    /// Highest resident set so far, in KiB.
    pub fn peak_kib(&self) -> Option<u64> {
        self.of_status("VmHWM:")
    }

    /// Resident pages that are not of a file, now, in KiB.
    pub fn own_kib(&self) -> Option<u64> {
        self.of_status("RssAnon:")
    }

    /// A size that proc(5) knows of the process.
    fn of_status(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(Path::new("/proc").join(self.id().to_string()).join("status")).ok()?;
        status.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says, when it goes, that there is enough: whatever fails before, a thread that waits for it ends.
pub struct Enough<'a>(pub &'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks until `done`, for `patience`.
pub fn until(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
