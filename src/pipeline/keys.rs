//! Every key of the pipeline file, once: what it is called, what it takes, its default and its
//! meaning. The strict build refuses what is not here, and the JSON Schema is printed from it.

use super::{Format, TableFormatKind};

/// What a key takes.
#[derive(Debug)]
pub enum Kind {
    Text,
    /// A name as [`crate::pipeline`] allows it.
    Name,
    Bool,
    /// A whole number from 0.
    Integer,
    Duration,
    DurationOrNever,
    Bytes,
    /// `host:port` to listen on.
    Address,
    /// One of a few words.
    Word(&'static Words),
    WordList(&'static Words),
    /// Texts; one of them needs no brackets.
    TextList,
    /// Any names to texts.
    TextMap,
    /// Partition to offset.
    OffsetMap,
    Section(&'static Section),
    /// A word, or a map.
    WordOrSection(&'static Words, &'static Section),
    /// A text, or a map.
    TextOrSection(&'static Section),
    /// Names that the user chooses, each with such a section.
    Named(&'static Section),
    /// Column names, each with a type or a section.
    Columns(&'static Section),
}

/// The words that a key knows.
#[derive(Debug)]
pub struct Words {
    pub now: &'static [&'static str],
    /// Words that Millpond will have: refused as "not in this version".
    pub later: &'static [&'static str],
}

/// One key.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// As it would be written.
    pub default: Option<&'static str>,
    pub doc: &'static str,
    /// Known, but refused as "not in this version".
    pub later: bool,
}

/// A map of the pipeline file whose keys are fixed.
#[derive(Debug)]
pub struct Section {
    /// What it is called in messages.
    pub title: &'static str,
    /// Where it stands, as a path.
    pub path: &'static str,
    pub keys: &'static [Key],
}

impl Section {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|k| k.name == name)
    }

    /// The names that can be used in this version.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().filter(|k| !k.later).map(|k| k.name)
    }
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, required: true, default: None, doc, later: false }
}

const fn optional(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, required: false, default: None, doc, later: false }
}

const fn with_default(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, required: false, default: Some(default), doc, later: false }
}

const fn later(name: &'static str, doc: &'static str) -> Key {
    Key { name, kind: Kind::Text, required: false, default: None, doc, later: true }
}

pub static TOP: Section = Section {
    title: "the pipeline file",
    path: "the top level",
    keys: &[
        required("pipeline", Kind::Name, "The pipeline's name: names the log, the stamps in the tables and the Kafka consumer group. Never change it while its tables live."),
        required("sources", Kind::Named(&SOURCE), "Where rows come from, by name; the SQL of a table reads a source by this name."),
        required("tables", Kind::Named(&TABLE), "The tables to keep, by name."),
        required("lake", Kind::Section(&LAKE), "Where tables, log and state are kept."),
        optional("epoch", Kind::Section(&EPOCH), "How often work is decided in the log."),
        optional("commit", Kind::Section(&COMMIT), "How often the tables advance."),
        with_default("memory", Kind::Bytes, "512MiB", "What the worker may hold in memory."),
        optional("backlog", Kind::Section(&BACKLOG), "How far reading may run ahead of the tables before it pauses."),
        optional("clean", Kind::Section(&CLEAN), "Files that belong to nobody: what kills and lost races leave behind."),
        optional("observe", Kind::Section(&OBSERVE), "Metrics and health."),
    ],
};

pub static SOURCE: Section = Section {
    title: "a source",
    path: "sources.<source>",
    keys: &[
        optional("kafka", Kind::Section(&KAFKA), "Read a Kafka topic. A source has either `kafka` or `file`."),
        optional("file", Kind::TextOrSection(&FILE), "Read files of one JSON object per line; plain, .gz or .zst."),
        with_default("format", Kind::Word(&FORMATS), "json", "The format of a record's payload."),
        required("columns", Kind::Columns(&COLUMN), "The columns that the SQL can use. A record that does not fit them goes to `<source>__dead`."),
        optional("watermark", Kind::Section(&WATERMARK), "Event time. Needed for windows."),
        with_default("max_record_bytes", Kind::Bytes, "8MiB", "A larger record goes to `<source>__dead`; above 16 MiB without its payload."),
        with_default("max_depth", Kind::Integer, "512", "A record nested deeper goes to `<source>__dead`."),
        later("generator", "Made-up rows."),
    ],
};

pub static FORMATS: Words = Words { now: &[Format::Json.word()], later: &["avro", "protobuf", "debezium-json", "debezium-avro"] };

pub static KAFKA: Section = Section {
    title: "`kafka`",
    path: "sources.<source>.kafka",
    keys: &[
        required("brokers", Kind::TextList, "host:port; several with commas or as a list."),
        required("topic", Kind::Text, "The topic to read."),
        with_default("start", Kind::WordOrSection(&STARTS, &START), "earliest", "Where to begin when the pipeline runs for the first time. After that only the log counts."),
        optional("options", Kind::TextMap, "Properties of librdkafka, passed on as they are: security.protocol, sasl.*, ssl.* and all others but those that Millpond must set itself."),
    ],
};

