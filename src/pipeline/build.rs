//! The loose tree, built strictly into a [`Pipeline`]: every problem is found in one pass.
//!
//! A builder that meets a problem notes it and answers `None`; its caller goes on with the other
//! parts, so that one mistake never hides the next. A pipeline leaves this module only when
//! nothing was noted.

mod fields;
mod lake;
mod source;
mod table;

use std::cell::RefCell;
use std::path::Path;

use fields::Fields;

use super::keys::{BACKLOG, CLEAN, COMMIT, EPOCH, OBSERVE, SOURCE, TABLE, TOP};
use super::problem::{Problem, SourceText, Span};
use super::raw::{Key, Node, Scalar};
use super::types::Misfit;
use super::sql::Declared;
use super::{Backlog, Clean, Pipeline, SourceSpec, TableDecl, Variables};

/// Below this a worker cannot hold one batch of each stage.
const MIN_MEMORY_BYTES: u64 = 16 << 20;

/// Longest name of a pipeline, source or table: it becomes a folder's name, with a suffix.
const MAX_NAME: usize = 128;

/// What a name is for.
#[derive(Clone, Copy)]
enum Role {
    Pipeline,
    Source,
    Table,
    Namespace,
}

impl Role {
    fn title(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Source => "source",
            Self::Table => "table",
            Self::Namespace => "namespace",
        }
    }
}

/// One build: the file's text, and what is wrong with it so far.
struct Build<'a> {
    text: &'a SourceText,
    cwd: &'a Path,
    problems: RefCell<Vec<Problem>>,
    parts: RefCell<Parts>,
}

/// What is right of a pipeline that may not be right as a whole: its SQL is checked all the same.
#[derive(Debug, Default)]
pub struct Parts {
    pub sources: Vec<SourcePart>,
    /// There may be more sources than these: that part of the file cannot be read.
    pub unsure: bool,
    /// Those that have SQL.
    pub tables: Vec<TablePart>,
    /// What can be meant as it stands, and mostly is not.
    pub warnings: Vec<Problem>,
    /// Where the pipeline's name stands.
    pub pipeline_at: Option<Span>,
    /// Where the lake's root stands.
    pub root_at: Option<Span>,
}

/// A source, as far as it is right. What was told of it is left out.
#[derive(Debug)]
pub struct SourcePart {
    pub spec: SourceSpec,
    pub name_at: Span,
    /// Where the brokers stand and where the topic; both times the path of a file source.
    pub input_at: Option<(Span, Span)>,
    /// Columns whose declarations are wrong.
    pub doubtful: Vec<String>,
    /// Its columns cannot be read at all.
    pub open: bool,
    /// It has a watermark, which is wrong.
    pub timeless: bool,
    /// What its file passes on to librdkafka.
    pub options: Vec<OptionPart>,
    /// Some of them cannot be read, so that nothing can be said of all together.
    pub options_open: bool,
}

/// A property of a table, or one for librdkafka. Its value may be a secret.
pub struct OptionPart {
    pub name: String,
    pub value: String,
    /// The value as it may be shown.
    pub shown: String,
    pub name_at: Span,
    pub value_at: Span,
}

impl std::fmt::Debug for OptionPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OptionPart").field("name", &self.name).field("name_at", &self.name_at).finish_non_exhaustive()
    }
}

/// A table, as far as it is right: what was told of it has its default.
#[derive(Debug)]
pub struct TablePart {
    pub decl: TableDecl,
    pub name_at: Span,
    /// Where its `key` stands, and each column of it.
    pub key_at: Option<Span>,
    pub key_items: Vec<(String, Span)>,
    pub emit_at: Option<Span>,
    pub lateness_at: Option<Span>,
    pub formats_at: Option<Span>,
    /// Where each of [`TableDecl::partition_by`] stands.
    pub partition_at: Vec<Span>,
    pub properties: Vec<OptionPart>,
    pub variables: Variables,
}

impl SourcePart {
    /// As the SQL of a table sees it.
    pub fn declared(&self) -> Declared<'_> {
        Declared { spec: &self.spec, doubtful: &self.doubtful, open: self.open, timeless: self.timeless }
    }
}

