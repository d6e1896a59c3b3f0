//! What commits rely on in a catalog, as one suite: the catalog that ships is held to it, and every
//! double of one that tests use.

use super::{Ambient, Catalog, IcebergFormat};
use crate::commit::iceberg::catalog::CatalogError;
use crate::commit::{Committed, CommitError, Stamp, TableChange, TableFormat};
use crate::pipeline::{ColumnType, TableFormatKind};
use crate::stage::TableSpec;
use crate::stage::layout::assign_field_ids;
use arrow::datatypes::Schema;
use object_store::memory::InMemory;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use uuid::Uuid;

/// What others do at a catalog without asking us.
pub(crate) trait Hands {
    /// As `DROP TABLE` of another engine.
    fn drop_table(&self, namespace: &str, table: &str);

    /// The tables of a namespace, as another engine lists them.
    fn tables(&self, namespace: &str) -> BTreeSet<String>;
}

/// Names that a table or a namespace can have, and pairs of which a careless catalog makes one.
const NAMES: [(&str, &str); 14] = [
    ("names", "plain"),
    ("names", "Plain"),
    ("names", "a b"),
    ("names", "a.b"),
    ("names.a", "b"),
    ("names", "it's"),
    ("names", "\"quoted\""),
    ("names", "100%"),
    ("names", "1_0%"),
    ("names", "Zürich"),
    ("names", "雪❄"),
    ("names", "back\\slash/slash"),
    ("names", "'; DROP TABLE iceberg_tables; --"),
    ("names2", "plain"),
];

/// Runs the whole suite on a catalog without tables.
///
/// # Panics
/// Where the catalog does not do what commits rely on.
pub(crate) async fn holds<C: Catalog + Clone + 'static>(catalog: C, hands: &impl Hands) {
    a_table_is_made_once(&catalog).await;
    only_who_names_the_newest_location_moves_a_table(&catalog).await;
    one_of_two_swappers_of_a_base_wins(&catalog).await;
    one_of_several_creators_wins(&catalog).await;
    a_dropped_table_is_gone_and_its_name_is_free(&catalog, hands).await;
    names_are_told_apart(&catalog, hands).await;
    a_table_made_anew_is_another(&catalog, hands).await;
}

async fn location(catalog: &impl Catalog, namespace: &str, table: &str) -> Option<String> {
    catalog.metadata_location(namespace, table).await.unwrap()
}

async fn a_table_is_made_once(c: &impl Catalog) {
    assert!(!c.name().is_empty() && !c.place().is_empty());
    assert_eq!(location(c, "made", "t").await, None);
    assert!(!c.swap("made", "t", "m0", "m1").await.unwrap(), "a table that is not there was moved");
    assert_eq!(location(c, "made", "t").await, None, "a swap must not make a table");
    assert_eq!(c.create_table("made", "t", "m0").await.unwrap(), "m0");
    for again in ["other", "m0", ""] {
        assert_eq!(c.create_table("made", "t", again).await.unwrap(), "m0", "who comes second is told what there is");
    }
    assert_eq!(location(c, "made", "t").await.as_deref(), Some("m0"));
}

async fn only_who_names_the_newest_location_moves_a_table(c: &impl Catalog) {
    c.create_table("moved", "t", "m0").await.unwrap();
    assert!(c.swap("moved", "t", "m0", "m1").await.unwrap());
    // The same again, an older base, a base that never was, one of which it is a part.
    for (from, to) in [("m0", "m1"), ("m0", "m2"), ("never", "m2"), ("m", "m2"), ("m1 ", "m2"), ("M1", "m2"), ("", "m2")] {
        assert!(!c.swap("moved", "t", from, to).await.unwrap(), "moved from {from:?} though it is at m1");
    }
    assert!(!c.swap("moved", "u", "m1", "m2").await.unwrap(), "another table");
    assert!(!c.swap("other", "t", "m1", "m2").await.unwrap(), "another namespace");
    assert_eq!(location(c, "moved", "t").await.as_deref(), Some("m1"));
    let long = format!("file:///lake/{}", "x".repeat(900));
    assert!(c.swap("moved", "t", "m1", &long).await.unwrap());
    assert!(c.swap("moved", "t", &long, "m2").await.unwrap());
    assert_eq!(location(c, "moved", "t").await.as_deref(), Some("m2"));
}

async fn one_of_two_swappers_of_a_base_wins<C: Catalog + Clone + 'static>(c: &C) {
    c.create_table("raced", "t", "m0").await.unwrap();
    let mut base = "m0".to_string();
    for round in 0..12 {
        let swappers: Vec<_> = (0..2 + round % 3)
            .map(|n| {
                let (c, base, to) = (c.clone(), base.clone(), format!("m{round}-by-{n}"));
                tokio::spawn(async move { c.swap("raced", "t", &base, &to).await.unwrap().then_some(to) })
            })
            .collect();
        let mut won = vec![];
        for swapper in swappers {
            won.extend(swapper.await.unwrap());
        }
        assert_eq!(won.len(), 1, "{won:?} all moved the table from {base}");
        base = won.remove(0);
        assert_eq!(location(c, "raced", "t").await.as_deref(), Some(base.as_str()), "the table is not where the winner moved it");
    }
}

