//! What is done to a running pipeline: chance from a seed, two workers, and everything that can
//! happen to them.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millpond::failpoint;

use super::producer::Writer;
use crate::support::kafka::Broker;
use crate::support::process::{Pipeline, Running, until};

const PATIENCE: Duration = Duration::from_secs(120);

/// Time that a worker gets to come to the point at which it kills itself.
const LEFT_TO_ITSELF: Duration = Duration::from_secs(6);

/// Numbers that look like chance and are the same for one seed (SplitMix64).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What happened, for the last line.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u32,
    pub at_failpoints: u32,
    pub stops: u32,
    pub slept_through_truncation: u32,
    pub broker_restarts: u32,
    pub broker_kills: u32,
    pub disk_full: u32,
    pub partitions_added: u32,
}

pub struct Storm<'a> {
    pub pipeline: &'a Pipeline,
    pub name: &'a str,
    pub broker: &'a Broker,
    pub topic: &'a str,
    pub writer: &'a Writer<'a>,
    /// A disk of limited size below the lake; `None`: it is never filled.
    pub disk: Option<PathBuf>,
    pub chance: Chance,
    pub tally: Tally,
    pub workers: [Option<Running>; 2],
    /// When the disk was last full.
    filled_at: Option<Instant>,
    /// Since when a worker has been about to kill itself.
    armed: [Option<Instant>; 2],
}

impl<'a> Storm<'a> {
    pub fn new(pipeline: &'a Pipeline, name: &'a str, broker: &'a Broker, topic: &'a str, writer: &'a Writer<'a>, disk: Option<PathBuf>, seed: u64) -> Self {
        Self { pipeline, name, broker, topic, writer, disk, chance: Chance::new(seed), tally: Tally::default(), workers: [None, None], filled_at: None, armed: [None, None] }
    }

    fn newest(&self) -> u64 {
        self.pipeline.log(self.name).last().copied().unwrap_or(0)
    }

    fn first(&self) -> u64 {
        self.pipeline.log(self.name).first().copied().unwrap_or(0)
    }

    /// Kills workers until `kills` have died, with everything else spread between; ends early at `deadline`.
    pub fn rage(&mut self, kills: u32, deadline: Instant) {
        self.tend();
        until(PATIENCE, "the first worker decides", || self.newest() > 2);
        let (mut at, mut since) = (self.newest(), self.tally.kills);
        // Every 25 kills bring one of each of five deeds; a storm of fewer kills has one of each, too.
        let deeds = 5 * kills.div_ceil(25);
        let mut done = 0;
        while (self.tally.kills < kills || done < deeds) && Instant::now() < deadline {
            // Some come while the last one's successor is still starting, most when it is at work.
            let pause = if self.chance.below(3) == 0 { self.chance.millis(50, 400) } else { self.chance.millis(600, 3500) };
            std::thread::sleep(pause);
            if done < (self.tally.kills * deeds / kills.max(1)).min(deeds) {
                match done % 5 {
                    0 => self.add_partition(),
                    1 => self.fill_disk(),
                    2 => self.restart_broker(false),
                    3 => self.sleep_through_truncation(),
                    _ => self.restart_broker(true),
                }
                done += 1;
            }
            self.tend();
            let mut victim = self.chance.below(2) as usize;
            if self.armed[victim].is_some_and(|at| at.elapsed() < LEFT_TO_ITSELF) {
                victim = 1 - victim;
            }
            match self.chance.below(10) {
                0 => self.pause(victim),
                1 => self.end(victim),
                2 => {
                    self.kill(0);
                    self.kill(1);
                }
                3 | 4 => self.arm(victim),
                _ => self.kill(victim),
            }
            if self.chance.below(3) > 0 {
                self.tend();
            }
            if self.tally.kills >= since + 12 {
                // However often they are killed, the log goes on.
                self.tend();
                until(PATIENCE, "entries are decided between kills", || self.newest() > at);
                (at, since) = (self.newest(), self.tally.kills);
            }
        }
        self.tend();
    }

