//! Which keys hold secrets, and how a line that holds one is shown.

use std::sync::LazyLock;

/// Parts of names whose values are never shown.
const WORDS: [&str; 8] = ["password", "passwd", "passphrase", "secret", "token", "credential", "ssl.key.pem", "sasl.jaas"];

/// Whole names of secrets, to catch their misspellings: an unknown key is quoted with its line.
static NAMES: LazyLock<[&str; 7]> =
    LazyLock::new(|| ["password", "secret", "token", "passphrase", "sasl.password", "ssl.key.password", "ssl.keystore.password"]);

/// Whether the value of this key must never be shown.
pub(super) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    WORDS.iter().any(|w| key.contains(w))
        || NAMES.iter().any(|name| strsim::damerau_levenshtein(name, &key) <= if name.len() > 6 { 2 } else { 1 })
}

/// The lines with the values of secret keys replaced by stars, character for character, so that
/// columns stay where they were. Works on the text alone: a file that is no YAML is masked too.
pub(super) fn mask(lines: &[String]) -> Vec<String> {
    let mut out = Vec::with_capacity(lines.len());
    let mut open = Open::No;
    for line in lines {
        let mut chars: Vec<char> = line.chars().collect();
        let indent = chars.iter().take_while(|c| **c == ' ').count();
        let mut from = 0;
        match open {
            Open::Deeper(than) if indent > than || chars.len() == indent => {
                stars(&mut chars[indent..]);
                from = chars.len();
            }
            Open::Quote(quote) => match closing(&chars, 0, quote) {
                Some(end) => {
                    stars(&mut chars[..end]);
                    from = end + 1;
                    open = Open::No;
                }
                None => {
                    stars(&mut chars);
                    from = chars.len();
                }
            },
            _ => open = Open::No,
        }
        while let Some((key_at, value)) = next_secret(&chars, from) {
            let quoted = chars.get(value).copied().filter(|c| *c == '"' || *c == '\'');
            let rest: String = chars[value..].iter().collect();
            from = match quoted {
                Some(quote) => match closing(&chars, value + 1, quote) {
                    Some(end) if is_reference(&chars[value + 1..end]) => end + 1,
                    Some(end) => {
                        stars(&mut chars[value + 1..end]);
                        end + 1
                    }
                    None => {
                        stars(&mut chars[value + 1..]);
                        open = Open::Quote(quote);
                        chars.len()
                    }
                },
                None => {
                    let flow = chars[..key_at].contains(&'{');
                    let end = if flow { chars[value..].iter().position(|c| matches!(c, ',' | '}')).map_or(chars.len(), |i| value + i) } else { chars.len() };
                    if !flow && matches!(chars[..key_at].iter().collect::<String>().trim(), "" | "-" | "\"" | "'") {
                        open = Open::Deeper(indent);
                    }
                    let block_header = rest.starts_with(['|', '>']);
                    if !block_header && !rest.starts_with("${") {
                        stars(&mut chars[value..end]);
                    }
                    end
                }
            };
        }
        out.push(chars.into_iter().collect());
    }
    out
}

/// A secret value that goes on in the next line.
enum Open {
    No,
    /// All lines that are indented deeper than this.
    Deeper(usize),
    Quote(char),
}

fn stars(chars: &mut [char]) {
    chars.iter_mut().filter(|c| !c.is_whitespace()).for_each(|c| *c = '*');
}

/// Only a reference to a variable or file, which is no secret itself.
fn is_reference(value: &[char]) -> bool {
    value.starts_with(&['$', '{']) && value.iter().position(|c| *c == '}') == Some(value.len() - 1) && !value.windows(2).any(|w| w == [':', '-'])
}

fn closing(chars: &[char], from: usize, quote: char) -> Option<usize> {
    let mut at = from;
    while at < chars.len() {
        match chars[at] {
            '\\' if quote == '"' => at += 1,
            c if c == quote => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the next secret key of a line begins, and where its value does.
fn next_secret(chars: &[char], from: usize) -> Option<(usize, usize)> {
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
    let mut at = from;
    while at < chars.len() {
        if !word(chars[at]) {
            at += 1;
            continue;
        }
        let start = at;
        while at < chars.len() && word(chars[at]) {
            at += 1;
        }
        let name: String = chars[start..at].iter().collect();
        let mut colon = at;
        while chars.get(colon).is_some_and(|c| matches!(c, '"' | '\'' | ' ')) {
            colon += 1;
        }
        if chars.get(colon) == Some(&':') && is_secret_key(&name) {
            let value = (colon + 1..chars.len()).find(|i| chars[*i] != ' ').unwrap_or(chars.len());
            return Some((start, value));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        mask(&text.lines().map(String::from).collect::<Vec<_>>()).join("\n")
    }

    #[test]
    fn values_of_secret_keys_become_stars_of_the_same_length() {
        assert_eq!(masked("  sasl.password: hunter2"), "  sasl.password: *******");
        assert_eq!(masked("options: {sasl.password: hunter2, a: b}"), "options: {sasl.password: *******, a: b}");
        assert_eq!(masked(r#"options: {"sasl.password": "hun, }ter", a: b}"#), r#"options: {"sasl.password": "**** ****", a: b}"#);
        assert_eq!(masked("pasword: hunter2"), "pasword: *******");
    }

    #[test]
    fn secrets_of_several_lines_are_masked_to_their_end() {
        assert_eq!(masked("ssl.key.pem: |\n  abc\n  def\ntopic: x"), "ssl.key.pem: |\n  ***\n  ***\ntopic: x");
        assert_eq!(masked("a:\n  token: \"ab\n   cd\"\n  topic: x"), "a:\n  token: \"**\n   **\"\n  topic: x");
        assert_eq!(masked("secret:\n  abc\nb: c"), "secret:\n  ***\nb: c");
    }

    #[test]
    fn references_and_ordinary_keys_are_shown() {
        assert_eq!(masked("sasl.password: ${PW}"), "sasl.password: ${PW}");
        assert_eq!(masked("sasl.password: \"${PW}\""), "sasl.password: \"${PW}\"");
        assert_eq!(masked("topic: spend_events"), "topic: spend_events");
        // A default stands in the file itself.
        assert_eq!(masked("sasl.password: \"${PW:-hunter2}\""), "sasl.password: \"**************\"");
    }
}
