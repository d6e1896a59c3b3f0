//! Column types (`decimal(12,2)`, `list<struct<a: int64>>`), paths into a record (`a.b[0]`) and
//! partition fields (`day(col)`), parsed from their texts.

use super::keys::nearest;
use super::{ColumnType, From, PartitionField, PartitionTransform, Segment};

/// Nesting of types beyond which a declaration is refused.
const MAX_NESTING: usize = 32;

/// What is wrong with a text, and where in it (in characters from its start).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Misfit {
    pub at: usize,
    pub length: usize,
    pub message: String,
    pub expected: Option<String>,
    pub nearest: Option<String>,
    pub unsupported: bool,
}

/// Every type's name, for suggestions.
pub(super) const TYPE_NAMES: [&str; 17] = [
    "bool", "int32", "int64", "float32", "float64", "decimal", "string", "binary", "date", "time", "timestamp", "timestamp_local", "uuid", "list", "struct",
    "map", "json",
];

/// What other systems call these types.
const FOREIGN: [(&str, &str); 25] = [
    ("boolean", "bool"),
    ("int", "int32"),
    ("integer", "int32"),
    ("int8", "int32"),
    ("int16", "int32"),
    ("smallint", "int32"),
    ("bigint", "int64"),
    ("long", "int64"),
    ("float", "float32"),
    ("real", "float32"),
    ("double", "float64"),
    ("number", "float64"),
    ("numeric", "decimal(38,9)"),
    ("varchar", "string"),
    ("char", "string"),
    ("text", "string"),
    ("str", "string"),
    ("utf8", "string"),
    ("bytes", "binary"),
    ("blob", "binary"),
    ("timestamptz", "timestamp"),
    ("timestamp_ntz", "timestamp_local"),
    ("datetime", "timestamp_local"),
    ("array", "list<string>"),
    ("object", "json"),
];

/// Parses a type with an optional ` not null` behind it; the second value is `nullable`.
pub(super) fn column_type(text: &str) -> Result<(ColumnType, bool), Misfit> {
    let mut reader = Reader::new(text);
    let ty = reader.column_type(0)?;
    reader.spaces();
    let nullable = match reader.word() {
        (_, word) if word.is_empty() => true,
        (at, word) if word.eq_ignore_ascii_case("not") => {
            reader.spaces();
            let (_, null) = reader.word();
            if !null.eq_ignore_ascii_case("null") {
                return Err(reader.misfit(at, "`not` must be followed by `null`").expecting("`not null`, or nothing"));
            }
            false
        }
        (at, word) if word.eq_ignore_ascii_case("null") => return Err(reader.misfit(at, "columns are nullable unless they say `not null`").expecting("nothing behind the type")),
        (at, word) => return Err(reader.misfit(at, format!("`{word}` behind the type")).expecting("`not null`, or nothing")),
    };
    reader.end()?;
    Ok((ty, nullable))
}