    /// Starts what does not run; a worker that ended by itself must have had a reason.
    pub fn tend(&mut self) {
        for nth in 0..2 {
            if let Some(worker) = &mut self.workers[nth]
                && let Some(status) = worker.ended()
            {
                let told = worker.told();
                // One that is started while nothing can be written says that the lake is not reachable (SQLite's words for a full disk are "disk I/O error").
                let full = ["no space", "disk i/o error", "full"].iter().any(|w| told.to_lowercase().contains(w));
                let excused = full && status.code() == Some(69) && self.filled_at.is_some_and(|at| at.elapsed() < Duration::from_secs(30));
                if std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL) {
                    // It was armed, and came to its point.
                    self.tally.kills += 1;
                    self.tally.at_failpoints += 1;
                } else if !excused {
                    panic!("a worker ended with {status} by itself: {told}");
                }
                self.workers[nth] = None;
            }
            if self.workers[nth].is_none() {
                self.workers[nth] = Some(self.pipeline.start(&["--deadline", "10"], None));
            }
        }
    }

    fn kill(&mut self, nth: usize) {
        self.armed[nth] = None;
        if let Some(mut worker) = self.workers[nth].take() {
            worker.signal(libc::SIGKILL);
            worker.wait(PATIENCE);
            self.tally.kills += 1;
        }
    }

    /// Killed, and started again to kill itself at some point.
    fn arm(&mut self, nth: usize) {
        self.kill(nth);
        let point = failpoint::ALL[self.chance.below(failpoint::ALL.len() as u64) as usize];
        let point = format!("{point}:{}", 1 + self.chance.below(8));
        self.armed[nth] = Some(Instant::now());
        self.workers[nth] = Some(self.pipeline.start(&["--deadline", "10"], Some(&point)));
    }

    /// Stopped as a user stops it.
    fn end(&mut self, nth: usize) {
        self.tend();
        if let Some(mut worker) = self.workers[nth].take() {
            worker.signal(libc::SIGTERM);
            let status = worker.wait(PATIENCE);
            // It may have been armed, or so young that it did not listen to signals yet.
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            assert!(status.success() || matches!(signal, Some(libc::SIGKILL | libc::SIGTERM)), "stopped with {status}: {}", worker.told());
        }
    }

    /// A pause too short for a truncation, but long enough to lose the group's trust, or not.
    fn pause(&mut self, nth: usize) {
        if let Some(worker) = &self.workers[nth] {
            worker.signal(libc::SIGSTOP);
            let pause = self.chance.millis(100, 4000);
            std::thread::sleep(pause);
            worker.signal(libc::SIGCONT);
            self.tally.stops += 1;
        }
    }

    /// One sleeps until the other has truncated the log past it, and is woken.
    fn sleep_through_truncation(&mut self) {
        self.kill(0);
        self.kill(1);
        self.tend();
        let at = self.newest();
        until(PATIENCE, "the workers decide", || self.newest() > at + 4);
        let sleeper = self.chance.below(2) as usize;
        let Some(worker) = &self.workers[sleeper] else { return };
        worker.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(100));
        let asleep_at = self.newest();
        until(PATIENCE, "the other truncates the log past the sleeper", || self.first() > asleep_at);
        worker.signal(libc::SIGCONT);
        self.tally.slept_through_truncation += 1;
        std::thread::sleep(Duration::from_millis(1500));
    }

    fn fill_disk(&mut self) {
        self.tend();
        let Some(disk) = self.disk.clone() else { return };
        self.filled_at = Some(Instant::now());
        let ballast = disk.join("ballast");
        let mut file = File::create(&ballast).expect("a file that fills the disk");
        let block = vec![7u8; 64 << 10];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&block[..512]).is_ok() {}
        let pause = self.chance.millis(500, 2500);
        std::thread::sleep(pause);
        if self.chance.below(2) == 0 {
            // Dies while it cannot write, and what starts finds no space either.
            self.kill(0);
            self.tend();
            std::thread::sleep(Duration::from_millis(700));
        }
        drop(file);
        fs::remove_file(&ballast).expect("the disk has space again");
        self.filled_at = Some(Instant::now());
        self.tally.disk_full += 1;
    }

    fn restart_broker(&mut self, kill: bool) {
        if kill {
            self.broker.kill();
            self.tally.broker_kills += 1;
        } else {
            self.broker.down();
            self.tally.broker_restarts += 1;
        }
        self.broker.up();
    }

    fn add_partition(&mut self) {
        let total = self.writer.partitions() + 1;
        self.broker.add_partitions(self.topic, total as usize);
        self.writer.use_partitions(total);
        self.tally.partitions_added += 1;
    }
}
