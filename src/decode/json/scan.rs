//! A strict scanner over one JSON text (RFC 8259): checks every byte, builds nothing.
//!
//! The text must be UTF-8 already: what the scanner adds is the grammar, escapes that name a
//! character (no lone surrogates, keys included), and the bound on nesting. Skipping a value is
//! iterative, so that no input can exhaust the stack.

/// What stands at a place of the text. Ranges are byte offsets into the record's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub start: u32,
    /// Exclusive. Strings include their quotes.
    pub end: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Missing,
    Null,
    True,
    False,
    /// A number without fraction and exponent.
    Integer,
    /// A number with a fraction or an exponent.
    Number,
    /// A string that stands for itself.
    Text,
    /// A string with escapes in it.
    EscapedText,
    Array,
    Object,
}

impl Token {
    pub const MISSING: Token = Token { kind: Kind::Missing, start: 0, end: 0 };

    pub fn is_null(self) -> bool {
        matches!(self.kind, Kind::Missing | Kind::Null)
    }

    pub fn is_text(self) -> bool {
        matches!(self.kind, Kind::Text | Kind::EscapedText)
    }

    pub fn text(self, text: &str) -> &str {
        &text[self.start as usize..self.end as usize]
    }

    /// What stands between the quotes of a string, escapes as written.
    pub fn inner(self, text: &str) -> &str {
        &text[self.start as usize + 1..self.end as usize - 1]
    }
}

/// Why a text is not JSON that we take, and the byte at which that showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    pub at: u32,
    pub problem: Problem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    Value,
    FirstKey,
    Key,
    Colon,
    ObjectEnd,
    ArrayEnd,
    Trailing,
    Digit,
    LeadingZero,
    Escape,
    Hex,
    Surrogate,
    Control,
    Quote,
    Depth,
}

impl Malformed {
    /// In words, with what was found.
    #[cold]
    pub fn describe(self, text: &str, max_depth: usize) -> String {
        let at = self.at as usize;
        let expected = match self.problem {
            Problem::Value => "a value",
            Problem::FirstKey => "a quoted field name or '}'",
            Problem::Key => "a quoted field name",
            Problem::Colon => "':' after the field name",
            Problem::ObjectEnd => "',' or '}'",
            Problem::ArrayEnd => "',' or ']'",
            Problem::Trailing => "the end of the record",
            Problem::Digit => "a digit",
            Problem::LeadingZero => return format!("not valid JSON at byte {at}: a number must not start with 0 and go on with digits"),
            Problem::Escape => "an escape that JSON knows",
            Problem::Hex => "four hexadecimal digits after \\u",
            Problem::Surrogate => return format!("lone surrogate at byte {at}: a \\u escape that names no character"),
            Problem::Control => "control characters in strings to be written as escapes",
            Problem::Quote => "'\"' at the end of the string",
            Problem::Depth => return format!("nested deeper than {max_depth} levels at byte {at}"),
        };
        let found = match text.get(at..).and_then(|rest| rest.chars().next()) {
            None => "the end of the record".to_string(),
            Some(c) if c.is_control() => format!("U+{:04X}", c as u32),
            Some(c) => format!("'{c}'"),
        };
        format!("not valid JSON at byte {at}: expected {expected}, found {found}")
    }
}

/// A cursor over the text.
pub struct Scanner<'a> {
    text: &'a [u8],
    pos: usize,
    depth: usize,
    max_depth: usize,
    /// For each container that [`Scanner::value`] has open: whether it is an object.
    open: &'a mut Vec<bool>,
}

type Scan<T> = Result<T, Malformed>;