/// Parses where a column's value is found: `$`, `a.b[0]`, `a["odd name"]`, `_key`, ….
pub(super) fn from(text: &str) -> Result<From, Misfit> {
    if let Some(from) = reserved_from(text) {
        return Ok(from);
    }
    const EXPECTED: &str = "a path such as a.b[0], `$` for the whole record, or _key, _partition, _offset, _timestamp, _headers";
    let mut reader = Reader::new(text);
    let mut path = Vec::new();
    if reader.eat('$') && !reader.eat('.') && reader.peek().is_some_and(|c| c != '[') {
        return Err(reader.misfit(reader.at, "`$` must be followed by `.` or `[`").expecting(EXPECTED));
    }
    let dollar = reader.at > 0;
    while let Some(c) = reader.peek() {
        if c == '[' {
            reader.at += 1;
            let start = reader.at;
            if let Some(quote) = reader.peek().filter(|c| *c == '"' || *c == '\'') {
                reader.at += 1;
                let name = reader.take(|c| c != quote);
                if !reader.eat(quote) || !reader.eat(']') {
                    return Err(reader.misfit(start, "a quoted name in a path is never closed").expecting("[\"name\"]"));
                }
                path.push(Segment::Field(name));
            } else {
                let digits = reader.take(|c| c != ']');
                match digits.parse() {
                    Ok(index) if reader.eat(']') => path.push(Segment::Index(index)),
                    _ => return Err(reader.misfit(start, format!("`{digits}` is no index")).expecting("a number from 0, or a quoted name, and `]`")),
                }
            }
        } else {
            let needs_dot = !path.is_empty();
            if needs_dot && !reader.eat('.') {
                return Err(reader.misfit(reader.at, format!("`{c}` in a path")).expecting(EXPECTED));
            }
            let start = reader.at;
            let name = reader.take(|c| !matches!(c, '.' | '[' | ']' | '"' | '\''));
            if name.trim().is_empty() || name.trim() != name {
                return Err(reader.misfit(start, "a name is missing in a path, or has spaces around it").expecting(EXPECTED));
            }
            path.push(Segment::Field(name));
        }
    }
    match path.is_empty() && (!dollar || text != "$") {
        true => Err(reader.misfit(0, "the path is empty or ends too early").expecting(EXPECTED)),
        false => Ok(From::Path(path)),
    }
}

/// The part of a record, other than its payload, that has this name.
pub(super) fn reserved_from(name: &str) -> Option<From> {
    Some(match name {
        "_key" => From::Key,
        "_partition" => From::Partition,
        "_offset" => From::Offset,
        "_timestamp" => From::Timestamp,
        "_headers" => From::Headers,
        _ => return None,
    })
}

/// Parses a field of `partition_by`: `col`, `identity(col)`, `day(col)`, …. A name of other characters than those of a word
/// stands in double quotes, as in SQL.
pub(super) fn partition_field(text: &str) -> Result<PartitionField, Misfit> {
    const EXPECTED: &str = "a column, or day(column), hour(column), month(column), identity(column)";
    const QUOTED: &str = "nothing more; a name with other characters than letters, digits, `_` and `-` stands in double quotes: '\"two words\"'";
    const KNOWN: [&str; 4] = ["identity", "day", "hour", "month"];
    let end = |reader: &mut Reader| reader.end().map_err(|misfit| misfit.expecting(QUOTED));
    let mut reader = Reader::new(text);
    reader.spaces();
    if let Some(column) = reader.quoted()? {
        end(&mut reader)?;
        return Ok(PartitionField { column, transform: PartitionTransform::Identity });
    }
    let (at, word) = reader.word();
    if word.is_empty() {
        return Err(reader.misfit(0, "a partition field begins with no name").expecting(EXPECTED));
    }
    reader.spaces();
    if !reader.eat('(') {
        end(&mut reader)?;
        return Ok(PartitionField { column: word, transform: PartitionTransform::Identity });
    }
    let transform = match word.as_str() {
        "identity" => PartitionTransform::Identity,
        "hour" => PartitionTransform::Hour,
        "day" => PartitionTransform::Day,
        "month" => PartitionTransform::Month,
        "bucket" | "truncate" | "year" | "void" => {
            let misfit = reader.misfit(at, format!("the partition transform `{word}` is not in this version")).expecting(EXPECTED);
            return Err(Misfit { unsupported: true, length: word.chars().count(), ..misfit });
        }
        _ => {
            let near = nearest(&word, KNOWN.into_iter());
            let misfit = reader.misfit(at, format!("`{word}` is no partition transform")).expecting(EXPECTED);
            return Err(Misfit { nearest: near.map(String::from), length: word.chars().count(), ..misfit });
        }
    };
    reader.spaces();
    let column = match reader.quoted()? {
        Some(column) => column,
        None => reader.word().1,
    };
    reader.spaces();
    if column.is_empty() || !reader.eat(')') {
        return Err(reader.misfit(reader.at, format!("`{word}(` needs one column and `)`")).expecting(EXPECTED));
    }
    end(&mut reader)?;
    Ok(PartitionField { column, transform })
}