async fn one_of_several_creators_wins<C: Catalog + Clone + 'static>(c: &C) {
    let creators: Vec<_> = (0..6)
        .map(|n| {
            let c = c.clone();
            tokio::spawn(async move { c.create_table("raced", "new", &format!("by-{n}")).await.unwrap() })
        })
        .collect();
    let mut told = BTreeSet::new();
    for creator in creators {
        told.insert(creator.await.unwrap());
    }
    assert_eq!(told.len(), 1, "creators were told of several tables: {told:?}");
    assert_eq!(location(c, "raced", "new").await, told.pop_first());
}

async fn a_dropped_table_is_gone_and_its_name_is_free(c: &impl Catalog, hands: &impl Hands) {
    for table in ["t", "u"] {
        c.create_table("dropped", table, "m0").await.unwrap();
    }
    hands.drop_table("dropped", "t");
    assert_eq!(location(c, "dropped", "t").await, None);
    assert!(!c.swap("dropped", "t", "m0", "m1").await.unwrap(), "a dropped table was moved");
    assert_eq!(location(c, "dropped", "t").await, None, "a dropped table came back");
    assert_eq!(location(c, "dropped", "u").await.as_deref(), Some("m0"), "its neighbour stays");
    assert_eq!(c.create_table("dropped", "t", "n0").await.unwrap(), "n0");
    // Who still works on the one that was dropped does not touch the new one.
    assert!(!c.swap("dropped", "t", "m0", "m1").await.unwrap(), "the new table was moved from the old one's base");
    assert!(c.swap("dropped", "t", "n0", "n1").await.unwrap());
    assert_eq!(hands.tables("dropped"), ["t", "u"].map(String::from).into());
}

async fn names_are_told_apart(c: &impl Catalog, hands: &impl Hands) {
    for (nth, (namespace, table)) in NAMES.iter().enumerate() {
        assert_eq!(c.create_table(namespace, table, &format!("m{nth}")).await.unwrap(), format!("m{nth}"), "{namespace}.{table}");
    }
    for (nth, (namespace, table)) in NAMES.iter().enumerate() {
        assert!(c.swap(namespace, table, &format!("m{nth}"), &format!("n{nth}")).await.unwrap(), "{namespace}.{table}");
    }
    for (nth, (namespace, table)) in NAMES.iter().enumerate() {
        assert_eq!(location(c, namespace, table).await, Some(format!("n{nth}")), "{namespace}.{table}");
    }
    for namespace in ["names", "names.a", "names2", "nam%", "nobody"] {
        let expected: BTreeSet<String> = NAMES.iter().filter(|(n, _)| *n == namespace).map(|(_, t)| t.to_string()).collect();
        assert_eq!(hands.tables(namespace), expected, "the tables of {namespace}");
    }
}

fn birth() -> Stamp {
    Stamp { log: Uuid::from_u128(7), entry: 0, offsets: BTreeMap::new() }
}

/// The name and the fields stay, the uuid does not: whoever knows the old one is told, and an open
/// handle commits nothing.
async fn a_table_made_anew_is_another<C: Catalog + Clone + 'static>(c: &C, hands: &impl Hands) {
    let store = Arc::new(InMemory::new());
    let ids = Arc::new(AtomicU64::new(1));
    let root = url::Url::parse("file:///lake/").unwrap();
    let format = || {
        let ids = ids.clone();
        let ambient = Ambient { now_ms: Arc::new(|| 1_767_225_600_000), new_id: Arc::new(move || Uuid::from_u64_pair(ids.fetch_add(1, SeqCst) << 40, 9)) };
        IcebergFormat::new(store.clone(), &root, c.clone(), "anew", "anew", ambient)
    };
    let schema = Schema::new(vec![ColumnType::Int64.field("id", false)]);
    let spec = Arc::new(TableSpec {
        name: "t".into(),
        schema: assign_field_ids(&schema, None).unwrap(),
        key: vec![],
        formats: vec![TableFormatKind::Iceberg],
        partition_by: vec![],
        properties: Default::default(),
        comment: None,
    });
    let mut before = format().open_or_create(spec.clone(), &birth()).await.unwrap();
    let old = before.load().await.unwrap().table_uuid;
    hands.drop_table("anew", "t");
    let mut after = format().open_or_create(spec.clone(), &birth()).await.unwrap();
    let new = after.load().await.unwrap().table_uuid;
    assert_ne!(old, new);
    let change = |entry| TableChange { add: vec![], delete: BTreeMap::new(), stamp: Stamp { entry, ..birth() }, spec: spec.clone(), attempt: Uuid::from_u128(entry.into()) };
    assert!(matches!(before.commit(change(1)).await.unwrap(), Committed::Moved), "a handle of the dropped table committed to the new one");
    let knows = format();
    knows.expect_uuid("t", &old);
    match knows.open(spec.clone()).await {
        Err(CommitError::Refused(why)) => assert!(why.contains("was dropped and made anew") && why.contains(&old), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{old} was dropped, {new} was opened for it"),
    }
    assert!(matches!(after.commit(change(2)).await.unwrap(), Committed::Done(_)));
    assert_eq!(after.load().await.unwrap().stamp.entry, 2);
}

