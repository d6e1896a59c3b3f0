//! Every world that is searched, and what must come of it.

use super::fold::{self, FoldWorld};
use super::ledgers::Without;
use super::log::{Budget, LogWorld, Rule};
use super::search::{Found, World, search};
use super::table::{self, Format, TableWorld};

pub struct Case {
    pub name: String,
    /// `None`: every invariant holds. Else how the one begins that must break.
    pub breaks: Option<&'static str>,
    /// Too large for every day.
    pub large: bool,
    pub run: Box<dyn Fn() -> Found>,
}

impl Case {
    fn large_if(self, large: bool) -> Self {
        Self { large, ..self }
    }
}

fn case<W: World>(name: String, breaks: Option<&'static str>, world: impl Fn() -> W + 'static) -> Case {
    Case { name, breaks, large: false, run: Box::new(move || search(&world())) }
}

/// The log: who writes what, how often each may happen, and how the mutants break.
pub fn log() -> Vec<Case> {
    use Rule::*;
    const I1: Option<&str> = Some("I1");
    const I4: Option<&str> = Some("I4");
    const I5: Option<&str> = Some("I5");
    const MISREAD: Option<&str> = Some("a reader took another log for the log");
    let none = Budget::default();
    let puts = |faults| ([1, 1], false, Budget { faults, checkpoints: 1, ..none });
    let claims = ([1, 1], false, Budget { faults: 1, claims: 1, ..none });
    let plans = ([1, 0], false, Budget { faults: 0, checkpoints: 1, plans: 2, ..none });
    let clean = |checkpoints| ([1, 0], false, Budget { checkpoints, condemnations: 1, ..none });
    let clean_planned = ([1, 0], false, Budget { checkpoints: 1, condemnations: 1, plans: 1, ..none });
    let merge = ([2, 0], true, Budget { checkpoints: 2, ..none });
    let rows: Vec<(&str, Rule, ([u8; 2], bool, Budget), Option<&'static str>)> = vec![
        ("puts", Sound, puts(1), None),
        ("claims", Sound, claims, None),
        ("plans", Sound, plans, None),
        ("clean", Sound, clean(1), None),
        ("merge", Sound, merge, None),
        ("large puts", Sound, ([2, 1], false, Budget { faults: 2, checkpoints: 1, ..none }), None),
        ("large claims", Sound, ([1, 1], false, Budget { faults: 1, checkpoints: 1, claims: 1, ..none }), None),
        ("large plans", Sound, ([1, 0], false, Budget { faults: 1, checkpoints: 1, plans: 2, ..none }), None),
        ("large clean", Sound, ([1, 1], false, Budget { faults: 1, checkpoints: 1, condemnations: 1, ..none }), None),
        ("large clean twice", Sound, ([1, 0], false, Budget { checkpoints: 2, condemnations: 2, plans: 1, ..none }), None),
        ("large merge", Sound, ([2, 0], true, Budget { faults: 1, checkpoints: 2, ..none }), None),
        ("puts", TrustCreated, puts(1), I5),
        ("puts", TrustAnswers, puts(1), I5),
        ("puts", TrustLost, puts(1), None),
        ("puts", TrustLostDelete, puts(2), I4),
        ("puts", ExistsIsLost, puts(1), None),
        ("puts", ExistsIsLostDelete, puts(1), I4),
        ("puts", ExistsIsWon, puts(1), I5),
        ("puts", LostAsItIs, puts(1), I1),
        ("puts", OneAttemptId, puts(1), I5),
        ("puts", OtherWorkSentAgain, puts(2), I5),
        ("puts", DeleteOnGivingUp, puts(1), I4),
        ("puts", DeleteWhenStale, puts(1), None),
        ("puts", PutsOverwrite, puts(1), I1),
        ("puts", OneLook, puts(0), MISREAD),
        ("puts", TruncateAboveM, puts(0), MISREAD),
        ("claims", Entries(Without::Claims), claims, Some("an idle claim")),
        ("plans", Entries(Without::PlanReplaces), plans, Some("a plan")),
        ("plans", Entries(Without::PlanOfData), plans, Some("data of one plan")),
        ("clean", CheckpointBeforeLog, clean(1), I4),
        ("clean", LogBeforeFiles, clean(1), None),
        ("clean", DeleteUnnamed, clean(0), I4),
        ("clean", DeleteBeforeNote, clean(0), I4),
        ("clean", TruncateAnyOrder, clean(1), None),
        ("clean", Entries(Without::Condemned), clean(0), I4),
        ("clean", Entries(Without::CondemnsUndecided), clean(0), I4),
        ("clean", Entries(Without::BeganCondemned), clean(1), I4),
        ("clean", Entries(Without::CondemnedAboveM), clean_planned, I4),
        ("clean", Entries(Without::BeganData), clean(1), I4),
        ("merge", Entries(Without::CheckpointsOnNewest), merge, I4),
        ("merge", Entries(Without::RisingCheckpoints), merge, I4),
    ];
    rows.into_iter()
        .map(|(what, rule, (ends, merging, budget), breaks)| case(format!("log {what} {rule:?}"), breaks, move || LogWorld::new(rule, ends, merging, budget)).large_if(what.starts_with("large")))
        .collect()
}

