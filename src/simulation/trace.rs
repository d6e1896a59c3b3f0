//! What happened, in the order in which it happened: the same for the same seed, byte for byte.

use std::fmt::{Display, Write};
use std::sync::Mutex;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Trace {
    began: Instant,
    text: Mutex<String>,
}

impl Trace {
    pub fn new() -> Self {
        Self { began: Instant::now(), text: Mutex::default() }
    }

    /// Virtual milliseconds since the beginning.
    pub fn now_ms(&self) -> i64 {
        self.began.elapsed().as_millis() as i64
    }

    pub fn note(&self, who: &str, what: impl Display) {
        let at = self.began.elapsed();
        let _ = writeln!(self.text.lock().unwrap(), "{:>9.3} {who:<8} {what}", at.as_secs_f64());
    }

    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }
}
