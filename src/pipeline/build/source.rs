//! One source: where its records come from, and the columns they are read into.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::keys::{COLUMN, FILE, KAFKA, START, STARTS, WATERMARK, nearest};
use super::super::problem::Span;
use super::super::raw::{Key, Node, Scalar, Value};
use super::super::types::{Misfit, column_type, from, reserved_from};
use super::super::{Column, ColumnType, EpochUnit, FileInput, Format, From, Input, KafkaInput, Segment, SourceSpec, Start, Watermark};
use super::{Build, OptionPart, SourcePart};
use super::fields::{Fields, is_rest, is_torn};
use super::lake::absolute;

/// Properties of librdkafka that Millpond sets itself, and why.
const OWNED: [(&str, &str); 17] = [
    ("bootstrap.servers", "it is written as `brokers`"),
    ("metadata.broker.list", "it is written as `brokers`"),
    ("group.id", "the consumer group is made of the pipeline, the source and the log, whose workers share the partitions"),
    ("enable.auto.commit", "offsets of record are in the epoch log, and the group's are set after the tables have the rows"),
    ("auto.commit.enable", "offsets of record are in the epoch log, and the group's are set after the tables have the rows"),
    ("auto.commit.interval.ms", "nothing is committed on a timer: offsets follow the tables"),
    ("enable.auto.offset.store", "offsets of record are in the epoch log"),
    ("offset.store.method", "offsets of record are in the epoch log"),
    ("auto.offset.reset", "reading begins at `start`, then at the log's offsets; it is never reset silently"),
    ("isolation.level", "only committed records are read, always"),
    ("enable.partition.eof", "the ends of partitions are needed to know what was read whole"),
    ("partition.assignment.strategy", "how partitions change hands is part of how nothing is lost"),
    ("rebalance_cb", "how partitions change hands is part of how nothing is lost"),
    ("allow.auto.create.topics", "a topic that is not there is an error, never created"),
    ("consume_cb", "records are read in one way only"),
    ("log_cb", "log lines are Millpond's to print"),
    ("statistics.interval.ms", "statistics are shown as Millpond's own metrics"),
];

/// Values of properties that can be checked without a broker.
const SECURITY_PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
const SASL_MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
/// Properties with these values, which the file's own check judges.
const CHECKED: [&str; 3] = ["security.protocol", "sasl.mechanism", "sasl.mechanisms"];

/// Names that late and dead-letter tables and windows give to columns of their own.
const RESERVED: [&str; 12] = ["_topic", "_partition", "_offset", "_timestamp", "_key", "_headers", "_reason", "_table", "_value", "_op", "window_start", "window_end"];

/// Most columns of one source: beyond this something else is wrong.
const MAX_COLUMNS: usize = 5_000;

/// Columns as far as they could be read.
#[derive(Default)]
struct Columns {
    right: Vec<Column>,
    /// Names of those that are wrong.
    wrong: Vec<String>,
    /// There may be others.
    open: bool,
}

impl Columns {
    fn whole(&self) -> Option<Vec<Column>> {
        (self.wrong.is_empty() && !self.open).then(|| self.right.clone())
    }
}

/// A source of which nothing but its name can be read.
pub(super) fn unreadable(name: &Key) -> SourcePart {
    let input = Input::File(FileInput { path: String::new() });
    let spec = SourceSpec { name: name.text.clone(), input, format: Format::Json, columns: vec![], watermark: None, max_record_bytes: 0, max_depth: 0 };
    SourcePart { spec, name_at: name.span, input_at: None, doubtful: vec![], open: true, timeless: true, options: vec![], options_open: false }
}