impl<'a> Scanner<'a> {
    /// Starts at byte `at` of `text`. `open` is scratch space, empty between calls.
    pub fn new(text: &'a str, at: usize, max_depth: usize, open: &'a mut Vec<bool>) -> Scanner<'a> {
        open.clear();
        Scanner { text: text.as_bytes(), pos: at, depth: 0, max_depth, open }
    }

    #[inline(always)]
    pub fn peek(&self) -> Option<u8> {
        self.text.get(self.pos).copied()
    }

    pub fn position(&self) -> usize {
        self.pos
    }

    #[cold]
    fn fail<T>(&self, problem: Problem) -> Scan<T> {
        fail_at(self.pos, problem)
    }

    #[inline(always)]
    pub fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.pos += 1;
        }
    }

    /// Nothing but white space is left.
    pub fn finish(&mut self) -> Scan<()> {
        self.space();
        if self.pos == self.text.len() { Ok(()) } else { self.fail(Problem::Trailing) }
    }

    /// Steps into the container that the cursor is on. `false`: it is empty, and the cursor behind it.
    pub fn enter(&mut self, object: bool) -> Scan<bool> {
        if self.depth == self.max_depth {
            return self.fail(Problem::Depth);
        }
        self.pos += 1;
        self.space();
        if self.peek() == Some(if object { b'}' } else { b']' }) {
            self.pos += 1;
            return Ok(false);
        }
        self.depth += 1;
        if object && self.peek() != Some(b'"') {
            return self.fail(Problem::FirstKey);
        }
        Ok(true)
    }

    /// [`Scanner::more`] for a scanner that was started inside a container.
    pub fn separator(&mut self, object: bool) -> Scan<bool> {
        self.depth += 1;
        self.more(object)
    }

    /// After a value in a container: `true` when another follows (the cursor is on it, or on its
    /// key), `false` when the container ended.
    #[inline]
    pub fn more(&mut self, object: bool) -> Scan<bool> {
        self.space();
        match self.peek() {
            Some(b',') => {
                self.pos += 1;
                self.space();
                Ok(true)
            }
            Some(b'}') if object => {
                self.pos += 1;
                self.depth -= 1;
                Ok(false)
            }
            Some(b']') if !object => {
                self.pos += 1;
                self.depth -= 1;
                Ok(false)
            }
            _ => self.fail(if object { Problem::ObjectEnd } else { Problem::ArrayEnd }),
        }
    }

    /// Takes a field's name and the colon behind it when the name, as written, is `name`, which must hold
    /// nothing that needs an escape. `false`: it is not, and nothing was taken.
    #[inline(always)]
    pub fn key_is(&mut self, name: &[u8]) -> Scan<bool> {
        let end = self.pos + 1 + name.len();
        if self.peek() == Some(b'"') && self.text.get(end) == Some(&b'"') && self.text[self.pos + 1..end] == *name {
            self.pos = end + 1;
            self.colon()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Takes a field's name and the colon behind it; the cursor is on the value then.
    pub fn key(&mut self) -> Scan<Token> {
        if self.peek() != Some(b'"') {
            return self.fail(Problem::Key);
        }
        let token = self.string()?;
        self.colon()?;
        Ok(token)
    }

    #[inline(always)]
    fn colon(&mut self) -> Scan<()> {
        self.space();
        if self.peek() != Some(b':') {
            return self.fail(Problem::Colon);
        }
        self.pos += 1;
        self.space();
        Ok(())
    }

    /// Checks the value that the cursor is on, whole, and steps over it.
    #[inline]
    pub fn value(&mut self) -> Scan<Token> {
        match self.peek() {
            Some(first @ (b'{' | b'[')) => {
                let start = self.pos;
                self.container()?;
                let kind = if first == b'{' { Kind::Object } else { Kind::Array };
                Ok(self.token(kind, start))
            }
            _ => self.scalar(),
        }
    }

    /// The token from `start` to the cursor.
    #[inline(always)]
    pub fn token(&self, kind: Kind, start: usize) -> Token {
        Token { kind, start: start as u32, end: self.pos as u32 }
    }

    fn container(&mut self) -> Scan<()> {
        let floor = self.open.len();
        loop {
            match self.peek() {
                Some(first @ (b'{' | b'[')) => {
                    let object = first == b'{';
                    if self.enter(object)? {
                        self.open.push(object);
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => {
                    self.scalar()?;
                }
            }
            // A value ended, and with it perhaps the containers around it.
            while self.open.len() > floor {
                let object = self.open[self.open.len() - 1];
                if self.more(object)? {
                    if object {
                        self.key()?;
                    }
                    break;
                }
                self.open.pop();
            }
            if self.open.len() == floor {
                return Ok(());
            }
        }
    }

    #[inline]
    fn scalar(&mut self) -> Scan<Token> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true", Kind::True),
            Some(b'f') => self.word(b"false", Kind::False),
            Some(b'n') => self.word(b"null", Kind::Null),
            _ => self.fail(Problem::Value),
        }
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Scan<Token> {
        let start = self.pos;
        if !self.text[start..].starts_with(word) {
            return self.fail(Problem::Value);
        }
        self.pos += word.len();
        Ok(self.token(kind, start))
    }

    fn number(&mut self) -> Scan<Token> {
        let start = self.pos;
        let mut kind = Kind::Integer;
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        if self.peek() == Some(b'0') {
            self.pos += 1;
            if let Some(b'0'..=b'9') = self.peek() {
                return self.fail(Problem::LeadingZero);
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            kind = Kind::Number;
            self.pos += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            kind = Kind::Number;
            self.pos += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.pos += 1;
            }
            self.digits()?;
        }
        Ok(self.token(kind, start))
    }

    #[inline(always)]
    fn digits(&mut self) -> Scan<()> {
        let start = self.pos;
        while let Some(b'0'..=b'9') = self.peek() {
            self.pos += 1;
        }
        if self.pos == start { self.fail(Problem::Digit) } else { Ok(()) }
    }

    /// The cursor is on the opening quote.
    #[inline]
    fn string(&mut self) -> Scan<Token> {
        let start = self.pos;
        let mut kind = Kind::Text;
        self.pos += 1;
        loop {
            // Eight bytes at a time to the next byte that means something.
            while let Some(chunk) = self.text[self.pos..].first_chunk::<8>() {
                let special = special_bytes(u64::from_le_bytes(*chunk));
                if special != 0 {
                    self.pos += special.trailing_zeros() as usize / 8;
                    break;
                }
                self.pos += 8;
            }
            match self.peek() {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(self.token(kind, start));
                }
                Some(b'\\') => {
                    kind = Kind::EscapedText;
                    self.escape()?;
                }
                Some(0..=0x1f) => return self.fail(Problem::Control),
                Some(_) => self.pos += 1,
                None => return self.fail(Problem::Quote),
            }
        }
    }

    #[cold]
    fn escape(&mut self) -> Scan<()> {
        let start = self.pos;
        self.pos += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.pos += 1;
                Ok(())
            }
            Some(b'u') => match self.hex()? {
                0xD800..=0xDBFF => {
                    if self.text[self.pos..].starts_with(b"\\u") {
                        self.pos += 1;
                        if (0xDC00..=0xDFFF).contains(&self.hex()?) {
                            return Ok(());
                        }
                    }
                    fail_at(start, Problem::Surrogate)
                }
                0xDC00..=0xDFFF => fail_at(start, Problem::Surrogate),
                _ => Ok(()),
            },
            _ => self.fail(Problem::Escape),
        }
    }

    /// The cursor is on the `u`.
    fn hex(&mut self) -> Scan<u32> {
        self.pos += 1;
        let mut code = 0;
        for _ in 0..4 {
            match self.peek().and_then(|b| (b as char).to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => return self.fail(Problem::Hex),
            }
            self.pos += 1;
        }
        Ok(code)
    }
}

