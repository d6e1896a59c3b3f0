//! What comes from outside, as bytes that nobody meant: each target takes any bytes and checks what
//! must hold of them; a driver changes its corpus at random for a bounded time.
//!
//! `MILLPOND_FUZZ_SECONDS` is the time for each target (3 unless set), `MILLPOND_FUZZ_SEED` where the
//! random numbers begin. An input that fails is written to `tests/fuzz/<target>/`, whose files are
//! all tried first by every run: running the test again replays it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

mod json_record;
mod log_entry;
mod pipeline_file;
mod run;

/// Checks what must hold of any bytes, and panics where it does not. Answers with what became of
/// them, in few words: an input with a new answer is worth changing further.
type Target = fn(&[u8]) -> String;

/// Inputs that are no longer than this are made.
const LONGEST: usize = 64 << 10;
/// Inputs kept for their answers.
const MOST_KEPT: usize = 2000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// The files of a folder of the project, in the order of their names.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(here().join(folder)).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_file()).collect();
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

/// One change, of the kinds that find most: bits, bytes, cuts, copies, words of the format, halves of others.
fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let length = 1 + random.below(16);
    let end = (at + length).min(input.len());
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'\\', b'{', b'-', b'9'][random.below(10)],
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, copy);
        }
        4 if !words.is_empty() => {
            let word = words[random.below(words.len())].to_vec();
            let over = if random.below(2) == 0 { at..at } else { at..(at + word.len()).min(input.len()) };
            input.splice(over, word);
        }
        5 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 => {
            let copy = input[at..end].to_vec();
            for _ in 0..random.below(40) {
                input.splice(at..at, copy.iter().copied());
            }
        }
        7 => {
            let digits = [0u64, 1, 255, 65_536, i32::MAX as u64, i64::MAX as u64, u64::MAX][random.below(7)].to_string();
            input.splice(at..end, digits.bytes());
        }
        _ => {
            let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            input.splice(at..end, bytes);
        }
    }
    input.truncate(LONGEST);
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What the target answers; `None` where it panics, which is not told: there may be thousands of it.
fn answer(target: Target, input: &[u8]) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |what| if !QUIET.get() { told(what) }));
    });
    QUIET.set(true);
    let answer = catch_unwind(AssertUnwindSafe(|| target(input)));
    QUIET.set(false);
    answer.ok()
}

fn fails(target: Target, input: &[u8]) -> bool {
    answer(target, input).is_none()
}

/// Cuts pieces out for as long as it still fails.
fn shrunk(target: Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut piece = input.len() / 2;
    let mut tries = 400;
    while piece > 0 && tries > 0 {
        let mut at = 0;
        while at + piece <= input.len() && tries > 0 {
            let mut less = input.clone();
            less.drain(at..at + piece);
            tries -= 1;
            if fails(target, &less) {
                input = less;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    input
}

/// Tries the corpus, then changes of it, for as long as is asked.
fn drive(name: &str, target: Target, more: Vec<Vec<u8>>, words: &[&[u8]]) {
    let folder = format!("tests/fuzz/{name}");
    let mut corpus = files(&folder);
    corpus.extend(more);
    let mut answers: BTreeMap<String, u64> = BTreeMap::new();
    for input in &corpus {
        *answers.entry(target(input)).or_default() += 1;
    }
    let mut random = Random(number("MILLPOND_FUZZ_SEED", 1));
    let time = Duration::from_secs(number("MILLPOND_FUZZ_SECONDS", 3));
    let (start, mut tried) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            change(&mut input, &corpus, words, &mut random);
        }
        tried += 1;
        match answer(target, &input) {
            Some(answer) => {
                let times = answers.entry(answer).or_default();
                *times += 1;
                if *times == 1 && corpus.len() < MOST_KEPT {
                    corpus.push(input);
                }
            }
            None => {
                let input = shrunk(target, input);
                let path = here().join(&folder).join(format!("failed-{:016x}", twox_hash::XxHash3_64::oneshot(&input)));
                std::fs::write(&path, &input).unwrap();
                // Once more, aloud.
                let _ = catch_unwind(AssertUnwindSafe(|| target(&input)));
                panic!(
                    "{name} failed after {tried} inputs on {:?}, kept as {}; replay: cargo test --release --locked --test it fuzz::{name}",
                    String::from_utf8_lossy(&input[..input.len().min(400)]),
                    path.display()
                );
            }
        }
    }
    println!("{name}: {tried} inputs, {} answers, {} inputs kept", answers.len(), corpus.len());
    assert!(answers.len() > 1, "every input of {name} has the same answer: the target looks at nothing");
}

/// A message without what differs from input to input, so that kinds can be told apart.
fn kind(message: &str) -> String {
    let mut kind: String = message.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(60).collect();
    kind.truncate(60);
    kind
}

#[test]
fn the_driver_finds_keeps_and_shrinks_what_fails() {
    fn target(input: &[u8]) -> String {
        assert!(!input.windows(3).any(|w| w == b"bad"), "found");
        String::from_utf8_lossy(input).matches('b').count().to_string()
    }
    let mut random = Random(7);
    let corpus = vec![b"a b c".to_vec()];
    let found = (0..200_000).find_map(|_| {
        let mut input = corpus[0].clone();
        change(&mut input, &corpus, &[b"ba", b"d"], &mut random);
        change(&mut input, &corpus, &[b"ba", b"d"], &mut random);
        fails(target, &input).then_some(input)
    });
    assert_eq!(shrunk(target, [&found.unwrap()[..], b" and much more behind it"].concat()), b"bad");
}