pub static STARTS: Words = Words { now: &["earliest", "latest"], later: &[] };

pub static START: Section = Section {
    title: "`start`",
    path: "sources.<source>.kafka.start",
    keys: &[
        optional("timestamp", Kind::Text, "Begin with the first record at or after this time: RFC 3339, or milliseconds since 1970."),
        optional("offsets", Kind::OffsetMap, "Begin at these offsets, by partition. A partition that is not named begins at its beginning."),
    ],
};

pub static FILE: Section = Section {
    title: "`file`",
    path: "sources.<source>.file",
    keys: &[required("path", Kind::Text, "A path or a glob, relative to the working directory; each file is one partition.")],
};

pub static COLUMN: Section = Section {
    title: "a column",
    path: "sources.<source>.columns.<column>",
    keys: &[
        required("type", Kind::Text, "bool, int32, int64, float32, float64, decimal(p,s), string, binary, date, time, timestamp, timestamp_local, uuid, list<…>, struct<name: …>, map<string, …> or json; ` not null` may follow."),
        optional("from", Kind::Text, "Where the value is found: a path such as a.b[0], `$` for the whole record, or _key, _partition, _offset, _timestamp, _headers. The column's name unless set."),
        optional("unit", Kind::Word(&UNITS), "What numbers in a timestamp count since 1970. Without it numbers are refused."),
        with_default("nullable", Kind::Bool, "true", "Whether a record may lack the value."),
    ],
};

pub static UNITS: Words = Words { now: &["s", "ms", "us", "ns"], later: &[] };

pub static WATERMARK: Section = Section {
    title: "`watermark`",
    path: "sources.<source>.watermark",
    keys: &[
        required("column", Kind::Text, "The column that holds the event time; a timestamp."),
        with_default("delay", Kind::Duration, "0s", "How far the watermark stays behind the highest event time: how much disorder is normal."),
        with_default("idle_after", Kind::DurationOrNever, "1m", "A partition whose end has been reached for this long holds nobody up; `never` waits for it."),
        with_default("max_ahead", Kind::Duration, "1h", "An event time further ahead of the record's own time than this does not move the watermark."),
    ],
};

pub static TABLE: Section = Section {
    title: "a table",
    path: "tables.<table>",
    keys: &[
        required("sql", Kind::Text, "One select over one source, with or without one aggregate over tumble(source, interval '…')."),
        optional("key", Kind::TextList, "The upsert key. Without it the table is append-only."),
        with_default("allowed_lateness", Kind::Duration, "0s", "How long a closed window still takes rows and is corrected; of windowed tables only. What is later goes to `<table>__late`."),
        with_default("emit", Kind::Word(&EMITS), "on_close", "on_close: a window shows once the watermark passed its end. on_update: open windows show and are corrected."),
        with_default("formats", Kind::WordList(&TABLE_FORMATS), "[iceberg, delta]", "The formats that the table is kept in."),
        optional("partition_by", Kind::TextList, "A column, or day(column), hour(column), month(column), identity(column); a name that is no plain word in double quotes. In Delta only plain columns partition."),
        optional("properties", Kind::TextMap, "Table properties, set on the tables. What cannot hold is refused; what only other engines follow is warned of."),
        optional("comment", Kind::Text, "What the table is about, for its readers."),
        later("sort_by", "The order of rows within files."),
        later("into", "Write to a table that exists."),
        later("merge", "How upserts are carried out."),
    ],
};

pub static EMITS: Words = Words { now: &["on_close", "on_update"], later: &[] };

pub static TABLE_FORMATS: Words = Words { now: &[TableFormatKind::Iceberg.word(), TableFormatKind::Delta.word()], later: &[] };

pub static LAKE: Section = Section {
    title: "`lake`",
    path: "lake",
    keys: &[
        required("root", Kind::Text, "A folder, relative to the working directory: tables, log and state are kept below it."),
        optional("iceberg", Kind::Section(&ICEBERG), "The Iceberg catalog."),
        optional("namespace", Kind::Name, "The Iceberg namespace; the pipeline's name unless set."),
    ],
};

pub static ICEBERG: Section = Section {
    title: "`iceberg`",
    path: "lake.iceberg",
    keys: &[
        with_default("catalog", Kind::Word(&CATALOGS), "sql", "The kind of catalog; sql is a SQLite file that PyIceberg opens as its own."),
        optional("uri", Kind::Text, "sqlite://./relative/catalog.db or sqlite:////absolute/catalog.db; `<root>/catalog.db` unless set."),
        with_default("name", Kind::Text, "millpond", "The catalog's name within the SQLite file; readers must give the same."),
    ],
};