#[cold]
fn fail_at<T>(at: usize, problem: Problem) -> Scan<T> {
    Err(Malformed { at: at as u32, problem })
}

/// The lowest set bit marks the first byte (of a little-endian load) that is a quote, a backslash
/// or a control character; higher bits may be set wrongly by borrows.
#[inline(always)]
fn special_bytes(word: u64) -> u64 {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let quote = word ^ (LOW * b'"' as u64);
    let backslash = word ^ (LOW * b'\\' as u64);
    let zero = (quote.wrapping_sub(LOW) & !quote) | (backslash.wrapping_sub(LOW) & !backslash);
    let control = word.wrapping_sub(LOW * 0x20) & !word;
    (zero | control) & HIGH
}

/// Appends what a string stands for. `inner` is what the scanner accepted between its quotes.
pub fn unescape(inner: &str, out: &mut Vec<u8>) {
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = rest.as_bytes().get(at + 1).copied().unwrap_or(b'\\');
        let mut taken = at + 2;
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let unit = |at: usize| rest.get(at..at + 4).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0xFFFD);
                let mut code = unit(at + 2);
                taken += 4;
                if (0xD800..0xDC00).contains(&code) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (unit(at + 8) & 0x3FF);
                    taken += 6;
                }
                // The scanner refused every escape that names no character.
                let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            itself => out.push(itself),
        }
        rest = rest.get(taken..).unwrap_or("");
    }
    out.extend_from_slice(rest.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, max_depth: usize) -> Result<Token, Malformed> {
        let mut open = Vec::new();
        let mut scanner = Scanner::new(text, 0, max_depth, &mut open);
        scanner.space();
        let token = scanner.value()?;
        scanner.finish()?;
        Ok(token)
    }

    #[test]
    fn grammar() {
        for text in [
            "0", "-0", "10", "1.5", "1e5", "1E+5", "-1.25e-7", "\"\"", "\"a\\u0000b\"", "\"\\ud83d\\ude00\"", "[]", "{}", " [ 1 , 2 ] ",
            "{\"a\":[{}],\"b\":{\"c\":null}}", "true", "\"0123456789 long enough to take the wide path \\n and on\"", "\"\u{7f}é\u{2028}\"",
        ] {
            assert!(check(text, 10).is_ok(), "{text}: {:?}", check(text, 10));
        }
        for (text, problem) in [
            ("", Problem::Value),
            ("01", Problem::LeadingZero),
            ("-01", Problem::LeadingZero),
            ("1.", Problem::Digit),
            ("1.e1", Problem::Digit),
            (".5", Problem::Value),
            ("+1", Problem::Value),
            ("1e", Problem::Digit),
            ("-", Problem::Digit),
            ("NaN", Problem::Value),
            ("nul", Problem::Value),
            ("1 2", Problem::Trailing),
            ("[1,]", Problem::Value),
            ("[1 2]", Problem::ArrayEnd),
            ("[1}", Problem::ArrayEnd),
            ("{1:2}", Problem::FirstKey),
            ("{\"a\":1,}", Problem::Key),
            ("{\"a\" 1}", Problem::Colon),
            ("{\"a\":1]", Problem::ObjectEnd),
            ("\"a", Problem::Quote),
            ("\"a\nb\"", Problem::Control),
            ("\"0123456\u{1}\"", Problem::Control),
            ("\"\\x\"", Problem::Escape),
            ("\"\\u12g4\"", Problem::Hex),
            ("\"\\ud800\"", Problem::Surrogate),
            ("\"\\ud800\\ud800\"", Problem::Surrogate),
            ("\"\\udc00\"", Problem::Surrogate),
            ("{\"\\ud800\":1}", Problem::Surrogate),
            ("\u{feff}1", Problem::Value),
            ("1\u{0}", Problem::Trailing),
            ("\u{b}1", Problem::Value),
        ] {
            assert_eq!(check(text, 10).map_err(|e| e.problem), Err(problem), "{text}");
        }
    }

    #[test]
    fn depth_counts_open_containers() {
        assert!(check("[[[]]]", 3).is_ok());
        assert_eq!(check("[[[]]]", 2), Err(Malformed { at: 2, problem: Problem::Depth }));
        assert_eq!(check("[{\"a\":{}}]", 2), Err(Malformed { at: 6, problem: Problem::Depth }));
        assert!(check("[[],[],{\"a\":[]}]", 3).is_ok());
        assert!(check("1", 0).is_ok());
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert!(check(&deep, 1_000_000).is_ok());
        assert!(check(&deep, 999_999).is_err());
    }

    #[test]
    fn special_bytes_finds_the_first() {
        for at in 0..8 {
            for byte in 0..=255u8 {
                for fill in [b' ', b'a', 0x7f, 0x80, 0xff, b'!', b'#', b'[', b']'] {
                    let mut bytes = [fill; 8];
                    bytes[at] = byte;
                    let special = byte < 0x20 || byte == b'"' || byte == b'\\';
                    let found = special_bytes(u64::from_le_bytes(bytes));
                    assert_eq!(found != 0, special, "{byte} at {at} in {fill}");
                    if special {
                        assert_eq!(found.trailing_zeros() as usize / 8, at, "{byte} at {at} in {fill}");
                    }
                }
            }
        }
    }

    #[test]
    fn unescapes() {
        for (inner, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("a\\n\\t\\r\\b\\f\\/\\\\\\\"z", "a\n\t\r\u{8}\u{c}/\\\"z"),
            ("\\u00e9\\u0000\\ud83d\\ude00é", "é\u{0}\u{1f600}é"),
        ] {
            let mut out = Vec::new();
            unescape(inner, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
