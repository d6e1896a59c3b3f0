//! What happened, in the order in which it happened: the same for the same seed, byte for byte.

use std::fmt::{Display, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Trace {
    began: Instant,
    /// The thread of the simulation. While a library works on its own, this one waits, and time stands still.
    home: ThreadId,
    newest_us: AtomicU64,
    text: Mutex<String>,
}

impl Trace {
    pub fn new() -> Self {
        Self { began: Instant::now(), home: std::thread::current().id(), newest_us: AtomicU64::new(0), text: Mutex::default() }
    }

    /// Whether who calls is a library on a thread of its own.
    pub fn elsewhere(&self) -> bool {
        std::thread::current().id() != self.home
    }

    /// The virtual time since the beginning. Other threads have a clock of their own.
    fn elapsed(&self) -> Duration {
        if !self.elsewhere() {
            self.newest_us.store(self.began.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
        Duration::from_micros(self.newest_us.load(Ordering::Relaxed))
    }

    /// Virtual milliseconds since the beginning.
    pub fn now_ms(&self) -> i64 {
        self.elapsed().as_millis() as i64
    }

    pub fn note(&self, who: &str, what: impl Display) {
        let at = self.elapsed();
        let _ = writeln!(self.text.lock().unwrap(), "{:>9.3} {who:<8} {what}", at.as_secs_f64());
    }

    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }
}
