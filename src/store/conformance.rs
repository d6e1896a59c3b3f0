//! What the log, the committers and the readers rely on in an object store, as one suite: every
//! store that ships is held to it, and every double of one that tests use, while it tells the truth:
//! the doubles beside what they are for.

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::collections::BTreeSet;
use std::sync::Arc;

const RACERS: usize = 12;

fn at(path: &str) -> Path {
    Path::parse(path).unwrap()
}

async fn create(store: &Arc<dyn ObjectStore>, path: &Path, body: impl Into<PutPayload>) -> Result<(), Error> {
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    store.put_opts(path, body.into(), options).await.map(|_| ())
}

async fn read(store: &Arc<dyn ObjectStore>, path: &Path) -> String {
    let bytes = store.get(path).await.unwrap_or_else(|e| panic!("{store}: {path}: {e}")).bytes().await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn listed(store: &Arc<dyn ObjectStore>, prefix: Option<&Path>) -> BTreeSet<String> {
    let found: Vec<ObjectMeta> = store.list(prefix).try_collect().await.unwrap();
    let names: BTreeSet<String> = found.iter().map(|m| m.location.to_string()).collect();
    assert_eq!(names.len(), found.len(), "{store}: an object was listed twice");
    names
}

/// Runs the whole suite on an empty store, and leaves it empty.
///
/// # Panics
/// Where the store does not do what the code relies on.
pub(crate) async fn holds(store: Arc<dyn ObjectStore>) {
    assert!(listed(&store, None).await.is_empty(), "{store}: the suite needs an empty store");
    one_of_several_racers_creates(&store).await;
    a_taken_name_stays_what_it_is(&store).await;
    reads_see_every_finished_write(&store).await;
    ranges_are_what_they_say(&store).await;
    listings_are_whole_and_of_their_folder(&store).await;
    any_name_that_a_table_can_have(&store).await;
    let left: Vec<Path> = store.list(None).map_ok(|m| m.location).try_collect().await.unwrap();
    for path in left {
        store.delete(&path).await.unwrap();
    }
}

async fn one_of_several_racers_creates(store: &Arc<dyn ObjectStore>) {
    for round in 0..10 {
        let path = at(&format!("race/{round:020}.json"));
        let racers: Vec<_> = (0..RACERS)
            .map(|n| {
                let (store, path) = (store.clone(), path.clone());
                tokio::spawn(async move { create(&store, &path, format!("racer {n}")).await })
            })
            .collect();
        let mut won = vec![];
        for (n, racer) in racers.into_iter().enumerate() {
            match racer.await.unwrap() {
                Ok(()) => won.push(n),
                Err(Error::AlreadyExists { .. }) => {}
                Err(e) => panic!("{store}: a create that lost said: {e}"),
            }
        }
        assert_eq!(won.len(), 1, "{store}: {won:?} all created {path}");
        assert_eq!(read(store, &path).await, format!("racer {}", won[0]), "{store}: what the winner wrote is not there");
    }
}

async fn a_taken_name_stays_what_it_is(store: &Arc<dyn ObjectStore>) {
    let path = at("taken/name");
    create(store, &path, "first").await.unwrap();
    for again in ["first", "second", ""] {
        let answer = create(store, &path, again).await;
        assert!(matches!(answer, Err(Error::AlreadyExists { .. })), "{store}: created twice: {answer:?}");
        assert_eq!(read(store, &path).await, "first", "{store}");
    }
    // A name that was freed can be taken again: that truncation frees names is part of the protocol.
    store.delete(&path).await.unwrap();
    create(store, &path, "anew").await.unwrap();
    assert_eq!(read(store, &path).await, "anew", "{store}");
}

async fn reads_see_every_finished_write(store: &Arc<dyn ObjectStore>) {
    let path = at("seen/by/all");
    let missing = |answer: Result<(), Error>| assert!(matches!(answer, Err(Error::NotFound { .. })), "{store}: what is not there was answered with {answer:?}");
    missing(store.get(&path).await.map(|_| ()));
    missing(store.head(&path).await.map(|_| ()));
    for body in ["a longer body than the next", "short", "", "longer again, and other"] {
        store.put(&path, body.to_string().into()).await.unwrap();
        assert_eq!(read(store, &path).await, body, "{store}: a put is seen at once, and nothing of the one before is left");
        assert_eq!(store.head(&path).await.unwrap().size, body.len() as u64, "{store}");
        assert!(listed(store, Some(&at("seen"))).await.contains(path.as_ref()), "{store}");
    }
    // Where the store gives etags, another content has another: a table that was made anew is told by it.
    let (before, after) = (store.head(&path).await.unwrap().e_tag, {
        store.put(&path, "now quite another content".into()).await.unwrap();
        store.head(&path).await.unwrap().e_tag
    });
    assert!(before.is_none() || before != after, "{store}: the etag {before:?} stayed");
    let chunks: PutPayload = (0..64).map(|n| bytes::Bytes::from(vec![n as u8; 40_000])).collect();
    store.put(&path, chunks).await.unwrap();
    let whole = store.get(&path).await.unwrap().bytes().await.unwrap();
    assert!(whole.len() == 64 * 40_000 && whole.chunks(40_000).zip(0u8..).all(|(c, n)| c.iter().all(|b| *b == n)), "{store}: a body in parts is put in order");
    store.delete(&path).await.unwrap();
    missing(store.get(&path).await.map(|_| ()));
    assert!(listed(store, Some(&at("seen"))).await.is_empty(), "{store}: a deleted object is still listed");
    // A second delete may say either; nobody may be told of another fault.
    match store.delete(&path).await {
        Ok(()) | Err(Error::NotFound { .. }) => {}
        Err(e) => panic!("{store}: deleting what is gone: {e}"),
    }
}

async fn ranges_are_what_they_say(store: &Arc<dyn ObjectStore>) {
    let path = at("ranges");
    store.put(&path, "0123456789".into()).await.unwrap();
    for (range, expected) in [(0..10, "0123456789"), (0..1, "0"), (9..10, "9"), (3..7, "3456"), (7..100, "789")] {
        assert_eq!(store.get_range(&path, range.clone()).await.unwrap(), expected, "{store}: {range:?}");
    }
    assert!(store.get_range(&path, 11..12).await.is_err(), "{store}: a range behind the end");
    let ranges = store.get_ranges(&path, &[1..3, 8..9, 0..2]).await.unwrap();
    assert_eq!(ranges, ["12", "8", "01"], "{store}");
    let tail = store.get_opts(&path, GetOptions { range: Some(GetRange::Suffix(3)), ..Default::default() }).await.unwrap();
    assert_eq!((tail.range.clone(), tail.meta.size), (7..10, 10), "{store}");
    assert_eq!(tail.bytes().await.unwrap(), "789", "{store}");
}

async fn listings_are_whole_and_of_their_folder(store: &Arc<dyn ObjectStore>) {
    let names: Vec<String> = (0..25).map(|n| format!("list/log/{n:020}.json")).collect();
    for name in names.iter().chain([&"list/log2/x".to_string(), &"list/log/sub/y".to_string(), &"list/lo".to_string()]) {
        store.put(&at(name), "x".into()).await.unwrap();
    }
    let of_log = listed(store, Some(&at("list/log"))).await;
    assert_eq!(of_log.len(), 26, "{store}: a folder's name is no prefix of its neighbour's");
    assert!(names.iter().all(|n| of_log.contains(n)) && of_log.contains("list/log/sub/y"), "{store}");
    let offset: Vec<ObjectMeta> = store.list_with_offset(Some(&at("list/log")), &at(&names[9])).try_collect().await.unwrap();
    let offset: BTreeSet<String> = offset.into_iter().map(|m| m.location.to_string()).collect();
    let expected: BTreeSet<String> = of_log.iter().filter(|n| *n > &names[9]).cloned().collect();
    assert_eq!(offset, expected, "{store}: a listing from an offset begins behind it");
    let level = store.list_with_delimiter(Some(&at("list"))).await.unwrap();
    let folders: BTreeSet<String> = level.common_prefixes.iter().map(Path::to_string).collect();
    assert_eq!(folders, ["list/log", "list/log2"].map(String::from).into(), "{store}");
    assert_eq!(level.objects.iter().map(|m| m.location.as_ref()).collect::<Vec<_>>(), ["list/lo"], "{store}");
    assert!(listed(store, Some(&at("list/nothing"))).await.is_empty(), "{store}");
    assert!(listed(store, Some(&at("list/lo"))).await.is_empty(), "{store}: a prefix is a folder");
}

async fn any_name_that_a_table_can_have(store: &Arc<dyn ObjectStore>) {
    let names = ["names/day=2026-01-31/a b.parquet", "names/k=Zürich/ü.parquet", "names/k=%2F..%2F/x", "names/t=10:00/z+~'!@$&()", "names/雪/❄.json", "names/a#b/c"];
    for (nth, name) in names.iter().enumerate() {
        create(store, &at(name), format!("{nth}")).await.unwrap_or_else(|e| panic!("{store}: {name}: {e}"));
    }
    for (nth, name) in names.iter().enumerate() {
        assert_eq!(read(store, &at(name)).await, nth.to_string(), "{store}: {name}");
    }
    assert_eq!(listed(store, Some(&at("names"))).await, names.iter().map(|n| n.to_string()).collect(), "{store}: names come back as they were given");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local::DurableLocal;
    use object_store::memory::InMemory;
    use std::collections::BTreeMap;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn local_disk() {
        let dir = tempfile::tempdir().unwrap();
        holds(Arc::new(DurableLocal::open(&dir.path().join("a lake")).unwrap())).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memory_which_tests_and_simulation_use() {
        holds(Arc::new(InMemory::new())).await;
    }

    /// Every implementation of a store or a catalog: the file that it is in, its name, and the test that holds it to the suite.
    const HELD: [(&str, &str, &str); 17] = [
        ("commit/delta/tests.rs", "Faulty", "the_faulty_store_is_a_store_until_it_is_told_to_fail"),
        ("commit/iceberg/catalog.rs", "SqliteCatalog", "sqlite"),
        ("epoch/protocol_tests.rs", "Lying", "a_store_that_was_told_no_lie_is_one_like_any_other"),
        ("epoch/protocol_tests.rs", "Unreliable", "a_store_without_faults_is_one_like_any_other"),
        ("maintain/tests.rs", "Lying", "a_store_that_tells_the_truth_is_one_like_any_other"),
        ("model/reader.rs", "Turning", "a_store_that_does_not_turn_is_one_like_any_other"),
        ("read/counting.rs", "Counting", "it_is_a_store_like_any_other"),
        ("simulation/store.rs", "TrueCatalog", "the_true_catalog_holds"),
        ("simulation/store.rs", "WorkerCatalog", "a_catalog_without_faults_holds"),
        ("simulation/store.rs", "WorkerStore", "a_store_without_faults_holds"),
        ("store/local.rs", "DurableLocal", "local_disk"),
        ("store/probe.rs", "Swept", "a_put_that_is_swept_away_at_a_start_is_tried_again"),
        ("store/probe.rs", "Unconditional", "the_conformance_suite_finds_a_store_without_a_conditional_put"),
        ("verify/reach.rs", "Failing", "a_watched_store_is_one_like_any_other"),
        ("verify/reach.rs", "Watched", "a_watched_store_is_one_like_any_other"),
        ("worker/faulty_store_tests.rs", "Faulty", "the_faulty_store_is_a_store_until_it_fails"),
        ("worker/tables_tests.rs", "Life", "the_store_of_a_worker_that_does_not_die_is_one_like_any_other"),
    ];

    /// What passes each call on, and is held as part of whatever is passed on; what nobody ever asks.
    const NOT_HELD: [(&str, &str); 2] = [("store/double.rs", "Double"), ("cli/formats.rs", "NoCatalog")];

    fn sources(folder: &std::path::Path, found: &mut BTreeMap<String, String>, root: &std::path::Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found, root);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.insert(path.strip_prefix(root).unwrap().display().to_string(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// `impl … ObjectStore for Name` and the like.
    fn implements(line: &str) -> Option<&str> {
        let (kind, name) = line.trim().strip_prefix("impl")?.split_once(" for ")?;
        let kind = kind.rsplit([' ', ':']).next()?;
        ["ObjectStore", "Delegating", "Catalog"].contains(&kind).then(|| name.split(|c: char| !c.is_alphanumeric()).next())?
    }

    /// A test's body, up to the next function.
    fn body<'a>(test: &str, texts: impl Iterator<Item = &'a String>) -> Option<&'a str> {
        let begin = format!(" fn {test}(");
        let rest = texts.filter_map(|text| text.split_once(&begin)).map(|(_, rest)| rest).next()?;
        Some(rest.split_once(" fn ").map_or(rest, |(body, _)| body))
    }

    #[test]
    fn every_store_and_every_catalog_is_held_to_its_suite() {
        let (root, mut texts) = (std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), BTreeMap::new());
        sources(&root, &mut texts, &root);
        let found: BTreeSet<(&str, &str)> = texts.iter().flat_map(|(file, text)| text.lines().filter_map(implements).map(|name| (file.as_str(), name))).collect();
        let known: BTreeSet<(&str, &str)> = HELD.iter().map(|(file, name, _)| (*file, *name)).chain(NOT_HELD).collect();
        assert_eq!(found.difference(&known).collect::<Vec<_>>(), Vec::<&(&str, &str)>::new(), "not held to the suite: hold them to it, and name them here");
        assert_eq!(known.difference(&found).collect::<Vec<_>>(), Vec::<&(&str, &str)>::new(), "named here, and not there");
        for (file, name, test) in HELD {
            let of = body(test, texts.values()).unwrap_or_else(|| panic!("{file}, {name}: there is no test {test}"));
            assert!(of.contains("holds("), "{file}, {name}: {test} does not run the suite");
        }
    }
}
