//! The real binary on a lake of its own, and readers that are not ours.

use std::io::Read as _;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No single run of a test takes longer on two busy cores.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a finished process left.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; 128 + signal when it was killed.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A process that still runs. It is killed if a test forgets it.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A folder with a pipeline file, in which the binary runs; the lake lies in `lake`.
pub struct Pond {
    dir: tempfile::TempDir,
}

#[allow(dead_code)]
impl Pond {
    pub fn new(pipeline: &str) -> Self {
        let pond = Self { dir: tempfile::tempdir().unwrap() };
        pond.rewrite(pipeline);
        pond
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn rewrite(&self, pipeline: &str) {
        std::fs::write(self.dir.path().join("pipeline.yaml"), pipeline).unwrap();
    }

    pub fn start(&self, args: &[&str]) -> Running {
        self.start_with(args, &[])
    }

    pub fn start_with(&self, args: &[&str], env: &[(&str, &str)]) -> Running {
        let name = uuid::Uuid::new_v4();
        let (stdout, stderr) = (self.dir.path().join(format!("{name}.out")), self.dir.path().join(format!("{name}.err")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(args).envs(env.iter().copied()).current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(std::fs::File::create(&stdout).unwrap()).stderr(std::fs::File::create(&stderr).unwrap());
        Running { child: command.spawn().expect("the binary starts"), stdout, stderr }
    }

    pub fn millpond(&self, args: &[&str]) -> Ended {
        self.start(args).wait()
    }

    /// What the process shows on the terminal that its stderr is. It is told to stop once it shows all of these words in one
    /// line, where some are given.
    pub fn on_a_terminal(&self, args: &[&str], until: &[&str]) -> String {
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: two integers to fill in; no name, settings or size are asked for.
        let opened = unsafe { libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut()) };
        assert_eq!(opened, 0);
        // SAFETY: both were opened just now, and nobody else has them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(theirs);
        let mut child = command.spawn().unwrap();
        // The command holds a copy of the other end, without which reading does not end.
        drop(command);
        let (mut screen, mut shown, mut part, start) = (std::fs::File::from(ours), String::new(), [0; 4096], Instant::now());
        let mut left = until;
        // The end of a terminal is an error on Linux.
        while let Ok(n @ 1..) = screen.read(&mut part) {
            shown += &String::from_utf8_lossy(&part[..n]);
            let seen = !left.is_empty() && shown.split(['\r', '\n']).any(|line| left.iter().all(|words| line.contains(words)));
            if seen || !left.is_empty() && start.elapsed() > PATIENCE {
                left = &[];
                // SAFETY: plain integers; the child has not been waited for, so its id is still its own.
                assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
            }
        }
        let status = child.wait().unwrap();
        assert!(status.success() && start.elapsed() < PATIENCE, "{shown}");
        shown
    }

    /// Runs until what the topics hold now is in the tables; the summary.
    pub fn until_end(&self) -> Value {
        self.run(&[])
    }

    pub fn run(&self, more: &[&str]) -> Value {
        let mut args = vec!["run", "pipeline.yaml", "--until-end", "--json"];
        args.extend(more);
        let ended = self.millpond(&args);
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(ended.stdout.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {ended:?}"))
    }

    pub fn query(&self, sql: &str) -> Vec<Value> {
        let ended = self.millpond(&["query", "pipeline.yaml", sql, "--json"]);
        assert_eq!(ended.code, 0, "{sql}: {ended:?}");
        ended.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// The rows of a query that reads the tables in this format.
    pub fn query_in(&self, format: &str, sql: &str) -> Vec<Value> {
        let ended = self.millpond(&["query", "pipeline.yaml", sql, "--json", "--format", format]);
        assert_eq!(ended.code, 0, "{sql}: {ended:?}");
        ended.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// A query whose answer is one number.
    pub fn number(&self, sql: &str) -> i64 {
        let rows = self.query(sql);
        let value = rows.first().and_then(Value::as_object).and_then(|r| r.values().next()).cloned().unwrap_or_default();
        value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{sql}: {rows:?}"))
    }

    /// Every table holds what its source yields, row by row, and nothing of that is unproven.
    pub fn assert_proven(&self) {
        let ended = self.millpond(&["verify", "pipeline.yaml", "--deep", "--caught-up"]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }

    pub fn status(&self) -> Value {
        let ended = self.millpond(&["status", "pipeline.yaml", "--json"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// The table's rows, sorted, as DuckDB, PyIceberg and deltalake read it in both formats: they must agree.
    pub fn rows(&self, pipeline: &str, table: &str) -> Vec<Value> {
        let lake = self.dir.path().join("lake");
        let text = |p: PathBuf| p.to_str().unwrap().to_string();
        let (iceberg, delta) = (text(lake.join("iceberg").join(pipeline).join(table)), text(lake.join("delta").join(pipeline).join(table)));
        let (catalog, id) = (text(lake.join("catalog.db")), format!("{pipeline}.{table}"));
        let readers: [&[&str]; 4] = [&["duckdb-iceberg", &iceberg], &["pyiceberg", &catalog, &id], &["duckdb-delta", &delta], &["deltalake", &delta]];
        let read: Vec<Vec<Value>> = readers.iter().map(|args| reader(args)).collect();
        for (rows, args) in read.iter().zip(&readers).skip(1) {
            assert_same(rows, &read[0], &format!("{} and {} of {table}", args[0], readers[0][0]));
        }
        read.into_iter().next().unwrap()
    }
}

#[allow(dead_code)]
impl Running {
    pub fn signal(&self, signal: i32) {
        // SAFETY: plain integers; the child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// The same, unless it has ended meanwhile.
    pub fn signal_if_alive(&mut self, signal: i32) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(signal);
        }
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Until it has said this on stderr, or has ended.
    pub fn until_told(&mut self, text: &str) {
        let start = Instant::now();
        while !self.stderr().contains(text) && self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "it has not said `{text}`: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Until it has stopped itself at a failpoint.
    pub fn until_stopped(&mut self) {
        let start = Instant::now();
        let stopped = |id: u32| std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|s| s.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')));
        while !stopped(self.child.id()) {
            assert!(self.child.try_wait().unwrap().is_none() && start.elapsed() < PATIENCE, "it does not stop: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait(mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "still running: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        };
        let read = |p: &Path| String::from_utf8_lossy(&std::fs::read(p).unwrap_or_default()).into_owned();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        Ended { code, stdout: read(&self.stdout), stderr: read(&self.stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A script of `tests/it/readers/`, in the environment of the readers: what it prints, a value a line.
fn script(name: &str, args: &[&str]) -> Vec<Value> {
    static PYTHON: OnceLock<String> = OnceLock::new();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = PYTHON.get_or_init(|| {
        let python = Command::new(here.join("infra/readers")).output().expect("infra/readers runs");
        let said = String::from_utf8_lossy(&python.stderr);
        assert!(python.status.success(), "this test needs DuckDB, PyIceberg and deltalake, which infra/readers installs; it said: {said}");
        String::from_utf8(python.stdout).unwrap().trim().to_string()
    });
    let out = Command::new(python).arg(here.join("tests/it/readers").join(name)).args(args).output().unwrap();
    assert!(out.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Rows as `tests/it/readers/read.py` prints them.
pub fn reader(args: &[&str]) -> Vec<Value> {
    script("read.py", args)
}

/// For each YAML file what a JSON Schema has against it.
pub fn judged_by_schema(schema: &Path, files: &[PathBuf]) -> Vec<Value> {
    let args: Vec<&str> = std::iter::once(schema).chain(files.iter().map(PathBuf::as_path)).map(|p| p.to_str().unwrap()).collect();
    script("schema.py", &args)
}

/// What others do to a pipeline's tables, step by step as `tests/it/readers/act.py` knows them; their answers.
pub fn act(lake: &Path, pipeline: &str, steps: &[Value]) -> Vec<Value> {
    let steps = serde_json::to_string(steps).unwrap();
    script("act.py", &[lake.to_str().unwrap(), pipeline, &steps])
}

/// Says which row differs: whole tables would fill the screen.
pub fn assert_same(found: &[Value], expected: &[Value], what: &str) {
    for (nth, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f, e, "{what}: row {nth}");
    }
    assert_eq!(found.len(), expected.len(), "{what}: number of rows");
}

/// One column of rows, as short texts to compare with.
#[allow(dead_code)]
pub fn texts(rows: &[Value], columns: &[&str]) -> Vec<String> {
    let one = |v: &Value| v.as_str().map_or_else(|| v.to_string(), |s| s.replace(":00.000000+00:00", "").replace("2026-01-31T", ""));
    let mut all: Vec<String> = rows.iter().map(|r| columns.iter().map(|c| one(&r[*c])).collect::<Vec<_>>().join(" ")).collect();
    all.sort();
    all
}