/// Answers of a catalog that fails and forgets, by kind.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub moved: usize,
    pub refused: usize,
    pub not_done: usize,
    pub unknown_and_done: usize,
    pub unknown_and_not_done: usize,
}

/// Whatever a catalog that fails says to one who moves a table on and on, it is so: what it says was
/// done was done, what it says was not never is, and only after [`CatalogError::AnswerLost`] both can be.
/// `truth` never fails; `bad_luck` comes before each change.
///
/// # Panics
/// Where it said what was not so.
pub(crate) async fn what_it_says_is_so(catalog: &impl Catalog, truth: &impl Catalog, hands: &impl Hands, bad_luck: impl Fn(usize)) -> Told {
    let mut told = Told::default();
    // Locations that nobody may ever see, and those of which nobody knows.
    let (mut never, mut unknown, mut seen) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut stale = "none".to_string();
    for nth in 0..600 {
        bad_luck(nth);
        let to = format!("m{nth}");
        let Some(from) = location(truth, "told", "t").await else {
            match catalog.create_table("told", "t", &to).await {
                Ok(now) => assert_eq!(location(truth, "told", "t").await, Some(now), "a table was said to be made"),
                Err(CatalogError::AnswerLost { .. }) => _ = unknown.insert(to),
                Err(_) => _ = never.insert(to),
            }
            continue;
        };
        seen.insert(from.clone());
        if nth % 97 == 96 {
            hands.drop_table("told", "t");
            assert_eq!(location(truth, "told", "t").await, None);
            continue;
        }
        let base = if nth % 7 == 6 { &stale } else { &from };
        match catalog.swap("told", "t", base, &to).await {
            Ok(true) => {
                told.moved += 1;
                assert_eq!(location(truth, "told", "t").await.as_deref(), Some(to.as_str()), "a table was said to be moved");
            }
            Ok(false) => {
                told.refused += 1;
                assert_ne!(location(truth, "told", "t").await.as_deref(), Some(base.as_str()), "a swap from where the table is was refused");
                never.insert(to);
            }
            Err(CatalogError::AnswerLost { .. }) => _ = unknown.insert(to),
            Err(CatalogError::Busy { .. } | CatalogError::Unavailable { .. } | CatalogError::Damaged { .. }) => {
                told.not_done += 1;
                never.insert(to);
            }
        }
        stale = from;
    }
    // What is under way arrives.
    tokio::time::sleep(Duration::from_secs(20)).await;
    seen.extend(location(truth, "told", "t").await);
    let wrong: Vec<_> = seen.intersection(&never).collect();
    assert!(wrong.is_empty(), "said not to have been done, and done: {wrong:?}");
    told.unknown_and_done = unknown.intersection(&seen).count();
    told.unknown_and_not_done = unknown.len() - told.unknown_and_done;
    told
}

mod shipped {
    use super::*;
    use crate::commit::iceberg::SqliteCatalog;
    use rusqlite::{Connection, params};

    struct Elsewhere(SqliteCatalog);

    impl Elsewhere {
        fn connect(&self) -> Connection {
            Connection::open(self.0.path()).unwrap()
        }
    }

    impl Hands for Elsewhere {
        fn drop_table(&self, namespace: &str, table: &str) {
            let sql = "DELETE FROM iceberg_tables WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3";
            assert_eq!(self.connect().execute(sql, params![self.0.name(), namespace, table]).unwrap(), 1);
        }

        fn tables(&self, namespace: &str) -> BTreeSet<String> {
            // As PyIceberg asks.
            let connection = self.connect();
            let sql = "SELECT table_name FROM iceberg_tables WHERE catalog_name = ?1 AND table_namespace = ?2 AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)";
            let mut rows = connection.prepare(sql).unwrap();
            rows.query_map(params![self.0.name(), namespace], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        let dir = tempfile::tempdir().unwrap();
        // A second catalog of another name in the file is another catalog.
        let beside = SqliteCatalog::open(&dir.path().join("catalog.db"), "beside").await.unwrap();
        for (namespace, table) in NAMES {
            beside.create_table(namespace, table, "elsewhere").await.unwrap();
        }
        let catalog = SqliteCatalog::open(&dir.path().join("catalog.db"), "millpond").await.unwrap();
        holds(catalog.clone(), &Elsewhere(catalog)).await;
        for (namespace, table) in NAMES {
            assert_eq!(location(&beside, namespace, table).await.as_deref(), Some("elsewhere"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sqlite_whose_answers_are_lost() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = SqliteCatalog::open(&dir.path().join("catalog.db"), "millpond").await.unwrap();
        let bad_luck = |nth| {
            if nth % 5 == 3 {
                catalog.lose_next_answer();
            }
        };
        let told = what_it_says_is_so(&catalog, &catalog, &Elsewhere(catalog.clone()), bad_luck).await;
        assert!(told.moved > 100 && told.refused > 20 && told.unknown_and_done > 20 && told.unknown_and_not_done > 5, "{told:?}");
    }
}