/// Event time.
pub fn fold() -> Vec<Case> {
    use fold::Rule::*;
    const I2: Option<&str> = Some("I2");
    const I6: Option<&str> = Some("I6");
    const MADE_LATE: Option<&str> = Some("a row that had arrived");
    const STARVES: Option<&str> = Some("work");
    let world = |shape: &str, rule| {
        let (rows, last, lateness) = match shape {
            "two workers" => ([2, 1], 1, 0),
            "lateness" => ([1, 1], 2, 1),
            "alone" => ([2, 2], 2, 1),
            "never idle" => ([2, 1], 2, 0),
            "raised" => ([1, 1], 2, 0),
            "lowered" => ([1, 1], 2, 1),
            "ends" => ([1, 1], 2, 0),
            "large" => ([2, 1], 2, 1),
            "raised alone" | "large raised" => ([2, 1], 2, 0),
            "large lowered" | "large ends" => ([2, 1], 1, 1),
            other => unreachable!("no world is called {other}"),
        };
        let mut world = FoldWorld::new(rule, rows, last, lateness);
        world.alone = shape.ends_with("alone");
        world.idleness = shape != "never idle";
        world.ends = shape.ends_with("ends");
        world.replan = match shape {
            "raised" | "raised alone" | "large raised" => Some(1),
            "lowered" | "large lowered" => Some(0),
            _ => None,
        };
        world
    };
    let rows: Vec<(&'static str, fold::Rule, Option<&'static str>)> = vec![
        ("two workers", Sound, None),
        ("lateness", Sound, None),
        ("alone", Sound, None),
        ("never idle", Sound, None),
        ("raised", Sound, None),
        ("lowered", Sound, None),
        ("ends", Sound, None),
        ("large", Sound, None),
        ("large raised", Sound, None),
        ("large lowered", Sound, None),
        ("large ends", Sound, None),
        ("alone", ClaimCarriedOver, MADE_LATE),
        ("two workers", ClaimFromSilence, MADE_LATE),
        ("two workers", UnseenDoesNotHold, MADE_LATE),
        ("two workers", BoundIsWatermark, STARVES),
        ("two workers", BoundOfAll, STARVES),
        ("two workers", AnyWatermark, I6),
        ("never idle", AnyWatermark, I6),
        ("never idle", NoJudgeLater, I6),
        ("never idle", JudgeAtBegin, I6),
        ("never idle", JudgeAfter, I6),
        ("alone", DropFirst, I2),
        ("alone", NoCorrections, I2),
        ("two workers", WatermarkFalls, I6),
        ("raised alone", HorizonFalls, I2),
        ("lowered", AnyPlan, I6),
    ];
    rows.into_iter().map(|(shape, rule, breaks)| case(format!("fold {shape} {rule:?}"), breaks, move || world(shape, rule)).large_if(shape.starts_with("large"))).collect()
}

/// Tables, and what the log keeps for them.
pub fn table() -> Vec<Case> {
    use table::Rule::*;
    const I2: Option<&str> = Some("I2");
    const I7: Option<&str> = Some("I7");
    const BELOW: Option<&str> = Some("a commit landed on a table that was set back");
    const ICEBERG: &[Format] = &[Format::Iceberg];
    const DELTA: &[Format] = &[Format::Delta];
    const BOTH: &[Format] = &[Format::Iceberg, Format::Delta];
    let none = table::Budget::default();
    let races = table::Budget { lost: 1, foreign: 1, expiries: 1, ..none };
    let back = table::Budget { lost: 1, foreign: 1, rollbacks: 1, ..none };
    let gone = table::Budget { foreign: 2, expiries: 1, rollbacks: 1, ..none };
    let kept = table::Budget { checkpoints: 2, ..none };
    let rows: Vec<(&'static str, &'static [Format], table::Rule, table::Budget, Option<&'static str>)> = vec![
        ("races iceberg", ICEBERG, Sound, races, None),
        ("races delta", DELTA, Sound, races, None),
        ("set back iceberg", ICEBERG, Sound, back, None),
        ("set back delta", DELTA, Sound, back, None),
        ("expired iceberg", ICEBERG, Sound, gone, None),
        ("expired delta", DELTA, Sound, gone, None),
        ("two formats", BOTH, Sound, kept, None),
        ("large races iceberg", ICEBERG, Sound, table::Budget { lost: 2, ..races }, None),
        ("large races delta", DELTA, Sound, table::Budget { lost: 2, ..races }, None),
        ("large two formats", BOTH, Sound, table::Budget { lost: 1, ..kept }, None),
        ("races iceberg", ICEBERG, NoBase, races, I2),
        ("races delta", DELTA, NoBase, races, I2),
        ("races iceberg", ICEBERG, RebaseUnread, races, I2),
        ("races delta", DELTA, RebaseUnread, races, I2),
        ("races iceberg", ICEBERG, ResendOnNewBase, races, I2),
        ("races delta", DELTA, ResendOnNewBase, races, I2),
        ("races iceberg", ICEBERG, PartTwice, races, I2),
        ("races delta", DELTA, PartTwice, races, I2),
        ("races iceberg", ICEBERG, StampedRetained, races, Some("a table that nobody set back is refused")),
        ("set back iceberg", ICEBERG, BaseIsHead, back, BELOW),
        ("set back iceberg", ICEBERG, IgnoreRollback, back, BELOW),
        ("set back delta", DELTA, IgnoreRollback, back, BELOW),
        ("two formats", BOTH, CheckpointIgnoresStamps, kept, I7),
        ("two formats", BOTH, CheckpointOfFastest, kept, I7),
        ("two formats", BOTH, CheckpointAsOfItself, kept, I7),
        ("two formats", BOTH, MergeAbove, kept, I7),
        ("two formats", BOTH, MergeMiddle, kept, I7),
    ];
    let named = |(what, formats, rule, budget, breaks): (&str, _, table::Rule, _, _)| case(format!("table {what} {rule:?}"), breaks, move || TableWorld { rule, formats, budget }).large_if(what.starts_with("large"));
    rows.into_iter().map(named).collect()
}
