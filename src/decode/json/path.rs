//! Where the declared columns' values stand in a record, found while its text is checked.

use super::scan::{Kind, Malformed, Scanner, Token, unescape};
use crate::pipeline::{Column, From, Segment};

/// All paths of the declared columns, as one tree.
pub struct Paths {
    root: Node,
    /// A column takes `$` or starts at an index: a record need not be an object.
    any_root: bool,
}

#[derive(Default)]
struct Node {
    /// Columns whose value stands here.
    columns: Vec<usize>,
    /// Columns whose value stands here or below.
    below: Vec<usize>,
    fields: Vec<(Name, Node)>,
    elements: Vec<(usize, Node)>,
    /// Name to index in `fields`, where there are too many to try one after the other.
    index: hashbrown::HashMap<Vec<u8>, usize>,
}

struct Name {
    bytes: Vec<u8>,
    /// In a JSON text it may stand as it is.
    plain: bool,
}

/// Above this many fields names are looked up by hash.
const FEW: usize = 12;

/// What was found for each declared column in the record at hand.
pub struct Tokens(Vec<Token>);

impl Tokens {
    pub fn new(columns: usize) -> Tokens {
        Tokens(vec![Token::MISSING; columns])
    }

    pub fn clear(&mut self) {
        self.0.fill(Token::MISSING);
    }

    #[inline]
    pub fn get(&self, column: usize) -> Token {
        self.0[column]
    }
}

impl Paths {
    pub fn new(columns: &[Column]) -> Paths {
        let mut root = Node::default();
        let mut any_root = false;
        for (i, column) in columns.iter().enumerate() {
            if let From::Path(path) = &column.from {
                any_root |= !matches!(path.first(), Some(Segment::Field(_)));
                root.insert(path, i);
            }
        }
        Paths { root, any_root }
    }

    pub fn allows(&self, root: Kind) -> bool {
        self.any_root || root == Kind::Object
    }

    /// Checks the whole text, from its first byte to its last. Returns the record's own token.
    pub fn scan(&self, scanner: &mut Scanner, text: &str, tokens: &mut Tokens, scratch: &mut Vec<u8>) -> Result<Token, Malformed> {
        scanner.space();
        let root = self.root.scan(scanner, text, tokens, scratch)?;
        scanner.finish()?;
        Ok(root)
    }
}

impl Node {
    fn insert(&mut self, path: &[Segment], column: usize) {
        self.below.push(column);
        match path.split_first() {
            None => self.columns.push(column),
            Some((Segment::Field(name), rest)) => {
                let at = self.fields.iter().position(|(field, _)| field.bytes == name.as_bytes()).unwrap_or_else(|| {
                    let plain = !name.bytes().any(|b| b < 0x20 || b == b'"' || b == b'\\');
                    self.fields.push((Name { bytes: name.as_bytes().to_vec(), plain }, Node::default()));
                    self.index.insert(name.as_bytes().to_vec(), self.fields.len() - 1);
                    self.fields.len() - 1
                });
                self.fields[at].1.insert(rest, column);
            }
            Some((Segment::Index(element), rest)) => {
                let at = self.elements.iter().position(|(e, _)| e == element).unwrap_or_else(|| {
                    self.elements.push((*element, Node::default()));
                    self.elements.len() - 1
                });
                self.elements[at].1.insert(rest, column);
            }
        }
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        if self.fields.len() > FEW {
            return self.index.get(name).copied();
        }
        self.fields.iter().position(|(field, _)| field.bytes == name)
    }

    /// The cursor is on a value at this node. Recursion is bounded by the longest declared path.
    fn scan(&self, scanner: &mut Scanner, text: &str, tokens: &mut Tokens, scratch: &mut Vec<u8>) -> Result<Token, Malformed> {
        let start = scanner.position();
        let token = match scanner.peek() {
            Some(b'{') if !self.fields.is_empty() => {
                let mut more = scanner.enter(true)?;
                // Records name their fields in one order, mostly: the one behind the last is tried first.
                let mut next = 0;
                while more {
                    let expected = &self.fields[next].0;
                    let field = if expected.plain && scanner.key_is(&expected.bytes)? {
                        Some(next)
                    } else {
                        let key = scanner.key()?;
                        if key.kind == Kind::Text {
                            self.find(key.inner(text).as_bytes())
                        } else {
                            scratch.clear();
                            unescape(key.inner(text), scratch);
                            self.find(scratch)
                        }
                    };
                    match field {
                        Some(field) => {
                            next = if field + 1 == self.fields.len() { 0 } else { field + 1 };
                            self.fields[field].1.take(scanner, text, tokens, scratch)?;
                        }
                        None => {
                            scanner.value()?;
                        }
                    }
                    more = scanner.more(true)?;
                }
                scanner.token(Kind::Object, start)
            }
            Some(b'[') if !self.elements.is_empty() => {
                let mut more = scanner.enter(false)?;
                let mut element = 0;
                while more {
                    match self.elements.iter().find(|(e, _)| *e == element) {
                        Some((_, node)) => node.take(scanner, text, tokens, scratch)?,
                        None => {
                            scanner.value()?;
                        }
                    }
                    element += 1;
                    more = scanner.more(false)?;
                }
                scanner.token(Kind::Array, start)
            }
            _ => scanner.value()?,
        };
        for column in &self.columns {
            tokens.0[*column] = token;
        }
        Ok(token)
    }

    /// As [`Node::scan`], after an earlier field of the same name is forgotten with all under it.
    #[inline]
    fn take(&self, scanner: &mut Scanner, text: &str, tokens: &mut Tokens, scratch: &mut Vec<u8>) -> Result<(), Malformed> {
        if self.fields.is_empty() && self.elements.is_empty() {
            let token = scanner.value()?;
            for column in &self.columns {
                tokens.0[*column] = token;
            }
            return Ok(());
        }
        for column in &self.below {
            tokens.0[*column] = Token::MISSING;
        }
        self.scan(scanner, text, tokens, scratch).map(|_| ())
    }
}

/// The column's name, followed by where its value is found if that is elsewhere.
pub fn title(column: &Column) -> String {
    let From::Path(path) = &column.from else { return column.name.clone() };
    let mut written = String::new();
    for segment in path {
        match segment {
            Segment::Field(name) if written.is_empty() => written.push_str(name),
            Segment::Field(name) => {
                written.push('.');
                written.push_str(name);
            }
            Segment::Index(i) => written.push_str(&format!("[{i}]")),
        }
    }
    match path.is_empty() {
        true => format!("{} (from $)", column.name),
        false if written == column.name => written,
        false => format!("{} (from {written})", column.name),
    }
}