impl Build<'_> {
    pub fn source(&self, name: &Key, fields: &Fields<'_>) -> Option<SourceSpec> {
        let input = match (fields.get("kafka"), fields.get("file")) {
            (Some(node), None) => self.kafka(node, fields.span("kafka")).map(Input::Kafka),
            (None, Some(node)) => self.file(node, fields.span("file")).map(Input::File),
            (Some(kafka), Some(file)) => {
                // Both are checked all the same: only one of them has to go.
                self.kafka(kafka, fields.span("kafka"));
                self.file(file, fields.span("file"));
                self.wrong(fields.span("file"), "a source has both `kafka` and `file`", "one of the two; another source for the other");
                None
            }
            // What it has instead was already reported as not in this version.
            (None, None) if fields.later => None,
            (None, None) => {
                self.wrong(fields.at, "a source needs `kafka` or `file`", "`kafka: {brokers: …, topic: …}` or `file: path`");
                None
            }
        };
        let format = self.word(fields, "format").and_then(Format::named);
        let absent: &[From] = if fields.get("file").is_some() { &[From::Key, From::Timestamp] } else { &[] };
        let columns = fields.get("columns").map(|node| self.columns(node, fields.span("columns"), absent));
        let columns = columns.unwrap_or_else(|| Columns { open: true, ..Columns::default() });
        let watermark = match fields.get("watermark") {
            Some(node) => self.watermark(node, fields, &columns).map(Some),
            None => Some(None),
        };
        let mut part = unreadable(name);
        (part.options, part.options_open) = fields.get("kafka").map(|node| self.option_parts(node)).unwrap_or_default();
        part.input_at = fields.get("kafka").and_then(kafka_at).or_else(|| fields.get("file").map(|node| (node.span, node.span)));
        part.spec.watermark = watermark.clone().flatten().filter(|w| columns.right.iter().any(|c| c.name == w.column));
        part.timeless = fields.has("watermark") && part.spec.watermark.is_none();
        part.spec.columns = columns.right.clone();
        part.open = columns.open;
        part.doubtful = columns.wrong.clone();
        self.parts.borrow_mut().sources.push(part);
        let max_record_bytes = self.bytes(fields, "max_record_bytes").filter(|bytes| {
            let fits = (1..=1 << 30).contains(bytes);
            if !fits {
                self.wrong(fields.span("max_record_bytes"), "`max_record_bytes` is out of bounds", "1 to 1GiB");
            }
            fits
        });
        let max_depth = self.integer(fields, "max_depth").filter(|depth| {
            let fits = (1..=10_000).contains(depth);
            if !fits {
                self.wrong(fields.span("max_depth"), "`max_depth` is out of bounds", "1 to 10000");
            }
            fits
        });
        Some(SourceSpec {
            name: name.text.clone(),
            input: input?,
            format: format?,
            columns: columns.whole()?,
            watermark: watermark?,
            max_record_bytes: max_record_bytes? as usize,
            max_depth: max_depth? as usize,
        })
    }

    fn kafka(&self, node: &Node, at: Span) -> Option<KafkaInput> {
        let fields = self.fields(node, &KAFKA, at)?;
        let brokers = fields.get("brokers").and_then(|node| self.brokers(node));
        let topic = fields.get("topic").and_then(|node| {
            let scalar = self.filled(node, "a topic")?;
            let legal = scalar.text.len() <= 249 && !matches!(scalar.text.as_str(), "." | "..") && scalar.text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !legal {
                self.wrong(node.span, format!("`{}` cannot be a Kafka topic", scalar.shown()), "at most 249 of a-z, A-Z, 0-9, `.`, `_` and `-`");
            }
            legal.then(|| scalar.text.clone())
        });
        let start = match fields.get("start") {
            Some(node) => self.start(node, fields.span("start")),
            None => Some(Start::Earliest),
        };
        let options = match fields.get("options") {
            Some(node) => self.options(node),
            None => Some(BTreeMap::new()),
        };
        Some(KafkaInput { brokers: brokers?, topic: topic?, start: start?, options: options? })
    }

    /// `host:port`, several with commas or as a list.
    fn brokers(&self, node: &Node) -> Option<String> {
        let mut brokers = Vec::new();
        let mut whole = true;
        for item in self.items(node, "brokers")? {
            let Some(scalar) = self.filled(item, "host:port") else {
                whole = false;
                continue;
            };
            for broker in scalar.text.split(',').map(str::trim) {
                let address = broker.rsplit_once("://").map_or(broker, |(_, address)| address);
                // An IPv6 address stands in brackets; without a port Kafka's own is meant.
                let (host, port) = match address.rsplit_once(':') {
                    Some((host, port)) if !port.ends_with(']') => (host, port),
                    _ => (address, "9092"),
                };
                let legal = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@') && port.parse::<u16>().is_ok_and(|p| p > 0);
                if legal && !broker.contains("://") {
                    brokers.push(broker.to_string());
                } else {
                    whole = false;
                    let shown = if scalar.before.is_some() { scalar.shown() } else { broker };
                    self.wrong(item.span, format!("`{shown}` is no Kafka broker"), "host:port, several with commas: kafka1:9092,kafka2:9092");
                }
            }
        }
        (whole && !brokers.is_empty()).then(|| brokers.join(","))
    }

    fn start(&self, node: &Node, at: Span) -> Option<Start> {
        if !matches!(node.value, Value::Map(_)) {
            return self.word_of(node, &STARTS, "start").map(|word| if word == "latest" { Start::Latest } else { Start::Earliest });
        }
        let fields = self.fields(node, &START, at)?;
        match (fields.get("timestamp"), fields.get("offsets")) {
            (Some(node), None) => self.timestamp_ms(node).map(Start::Timestamp),
            (None, Some(node)) => self.offsets(node).map(Start::Offsets),
            _ => {
                self.wrong(at, "`start` needs either `timestamp` or `offsets`", "earliest, latest, {timestamp: 2026-01-31T00:00:00Z} or {offsets: {0: 12}}");
                None
            }
        }
    }

    fn timestamp_ms(&self, node: &Node) -> Option<i64> {
        let scalar = self.filled(node, "a time")?;
        let text = scalar.text.trim();
        let parsed = match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<i64>().ok(),
            false => chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_millis()).filter(|ms| *ms >= 0),
        };
        if parsed.is_none() {
            self.wrong(node.span, format!("`{}` is no time to start at", scalar.shown()), "RFC 3339 with an offset (2026-01-31T00:00:00Z), or milliseconds since 1970");
        }
        parsed
    }

    fn offsets(&self, node: &Node) -> Option<BTreeMap<i32, i64>> {
        let entries = self.entries(node, "offsets")?;
        let mut offsets = BTreeMap::new();
        for (key, value) in entries {
            let partition = key.text.parse::<i32>().ok().filter(|p| *p >= 0);
            if partition.is_none() {
                self.wrong(key.span, format!("`{}` is no partition", key.text), "a number from 0");
            }
            let Some(scalar) = self.text_of(value, "an offset") else { continue };
            let offset = scalar.text.parse::<i64>().ok().filter(|o| *o >= 0);
            if offset.is_none() {
                self.wrong(value.span, format!("`{}` is no offset", scalar.shown()), "a number from 0");
            }
            if let (Some(partition), Some(offset)) = (partition, offset) {
                offsets.insert(partition, offset);
            }
        }
        if entries.is_empty() {
            self.wrong(node.span, "`offsets` is empty", "{0: 12, 1: 7}");
        }
        (!entries.is_empty() && offsets.len() == entries.len()).then_some(offsets)
    }

    fn options(&self, node: &Node) -> Option<BTreeMap<String, String>> {
        let entries = self.entries(node, "options")?;
        let mut options = BTreeMap::new();
        for (key, value) in entries {
            if let Some((_, reason)) = OWNED.iter().find(|(name, _)| *name == key.text) {
                self.wrong(key.span, format!("`{}` cannot be set: {reason}", key.text), "any other property of librdkafka");
                continue;
            }
            let Some(scalar) = self.text_of(value, "a text") else { continue };
            if self.is_option(key, value, scalar) {
                options.insert(key.text.clone(), scalar.text.clone());
            }
        }
        (options.len() == entries.len()).then_some(options)
    }

    /// The properties under `kafka` that are texts, be they right or not, and whether there are others.
    fn option_parts(&self, kafka: &Node) -> (Vec<OptionPart>, bool) {
        let Value::Map(entries) = &kafka.value else { return (vec![], false) };
        let Some((_, Node { value: Value::Map(options), .. })) = entries.iter().find(|(k, _)| k.text == "options") else { return (vec![], false) };
        let passed = || options.iter().filter(|(key, _)| !OWNED.iter().any(|(name, _)| *name == key.text));
        let each = passed().filter_map(|(key, node)| match &node.value {
            Value::Scalar(scalar) if !scalar.broken => {
                let (name, value, shown) = (key.text.clone(), scalar.text.clone(), scalar.shown().to_string());
                Some(OptionPart { name, value, shown, name_at: key.span, value_at: node.span })
            }
            _ => None,
        });
        // What was told of a value here is not asked again.
        let taken = |o: &OptionPart| {
            let known = [&SECURITY_PROTOCOLS[..], &SASL_MECHANISMS].concat();
            !CHECKED.contains(&o.name.as_str()) || known.iter().any(|k| k.eq_ignore_ascii_case(&o.value))
        };
        let parts: Vec<OptionPart> = each.filter(|o| is_property(&o.name) && taken(o)).collect();
        let open = parts.len() < passed().count();
        (parts, open)
    }

    fn is_option(&self, key: &Key, value: &Node, scalar: &Scalar) -> bool {
        let one_of = |known: &[&'static str], found: &str| {
            let fits = known.iter().any(|k| k.eq_ignore_ascii_case(found));
            if !fits {
                let near = nearest(found, known.iter().copied());
                let problem = self.text.problem(value.span, format!("`{}` is no `{}`", scalar.shown(), key.text));
                self.note(problem.expected(format!("one of {}", known.join(", "))).nearest(near));
            }
            fits
        };
        match key.text.as_str() {
            "security.protocol" => one_of(&SECURITY_PROTOCOLS, &scalar.text),
            "sasl.mechanism" | "sasl.mechanisms" if matches!(scalar.text.as_str(), "GSSAPI" | "OAUTHBEARER") => {
                let problem = self.text.problem(value.span, format!("SASL `{}` is not in this version", scalar.shown()));
                self.note(problem.expected(format!("one of {}", SASL_MECHANISMS.join(", "))).unsupported());
                false
            }
            "sasl.mechanism" | "sasl.mechanisms" => one_of(&SASL_MECHANISMS, &scalar.text),
            name if !is_property(name) => {
                self.wrong(key.span, format!("`{name}` is no property of librdkafka"), "a name such as security.protocol");
                false
            }
            _ => true,
        }
    }

    /// `file: path` or `file: {path: path}`.
    fn file(&self, node: &Node, at: Span) -> Option<FileInput> {
        let node = match node.value {
            Value::Scalar(_) => node,
            _ => self.fields(node, &FILE, at)?.get("path")?,
        };
        let scalar = self.filled(node, "a path")?;
        if scalar.text.contains("://") {
            self.wrong(node.span, format!("`{}` is no path", scalar.shown()), "a path or glob of the local file system");
            return None;
        }
        if scalar.text.starts_with('~') {
            self.wrong(node.span, "`~` is not expanded", "an absolute or relative path; ${HOME} is substituted");
            return None;
        }
        // The working directory is a name, not a pattern.
        let cwd = glob::Pattern::escape(&self.cwd.to_string_lossy());
        let path = absolute(Path::new(&cwd), &scalar.text);
        if let Err(error) = glob::Pattern::new(&path.to_string_lossy()) {
            self.wrong(node.span, format!("`{}` is no glob: {}", scalar.shown(), error.msg), "a path, with `*` for any part of a name");
            return None;
        }
        Some(FileInput { path: path.to_string_lossy().into_owned() })
    }

    fn columns(&self, node: &Node, at: Span, absent: &[From]) -> Columns {
        let mut columns = Columns::default();
        let Some(entries) = self.entries(node, "columns") else { return Columns { open: true, ..columns } };
        if entries.is_empty() || entries.len() > MAX_COLUMNS {
            self.wrong(at, format!("a source with {} columns", entries.len()), &format!("1 to {MAX_COLUMNS}"));
            return Columns { open: true, ..columns };
        }
        let mut names: BTreeMap<String, &str> = BTreeMap::new();
        let mut torn = false;
        for (key, value) in entries {
            if torn && is_rest(key, value) {
                continue;
            }
            torn = is_torn(value);
            if let Some(first) = names.insert(key.text.to_lowercase(), &key.text) {
                self.wrong(key.span, format!("the columns `{first}` and `{}` differ only in case", key.text), "names that differ in more than case, which Iceberg's and Delta's readers do not look at; `from` takes each from its own name");
                // Which of the two a word of the SQL means cannot be told.
                columns.open = true;
            }
            let named = self.is_column_name(key);
            match self.column(key, value, absent) {
                Some(column) if named => columns.right.push(column),
                _ => columns.wrong.push(key.text.clone()),
            }
        }
        columns
    }

    fn is_column_name(&self, key: &Key) -> bool {
        let odd = |c: char| c.is_control() || " ,;{}()=.\"'`[]<>/\\".contains(c);
        let trouble = key.text.is_empty() || key.text.len() > 255 || key.text.contains(odd);
        if trouble {
            let problem = self.text.problem(key.span, format!("`{}` cannot name a column", key.text));
            self.note(problem.expected("letters, digits, `_` and `-`; `from` reaches any name: `user_name: {type: string, from: '[\"user name\"]'}`"));
        }
        !trouble
    }

    /// `absent`: what the source's records do not have.
    fn column(&self, key: &Key, value: &Node, absent: &[From]) -> Option<Column> {
        let (ty_node, path_node, unit, nullable) = match &value.value {
            Value::Map(_) => {
                let fields = self.fields(value, &COLUMN, key.span)?;
                let unit = match fields.get("unit") {
                    Some(node) => Some(self.word(&fields, "unit").map(|word| (node, epoch_unit(word)))?),
                    None => None,
                };
                let nullable = fields.get("nullable").map(|node| (node, self.boolean(&fields, "nullable")));
                (fields.get("type")?, fields.get("from"), unit, nullable)
            }
            Value::Null => {
                self.wrong(key.span, format!("the column `{}` has no type", key.text), "`name: string`, or `name: {type: string, from: a.b}`");
                return None;
            }
            _ => (value, None, None, None),
        };
        let scalar = self.text_of(ty_node, "a type")?;
        let (mut ty, mut is_nullable) = match column_type(&scalar.text) {
            Ok(parsed) => parsed,
            Err(misfit) => {
                self.misfit(ty_node, scalar, misfit);
                return None;
            }
        };
        if let Some((node, unit)) = unit
            && !set_unit(&mut ty, unit)
        {
            self.wrong(node.span, format!("a unit, but `{}` holds no timestamp", scalar.shown()), "`unit` with timestamp or timestamp_local only");
        }
        if let Some((node, declared)) = nullable {
            let declared = declared?;
            if declared && !is_nullable {
                self.wrong(node.span, "`nullable: true` and `not null` contradict each other", "one of the two");
            }
            is_nullable &= declared;
        }
        let from = match path_node {
            Some(node) => {
                let scalar = self.text_of(node, "a path")?;
                match from(&scalar.text) {
                    Ok(from) => from,
                    Err(misfit) => {
                        self.misfit(node, scalar, misfit);
                        return None;
                    }
                }
            }
            None => reserved_from(&key.text).unwrap_or_else(|| From::Path(vec![Segment::Field(key.text.clone())])),
        };
        self.is_reserved(key, &from)?;
        self.holds(ty_node, scalar, &from, &ty)?;
        if absent.contains(&from) && !is_nullable {
            let beside = if from == From::Key { "_key" } else { "_timestamp" };
            self.wrong(ty_node.span, format!("the lines of a file have no `{beside}`: every record would be dead"), "a column that may be null, without `not null`");
            return None;
        }
        Some(Column { name: key.text.clone(), ty, nullable: is_nullable, from })
    }

    /// A reserved name is only for what it says.
    fn is_reserved(&self, key: &Key, from: &From) -> Option<()> {
        let reserved = RESERVED.iter().any(|name| name.eq_ignore_ascii_case(&key.text));
        if !reserved || reserved_from(&key.text).as_ref() == Some(from) {
            return Some(());
        }
        let expected = match reserved_from(&key.text) {
            Some(_) => format!("`from: {}` or no `from`, or another name for the column", key.text),
            None => format!("another name, with a path to the value: `{}_: {{type: …, from: {}}}`", key.text.trim_start_matches('_'), key.text),
        };
        self.wrong(key.span, format!("the column name `{}` is reserved", key.text), &expected);
        None
    }

    /// What a record has beside its payload has types of its own.
    fn holds(&self, node: &Node, scalar: &Scalar, from: &From, ty: &ColumnType) -> Option<()> {
        let (fits, name, expected) = match from {
            From::Path(_) => return Some(()),
            From::Key => (matches!(ty, ColumnType::Binary | ColumnType::String), "_key", "binary or string"),
            From::Partition => (*ty == ColumnType::Int32, "_partition", "int32"),
            From::Offset => (*ty == ColumnType::Int64, "_offset", "int64"),
            From::Timestamp => (*ty == ColumnType::Timestamp(None), "_timestamp", "timestamp, without a unit"),
            From::Headers => (*ty == ColumnType::Map(Box::new(ColumnType::String), Box::new(ColumnType::Binary)), "_headers", "map<string, binary>"),
        };
        if !fits {
            let length = scalar.text.chars().count();
            let message = format!("`{name}` cannot be read as this type");
            self.misfit(node, scalar, Misfit { length, message, expected: Some(expected.into()), ..Misfit::default() });
        }
        fits.then_some(())
    }

    fn watermark(&self, node: &Node, source: &Fields<'_>, columns: &Columns) -> Option<Watermark> {
        let fields = self.fields(node, &WATERMARK, source.span("watermark"))?;
        let column = fields.get("column").and_then(|node| {
            let scalar = self.filled(node, "a column")?;
            if columns.open || columns.wrong.contains(&scalar.text) {
                return Some(scalar.text.clone());
            }
            let columns = &columns.right;
            let names = || columns.iter().filter(|c| is_timestamp(&c.ty)).map(|c| c.name.as_str());
            let expected = match names().next() {
                Some(_) => format!("a timestamp column of this source: {}", names().collect::<Vec<_>>().join(", ")),
                None => "a column of type timestamp; this source has none".to_string(),
            };
            match columns.iter().find(|c| c.name == scalar.text) {
                None => {
                    let problem = self.text.problem(node.span, format!("the source has no column `{}`", scalar.shown()));
                    self.note(problem.expected(expected).nearest(nearest(&scalar.text, names())));
                    None
                }
                Some(column) if !is_timestamp(&column.ty) => {
                    self.wrong(node.span, format!("the column `{}` is no timestamp", column.name), &expected);
                    None
                }
                Some(column) if column.from == From::Timestamp && source.get("file").is_some() => {
                    self.wrong(node.span, "records of a file have no `_timestamp`", "a timestamp column that is read from the record");
                    None
                }
                Some(column) => Some(column.name.clone()),
            }
        });
        if let Some(ahead) = fields.get("max_ahead").filter(|_| source.get("file").is_some()) {
            let problem = self.text.problem(ahead.span, "`max_ahead` has no effect: the lines of a file have no times of their own");
            self.parts.borrow_mut().warnings.push(problem.warning());
        }
        let (delay, idle, ahead) = (self.duration_us(&fields, "delay"), self.duration_or_never(&fields, "idle_after"), self.duration_us(&fields, "max_ahead"));
        Some(Watermark { column: column?, delay_us: delay?, idle_after_us: idle?, max_ahead_us: ahead? })
    }
}