struct Reader {
    chars: Vec<char>,
    at: usize,
}

impl Misfit {
    fn expecting(mut self, expected: &str) -> Self {
        self.expected = Some(expected.to_string());
        self
    }
}

impl Reader {
    fn new(text: &str) -> Self {
        Self { chars: text.chars().collect(), at: 0 }
    }

    fn misfit(&self, at: usize, message: impl Into<String>) -> Misfit {
        let at = at.min(self.chars.len().saturating_sub(1));
        let length = self.at.max(at + 1) - at;
        Misfit { at, length, message: message.into(), ..Misfit::default() }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn take(&mut self, keep: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek().is_some_and(&keep) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn spaces(&mut self) {
        self.take(char::is_whitespace);
    }

    /// A word and where it starts.
    fn word(&mut self) -> (usize, String) {
        let start = self.at;
        (start, self.take(|c| c.is_alphanumeric() || c == '_' || c == '-' || c == '@'))
    }

    /// A name in double quotes, in which a double quote stands twice.
    fn quoted(&mut self) -> Result<Option<String>, Misfit> {
        let start = self.at;
        if !self.eat('"') {
            return Ok(None);
        }
        let mut name = String::new();
        loop {
            name += &self.take(|c| c != '"');
            match (self.eat('"'), self.eat('"')) {
                (true, true) => name.push('"'),
                (true, false) if !name.is_empty() => return Ok(Some(name)),
                (true, false) => return Err(self.misfit(start, "a name in double quotes is empty").expecting("\"two words\"")),
                (false, _) => return Err(self.misfit(start, "a name in double quotes is never closed").expecting("\"two words\"")),
            }
        }
    }

    fn end(&mut self) -> Result<(), Misfit> {
        self.spaces();
        match self.peek() {
            None => Ok(()),
            Some(_) => {
                let rest: String = self.chars[self.at..].iter().collect();
                let misfit = self.misfit(self.at, format!("`{rest}` is left over"));
                let unit = ["(s)", "(ms)", "(us)", "(ns)"].contains(&rest.as_str());
                let expected = if unit { format!("nothing more; a unit has a key of its own: {{type: timestamp, unit: {}}}", rest.trim_matches(['(', ')'])) } else { "nothing more".into() };
                Err(Misfit { length: rest.chars().count(), ..misfit.expecting(&expected) })
            }
        }
    }

    /// Expects one character between the parts of a type.
    fn want(&mut self, wanted: char, example: &str) -> Result<(), Misfit> {
        self.spaces();
        if self.eat(wanted) {
            return Ok(());
        }
        let message = match self.peek() {
            Some(found) => format!("`{wanted}` is missing before `{found}`"),
            None => format!("`{wanted}` is missing at the end"),
        };
        if self.chars[self.at..].iter().collect::<String>().trim_start().to_lowercase().starts_with("not null") {
            return Err(self.misfit(self.at, "`not null` is for whole columns; what lies in one may be null").expecting(example));
        }
        // Inside { } or [ ] YAML ends a value at a comma: the usual reason for a torn type.
        let torn = self.peek().is_none() && wanted != '(' && wanted != '<';
        let expected = if torn { format!("{example}; inside {{ }} it needs quotes, since YAML ends a value at a comma: \"{example}\"") } else { example.to_string() };
        Err(self.misfit(self.at, message).expecting(&expected))
    }

    fn column_type(&mut self, nesting: usize) -> Result<ColumnType, Misfit> {
        self.spaces();
        let (at, name) = self.word();
        if nesting > MAX_NESTING {
            return Err(self.misfit(at, format!("a type nested deeper than {MAX_NESTING} levels")).expecting("json, which takes any nesting"));
        }
        Ok(match name.as_str() {
            "bool" => ColumnType::Bool,
            "int32" => ColumnType::Int32,
            "int64" => ColumnType::Int64,
            "float32" => ColumnType::Float32,
            "float64" => ColumnType::Float64,
            "string" => ColumnType::String,
            "binary" => ColumnType::Binary,
            "date" => ColumnType::Date,
            "time" => ColumnType::Time,
            "timestamp" => ColumnType::Timestamp(None),
            "timestamp_local" => ColumnType::TimestampLocal(None),
            "uuid" => ColumnType::Uuid,
            "json" => ColumnType::Json,
            "decimal" => self.decimal(at)?,
            "list" => {
                self.want('<', "list<string>")?;
                let element = self.column_type(nesting + 1)?;
                self.want('>', "list<string>")?;
                ColumnType::List(Box::new(element))
            }
            "map" => {
                const EXAMPLE: &str = "map<string, int64>";
                self.want('<', EXAMPLE)?;
                self.spaces();
                let key_at = self.at;
                let key = self.column_type(nesting + 1)?;
                if key != ColumnType::String {
                    return Err(self.misfit(key_at, "the keys of a map are always `string`").expecting(EXAMPLE));
                }
                self.want(',', EXAMPLE)?;
                let value = self.column_type(nesting + 1)?;
                self.want('>', EXAMPLE)?;
                ColumnType::Map(Box::new(key), Box::new(value))
            }
            "struct" => self.fields(nesting)?,
            _ => return Err(self.unknown(at, &name)),
        })
    }

    fn decimal(&mut self, at: usize) -> Result<ColumnType, Misfit> {
        const EXAMPLE: &str = "decimal(12,2)";
        self.want('(', EXAMPLE)?;
        self.spaces();
        let precision = self.take(|c| c.is_ascii_digit());
        self.want(',', EXAMPLE)?;
        self.spaces();
        let scale = self.take(|c| c.is_ascii_digit());
        self.want(')', EXAMPLE)?;
        match (precision.parse::<u8>(), scale.parse::<u8>()) {
            (Ok(p @ 1..=38), Ok(s)) if s <= p => Ok(ColumnType::Decimal(p, s)),
            _ => Err(self.misfit(at, "a decimal's precision is 1 to 38 and its scale 0 to its precision").expecting(EXAMPLE)),
        }
    }

    fn fields(&mut self, nesting: usize) -> Result<ColumnType, Misfit> {
        const EXAMPLE: &str = "struct<a: int64, b: string>";
        self.want('<', EXAMPLE)?;
        let mut fields: Vec<(String, ColumnType)> = Vec::new();
        loop {
            self.spaces();
            let (at, name) = self.word();
            if name.is_empty() {
                return Err(self.misfit(at, "a field's name is missing").expecting(EXAMPLE));
            }
            if fields.iter().any(|(n, _)| n.to_lowercase() == name.to_lowercase()) {
                return Err(self.misfit(at, format!("the field `{name}` stands here twice (case does not count)")).expecting("each field once"));
            }
            self.want(':', EXAMPLE)?;
            let ty = self.column_type(nesting + 1)?;
            fields.push((name, ty));
            self.spaces();
            if !self.eat(',') {
                break;
            }
        }
        self.want('>', EXAMPLE)?;
        Ok(ColumnType::Struct(fields))
    }

    fn unknown(&self, at: usize, name: &str) -> Misfit {
        const EXPECTED: &str = "bool, int32, int64, float32, float64, decimal(p,s), string, binary, date, time, timestamp, timestamp_local, uuid, list<…>, struct<name: …>, map<string, …> or json";
        if name.is_empty() {
            return self.misfit(at, "a type is missing").expecting(EXPECTED);
        }
        let lower = name.to_lowercase();
        let near = FOREIGN.iter().find(|(foreign, _)| *foreign == lower).map(|(_, ours)| *ours).or_else(|| nearest(&lower, TYPE_NAMES.into_iter()));
        Misfit { nearest: near.map(String::from), ..self.misfit(at, format!("`{name}` is no type")).expecting(EXPECTED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_parses() {
        for name in ["bool", "int32", "int64", "float32", "float64", "string", "binary", "date", "time", "timestamp", "timestamp_local", "uuid", "json"] {
            assert!(column_type(name).is_ok(), "{name}");
        }
        assert_eq!(column_type("decimal(12,2)"), Ok((ColumnType::Decimal(12, 2), true)));
        assert_eq!(column_type(" decimal( 38 , 0 ) not null "), Ok((ColumnType::Decimal(38, 0), false)));
        let nested = ColumnType::Struct(vec![
            ("a".into(), ColumnType::Int64),
            ("b".into(), ColumnType::List(Box::new(ColumnType::Map(Box::new(ColumnType::String), Box::new(ColumnType::Date))))),
        ]);
        assert_eq!(column_type("struct<a: int64, b: list<map<string, date>>> NOT NULL"), Ok((nested, false)));
    }

    #[test]
    fn wrong_types_say_what_is_meant() {
        let refused = |text: &str| column_type(text).unwrap_err();
        assert_eq!(refused("strng").nearest.as_deref(), Some("string"));
        assert_eq!(refused("list<bigint>").nearest.as_deref(), Some("int64"));
        assert_eq!((refused("list<bigint>").at, refused("list<bigint>").length), (5, 6));
        assert!(refused("timestamp(ms)").expected.unwrap().contains("unit: ms"));
        assert!(refused("list<string not null>").message.contains("whole columns"));
        assert!(refused("decimal(12").expected.unwrap().contains("needs quotes"));
        for bad in ["", "decimal", "decimal(39,2)", "decimal(0,0)", "decimal(2,3)", "list", "list<>", "struct<>", "struct<a int64>", "struct<a: int64, A: int64>", "map<int64, string>", "string null", "string not", "string x", "int64)", "decimal(12,2", "decimal(999,1)"] {
            assert!(column_type(bad).is_err(), "{bad}");
        }
        let deep = format!("{}int64{}", "list<".repeat(10_000), ">".repeat(10_000));
        assert!(column_type(&deep).unwrap_err().message.contains("nested deeper"));
    }

    #[test]
    fn paths_name_fields_and_elements() {
        let field = |name: &str| Segment::Field(name.into());
        assert_eq!(from("$"), Ok(From::Path(vec![])));
        assert_eq!(from("a"), Ok(From::Path(vec![field("a")])));
        assert_eq!(from("$.a.b[0]"), Ok(From::Path(vec![field("a"), field("b"), Segment::Index(0)])));
        assert_eq!(from("a[0][1].c d"), Ok(From::Path(vec![field("a"), Segment::Index(0), Segment::Index(1), field("c d")])));
        assert_eq!(from("[\"x.y\"].z"), Ok(From::Path(vec![field("x.y"), field("z")])));
        assert_eq!(from("_offset"), Ok(From::Offset));
        for bad in ["", "$x", "$.", "a.", "a..b", ".a", "a[", "a[x]", "a[-1]", "a[0", "a[0]b", "a[\"b]", " a", "a. b"] {
            assert!(from(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn partition_fields() {
        let field = |column: &str, transform| Ok(PartitionField { column: column.into(), transform });
        assert_eq!(partition_field("origin"), field("origin", PartitionTransform::Identity));
        assert_eq!(partition_field("identity(origin)"), field("origin", PartitionTransform::Identity));
        assert_eq!(partition_field("day( window_start )"), field("window_start", PartitionTransform::Day));
        assert!(partition_field("bucket(16, user_id)").unwrap_err().unsupported);
        assert_eq!(partition_field("dya(x)").unwrap_err().nearest.as_deref(), Some("day"));
        assert_eq!(partition_field("\"two words\""), field("two words", PartitionTransform::Identity));
        assert_eq!(partition_field(" day( \"a \"\"b\"\"\" ) "), field("a \"b\"", PartitionTransform::Day));
        assert!(partition_field("two words").unwrap_err().expected.unwrap().contains("double quotes"));
        for bad in ["", "day()", "day(x", "day(x))", "day(x, y)", "a b", "\"a", "\"\"", "\"a\" b", "day(\"a)", "(a)"] {
            assert!(partition_field(bad).is_err(), "{bad}");
        }
    }
}