pub static CATALOGS: Words = Words { now: &["sql"], later: &["rest"] };

pub static EPOCH: Section = Section {
    title: "`epoch`",
    path: "epoch",
    keys: &[with_default("every", Kind::Duration, "5s", "How often what was read is decided.")],
};

pub static COMMIT: Section = Section {
    title: "`commit`",
    path: "commit",
    keys: &[with_default("every", Kind::Duration, "30s", "How often tables advance: several epochs per snapshot.")],
};

pub static BACKLOG: Section = Section {
    title: "`backlog`",
    path: "backlog",
    keys: &[
        with_default("bytes", Kind::Bytes, "10GiB", "What may be staged that no table has yet."),
        with_default("hours", Kind::Integer, "24", "How old that may get."),
    ],
};

pub static CLEAN: Section = Section {
    title: "`clean`",
    path: "clean",
    keys: &[
        with_default("after", Kind::Duration, "1h", "Files younger than this are left alone. It is safe at any value: too short a time only makes slow workers do their work again."),
        with_default("every", Kind::Duration, "1h", "How often they are looked for. A run with --until-end looks once, at its end."),
    ],
};

pub static OBSERVE: Section = Section {
    title: "`observe`",
    path: "observe",
    keys: &[optional("listen", Kind::Address, "Where /metrics, /livez and /readyz are served, such as 127.0.0.1:9090. Anyone who reaches it can read it: name another address than loopback only on purpose.")],
};

/// Every section, from the top down.
pub static SECTIONS: [&Section; 14] =
    [&TOP, &SOURCE, &KAFKA, &START, &FILE, &COLUMN, &WATERMARK, &TABLE, &LAKE, &ICEBERG, &EPOCH, &COMMIT, &BACKLOG, &CLEAN];

/// What other systems call keys of ours.
const FOREIGN: [(&str, &str); 8] = [
    ("bootstrap_servers", "brokers"),
    ("bootstrap.servers", "brokers"),
    ("servers", "brokers"),
    ("schema", "columns"),
    ("fields", "columns"),
    ("query", "sql"),
    ("primary_key", "key"),
    ("unique_key", "key"),
];

/// The key of a section that was perhaps meant: another system's word for it, or the nearest.
pub fn nearest_key(found: &str, section: &'static Section) -> Option<&'static str> {
    let foreign = FOREIGN.iter().find(|(word, ours)| *word == found.to_lowercase().replace('-', "_") && section.names().any(|n| n == *ours));
    foreign.map(|(_, ours)| *ours).or_else(|| nearest(found, section.names()))
}

/// The word that was perhaps meant: the nearest by edits, when it is near enough to be no guess.
pub fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = found.to_lowercase().replace('-', "_");
    let score = |word: &str| {
        let distance = strsim::damerau_levenshtein(&lower, &word.replace('-', "_"));
        // `lateness` for `allowed_lateness`: a part that is long enough to be no accident.
        let part = lower.len() >= 4 && word.contains(&lower) || word.len() >= 4 && lower.contains(word);
        let near = distance <= 1 + word.len().min(lower.len()) / 4;
        (near || part).then(|| (if near { distance } else { 100 + distance }, std::cmp::Reverse((strsim::jaro_winkler(&lower, word) * 1e6) as u64)))
    };
    known.filter_map(|word| score(word).map(|s| (s, word))).min().map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every typo of one missing letter, one doubled letter or two swapped ones finds its key.
    #[test]
    fn every_typo_of_every_key_finds_its_key() {
        let mut tried = 0;
        for section in SECTIONS.into_iter().chain([&OBSERVE]) {
            for name in section.names() {
                for typo in typos(name) {
                    if section.key(&typo).is_none() {
                        assert_eq!(nearest(&typo, section.names()), Some(name), "{typo} in {}", section.title);
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried > 500, "{tried}");
    }

    pub(crate) fn typos(name: &str) -> Vec<String> {
        let chars: Vec<char> = name.chars().collect();
        let mut out = Vec::new();
        for i in 0..chars.len() {
            let mut deleted = chars.clone();
            deleted.remove(i);
            let mut doubled = chars.clone();
            doubled.insert(i, chars[i]);
            let mut swapped = chars.clone();
            swapped.swap(i, (i + 1).min(chars.len() - 1));
            out.extend([deleted, doubled, swapped].map(|c| c.into_iter().collect::<String>()));
        }
        out.retain(|typo| typo != name && !typo.is_empty());
        out
    }

    #[test]
    fn far_words_are_no_suggestion() {
        assert_eq!(nearest("frobnicate", TABLE.names()), None);
        assert_eq!(nearest("lateness", TABLE.names()), Some("allowed_lateness"));
        assert_eq!(nearest("Key", TABLE.names()), Some("key"));
    }
}