/// Where the brokers stand, and where the topic.
fn kafka_at(kafka: &Node) -> Option<(Span, Span)> {
    let Value::Map(entries) = &kafka.value else { return None };
    let at = |word: &str| entries.iter().find(|(key, _)| key.text == word).map(|(_, node)| node.span);
    Some((at("brokers")?, at("topic")?))
}

/// Whether librdkafka could have a property of this name.
fn is_property(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_timestamp(ty: &ColumnType) -> bool {
    matches!(ty, ColumnType::Timestamp(_) | ColumnType::TimestampLocal(_))
}

fn epoch_unit(word: &str) -> EpochUnit {
    match word {
        "s" => EpochUnit::Seconds,
        "ms" => EpochUnit::Millis,
        "us" => EpochUnit::Micros,
        _ => EpochUnit::Nanos,
    }
}

/// Sets the unit of every timestamp within a type; false when there is none.
fn set_unit(ty: &mut ColumnType, unit: EpochUnit) -> bool {
    match ty {
        ColumnType::Timestamp(u) | ColumnType::TimestampLocal(u) => {
            *u = Some(unit);
            true
        }
        ColumnType::List(element) => set_unit(element, unit),
        // Every field is visited: `any` alone would stop at the first.
        ColumnType::Struct(fields) => fields.iter_mut().map(|(_, ty)| set_unit(ty, unit)).fold(false, |a, b| a | b),
        ColumnType::Map(_, value) => set_unit(value, unit),
        _ => false,
    }
}