/// Builds the pipeline. Adds what is wrong to `problems`; answers `None` only if it did, or if
/// there was something before.
pub(super) fn build(text: &SourceText, cwd: &Path, root: &Node, problems: &mut Vec<Problem>) -> (Option<Pipeline>, Parts) {
    let build = Build { text, cwd, problems: RefCell::default(), parts: RefCell::default() };
    let pipeline = build.pipeline(root);
    problems.append(&mut build.problems.into_inner());
    (pipeline, build.parts.into_inner())
}

impl Build<'_> {
    fn note(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    fn wrong(&self, span: Span, message: impl Into<String>, expected: &str) {
        self.note(self.text.problem(span, message).expected(expected));
    }

    fn pipeline(&self, root: &Node) -> Option<Pipeline> {
        let top = self.fields(root, &TOP, Span { length: 1, ..root.span })?;
        let name = top.get("pipeline").and_then(|node| self.name(node, Role::Pipeline));
        self.parts.borrow_mut().pipeline_at = top.get("pipeline").map(|node| node.span);
        let sources = self.named(&top, "sources", Role::Source, |name, node| {
            let Some(fields) = self.fields(node, &SOURCE, name.span) else {
                self.parts.borrow_mut().sources.push(source::unreadable(name));
                return None;
            };
            self.source(name, &fields)
        });
        let tables = self.named(&top, "tables", Role::Table, |name, node| {
            let fields = self.fields(node, &TABLE, name.span)?;
            self.table(name, node, &fields)
        });
        self.parts.borrow_mut().unsure = sources.is_none() && self.parts.borrow().sources.is_empty();
        let lake = self.lake(&top, name.as_deref());
        let epoch = self.section(&top, "epoch", &EPOCH).and_then(|f| self.duration_us(&f, "every"));
        let commit = self.section(&top, "commit", &COMMIT).and_then(|f| self.duration_us(&f, "every"));
        let memory = self.bytes(&top, "memory");
        let backlog = self.section(&top, "backlog", &BACKLOG).and_then(|f| {
            let (bytes, hours) = (self.bytes(&f, "bytes"), self.integer(&f, "hours"));
            Some(Backlog { bytes: bytes?, hours: hours? })
        });
        let clean = self.section(&top, "clean", &CLEAN).and_then(|f| {
            let (after, every) = (self.duration_us(&f, "after"), self.duration_us(&f, "every"));
            Some(Clean { after_ms: after? as u64 / 1_000, every_ms: every? as u64 / 1_000 })
        });
        let listen = match self.section(&top, "observe", &OBSERVE).and_then(|f| f.get("listen")) {
            Some(node) => self.address(node).map(Some),
            None => Some(None),
        };
        if let (Some(0..1_000), Some(node)) = (epoch, top.get("epoch")) {
            self.wrong(node.span, "`epoch.every` is too short", "at least 1ms; 1s to 30s is usual");
        }
        if let (Some(bytes), Some(node)) = (memory, top.get("memory"))
            && bytes < MIN_MEMORY_BYTES
        {
            self.wrong(node.span, "`memory` is too small to work with", "at least 16MiB");
        }
        Some(Pipeline {
            name: name?,
            sources: sources?,
            tables: tables?,
            lake: lake?,
            epoch_every_ms: epoch? as u64 / 1_000,
            commit_every_ms: commit? as u64 / 1_000,
            memory_bytes: memory?,
            backlog: backlog?,
            clean: clean?,
            listen: listen?,
            variables: self.parts.borrow().tables.iter().fold(Variables::default(), |mut all, table| {
                all.extend(&table.variables);
                all
            }),
        })
    }

    /// A map of names that the user chose, each with something to build.
    fn named<T>(&self, top: &Fields<'_>, key: &'static str, role: Role, one: impl Fn(&Key, &Node) -> Option<T>) -> Option<Vec<T>> {
        let node = top.get(key)?;
        let entries = self.entries(node, key)?;
        if entries.is_empty() {
            self.wrong(top.span(key), format!("`{key}` is empty"), &format!("at least one: `{key}: {{name: …}}`"));
            return None;
        }
        let mut built = Vec::new();
        let mut whole = true;
        for (name, node) in entries {
            // A bad name does not hide what is wrong with the rest.
            whole &= self.is_name(&name.text, &name.text, name.span, role);
            match one(name, node) {
                Some(t) => built.push(t),
                None => whole = false,
            }
        }
        whole.then_some(built)
    }

    fn name(&self, node: &Node, role: Role) -> Option<String> {
        let scalar = self.text_of(node, "a name")?;
        self.is_name(&scalar.text, scalar.shown(), node.span, role).then(|| scalar.text.clone())
    }

    /// Names become folders, tables and consumer groups: nothing in them may lead elsewhere.
    fn is_name(&self, name: &str, shown: &str, span: Span, role: Role) -> bool {
        let dash = matches!(role, Role::Pipeline | Role::Namespace);
        let letters = if dash { "a-z, 0-9, _ and -" } else { "a-z, 0-9 and _" };
        let fits = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || (dash && c == '-'))
        };
        if !fits(name) {
            let mapped: String = name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() || (dash && c == '-') { c } else { '_' }).collect();
            let near = Some(mapped.trim_matches('_')).filter(|near| fits(near) && shown == name);
            let problem = self.text.problem(span, format!("`{shown}` cannot name a {}", role.title()));
            self.note(problem.expected(format!("a name of {letters}, starting with a letter")).nearest(near));
            return false;
        }
        if name.len() > MAX_NAME {
            self.wrong(span, format!("the name of this {} has {} characters", role.title(), name.len()), &format!("at most {MAX_NAME}"));
            return false;
        }
        let suffix = ["__late", "__dead"].into_iter().find(|s| name.ends_with(s));
        if let (Some(suffix), Role::Table | Role::Source) = (suffix, role) {
            self.wrong(span, format!("`{shown}` ends with `{suffix}`, which marks tables that Millpond makes itself"), "another name");
            return false;
        }
        true
    }

    fn address(&self, node: &Node) -> Option<std::net::SocketAddr> {
        let text = self.text_of(node, "an address")?;
        let written = match text.text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.text.clone(),
        };
        let parsed = written.parse().ok();
        if parsed.is_none() {
            let shown = text.shown();
            let near = shown.strip_prefix(':').unwrap_or(shown).parse::<u16>().ok().map(|port| format!("127.0.0.1:{port}"));
            let problem = self.text.problem(node.span, format!("`{shown}` is no address to listen on"));
            self.note(problem.expected("an IP address and a port, such as 127.0.0.1:9090 or [::1]:9090").nearest(near));
        }
        if parsed.is_some_and(|at: std::net::SocketAddr| !at.ip().is_loopback()) {
            let message = format!("metrics and health on {} are open to whoever reaches this machine: no password is asked, and names of topics and tables are shown", text.shown());
            let problem = self.text.problem(node.span, message).expected("127.0.0.1, unless others are meant to read them");
            self.parts.borrow_mut().warnings.push(problem.warning());
        }
        parsed
    }

    /// Notes what is wrong with a text, at the place in it where it is.
    fn misfit(&self, node: &Node, scalar: &Scalar, misfit: Misfit) {
        let mut problem = self.text.problem(self.within(node.span, scalar, misfit.at, misfit.length), misfit.message);
        if scalar.before.is_some() {
            problem.message = format!("what {} stands for does not fit here", scalar.shown());
        }
        problem.expected = misfit.expected;
        problem.nearest = misfit.nearest;
        problem.unsupported = misfit.unsupported;
        self.note(problem);
    }

    /// Part of a scalar, as a place in the file; the whole of it where they are not the same text.
    fn within(&self, span: Span, scalar: &Scalar, at: usize, length: usize) -> Span {
        let written: String = self.text.line(span.line).chars().skip(span.column - 1).take(span.length).collect();
        let inner = if written.starts_with(['"', '\'']) { 1 } else { 0 };
        let same = written.chars().skip(inner).take(scalar.text.chars().count()).eq(scalar.text.chars());
        match same && at + length <= scalar.text.chars().count() && length > 0 {
            true => Span { column: span.column + inner + at, length, ..span },
            false => span,
        }
    }
}
