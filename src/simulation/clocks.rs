//! The clocks of hosts. All can be wrong, and in some worlds they are set back and forth while workers run.

use super::store::pause;
use super::world::{START_MS, World};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Where the worker lives that brings everything to its end.
pub const LAST: usize = 9;
/// Those whose clocks somebody sets.
const SET: [usize; 4] = [0, 1, 2, LAST];

/// From this virtual time on a clock is off by so much.
#[derive(Debug, Clone, Copy)]
struct Setting {
    from_ms: i64,
    off_ms: i64,
}

#[derive(Debug, Default)]
pub struct Clocks {
    /// By slot.
    settings: Mutex<BTreeMap<usize, Vec<Setting>>>,
    /// The latest time that each life was shown.
    latest: Mutex<BTreeMap<String, i64>>,
}

impl Clocks {
    pub fn new(skew_ms: [i64; 3]) -> Self {
        let settings = skew_ms.iter().enumerate().map(|(slot, off_ms)| (slot, vec![Setting { from_ms: 0, off_ms: *off_ms }])).collect();
        Self { settings: Mutex::new(settings), latest: Mutex::default() }
    }

    /// By how much the clock of this slot is off.
    pub fn off_ms(&self, slot: usize) -> i64 {
        self.settings.lock().unwrap().get(&slot).and_then(|all| all.last()).map_or(0, |s| s.off_ms)
    }

    pub fn set(&self, slot: usize, now_ms: i64, off_ms: i64) {
        self.settings.lock().unwrap().entry(slot).or_insert_with(|| vec![Setting { from_ms: 0, off_ms: 0 }]).push(Setting { from_ms: now_ms, off_ms });
    }

    /// Whether all have been right so far.
    pub fn are_right(&self) -> bool {
        self.settings.lock().unwrap().values().flatten().all(|s| s.off_ms == 0)
    }

    /// The virtual times up to now at which the clock of this slot showed that: none, or several where it was set back.
    pub fn moments(&self, slot: usize, shown_ms: i64, now_ms: i64) -> Vec<i64> {
        let settings = self.settings.lock().unwrap();
        let all = settings.get(&slot).cloned().unwrap_or_else(|| vec![Setting { from_ms: 0, off_ms: 0 }]);
        let ends = all.iter().skip(1).map(|s| s.from_ms).chain([now_ms]);
        let each = all.iter().zip(ends).map(|(setting, end)| (shown_ms - START_MS - setting.off_ms, setting.from_ms, end));
        each.filter(|(at, from, end)| (from..=end).contains(&at)).map(|(at, ..)| at).collect()
    }

    /// A life looks at its clock.
    pub fn shows(&self, who: &str, now_ms: i64) -> i64 {
        let mut latest = self.latest.lock().unwrap();
        match latest.get_mut(who) {
            Some(at) => *at = now_ms.max(*at),
            None => _ = latest.insert(who.to_string(), now_ms),
        }
        now_ms
    }

    /// The latest time that this life was shown; `None`: it never looked.
    pub fn latest(&self, who: &str) -> Option<i64> {
        self.latest.lock().unwrap().get(who).copied()
    }
}

/// Sets clocks back and forth, until it is dropped: by as little as a good time service does, and by hours.
pub async fn meddle(world: Arc<World>) {
    if !world.temper.clocks_set {
        return;
    }
    loop {
        pause(300 + world.below(2500)).await;
        let slot = SET[world.below(SET.len() as u64) as usize];
        let most = [50, 2_000, 60_000, 5 * 3_600_000][world.below(4) as usize];
        let by = world.below(2 * most) as i64 - most as i64;
        world.clocks.set(slot, world.trace.now_ms(), world.clocks.off_ms(slot) + by);
        world.clock_steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        world.trace.note("hand", format_args!("sets the clock of worker {slot} {} by {} ms", if by < 0 { "back" } else { "forth" }, by.abs()));
    }
}
