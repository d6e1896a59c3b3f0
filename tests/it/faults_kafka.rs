//! What users of other systems were bitten by in Kafka, each as a test that is named after it.
//! Elsewhere: FAULTS 23 in `two_workers` and `kafka_source::two_workers_share_the_partitions`, 24 and
//! 25 in `kafka_source`, 28 in `resources` and `kafka_source`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::kafka::Broker;
use crate::support::millpond::{Ended, Pond, Running, texts};
use crate::support::secured::Secured;

const PATIENCE: Duration = Duration::from_secs(60);

/// Files below `dir` that hold `text`.
fn files_with(dir: &std::path::Path, text: &str, found: &mut Vec<std::path::PathBuf>) {
    for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            files_with(&path, text, found);
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|w| w == text.as_bytes()) {
            found.push(path);
        }
    }
}

/// A plain table of one topic, with these librdkafka options.
fn plain(name: &str, brokers: &str, topic: &str, options: &str) -> String {
    format!(
        "pipeline: {name}
sources:
  events:
    kafka: {{brokers: '{brokers}', topic: {topic}, start: earliest, options: {{{options}}}}}
    format: json
    columns: {{id: int64}}
tables:
  ids: {{sql: \"select id from events\"}}
lake: {{root: ./lake}}
epoch: {{every: 200ms}}
"
    )
}

fn refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, 75, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "`{word}` is not in {ended:?}");
    }
    assert!(!ended.stderr.contains("secret"), "a password is shown: {ended:?}");
}

/// FAULTS 29: each kind of login, and each way in which one fails, on a broker that has them all.
#[test]
fn f29_a_failed_login_or_acl_names_principal_and_resource() {
    let secured = Secured::start(&[("plain", "plain-secret")]);
    let broker = &secured.broker;
    secured.scram_user("scram", "scram-secret");
    let topic = "guarded";
    broker.create_topic(topic, 2);
    for id in 0..20 {
        broker.produce(topic, id % 2, "k", &format!("{{\"id\":{id}}}"), 0);
    }
    for (principal, group) in [("User:scram", "millpond-scram-"), ("User:plain", "millpond-plain-"), ("User:CN=reader", "millpond-tls-")] {
        secured.allow_topic(principal, topic);
        secured.allow_group(principal, group);
    }
    secured.scram_user("nobody", "nobody-secret");
    secured.scram_user("groupless", "groupless-secret");
    secured.allow_topic("User:groupless", topic);

    let file = |name: &str| secured.tls(name).display().to_string();
    let scram = |user: &str, password: &str| format!("security.protocol: sasl_plaintext, sasl.mechanisms: SCRAM-SHA-256, sasl.username: {user}, sasl.password: {password}");
    let over_tls = format!("security.protocol: sasl_ssl, sasl.mechanisms: PLAIN, sasl.username: plain, sasl.password: \"${{PASSWORD}}\", ssl.ca.location: '{}'", file("ca.pem"));
    let certificate = format!("ssl.certificate.location: '{}', ssl.key.location: '{}'", file("reader.pem"), file("reader.key"));
    let mutual = |ca: &str| format!("security.protocol: ssl, ssl.ca.location: '{}', {certificate}", file(ca));
    let bare = format!("security.protocol: ssl, ssl.ca.location: '{}'", file("ca.pem"));

    let run = |name: &str, brokers: &str, options: &str| {
        let pond = Pond::new(&plain(name, brokers, topic, options));
        let started = Instant::now();
        let ended = pond.start_with(&["run", "pipeline.yaml", "--until-end"], &[("PASSWORD", "plain-secret")]).wait();
        (pond, ended, started.elapsed())
    };
    let works = |name: &str, brokers: &str, options: &str| {
        let (pond, ended, _) = run(name, brokers, options);
        assert_eq!(ended.code, 0, "{name}: {ended:?}");
        let shown = pond.start_with(&["query", "pipeline.yaml", "select sum(id) as ids from ids", "--json"], &[("PASSWORD", "plain-secret")]).wait();
        assert_eq!(shown.stdout.trim(), "{\"ids\":190}", "{name}: {shown:?}");
        // Neither the log, with the plan in it, nor a table, nor what was said keeps a password.
        let mut holding = vec![];
        files_with(pond.path(), "-secret", &mut holding);
        holding.retain(|p| !p.ends_with("pipeline.yaml"));
        assert!(holding.is_empty(), "{name}: a password stands in {holding:?}");
    };
    let fails = |name: &str, brokers: &str, options: &str, words: &[&str]| {
        let (_, ended, took) = run(name, brokers, options);
        refused(&ended, words);
        assert!(took < Duration::from_secs(90), "{name}: refused only after {took:?}");
    };
    let (sasl, tls, both) = (secured.sasl_plaintext(), secured.ssl(), secured.sasl_ssl());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            works("scram", &sasl, &scram("scram", "scram-secret"));
            fails("wrong", &sasl, &scram("scram", "wrong-secret"), &["refused the login of principal `User:scram`", "sasl."]);
        });
        scope.spawn(|| {
            works("plain", &both, &over_tls);
            fails("unknown", &sasl, &scram("stranger", "any-secret"), &["refused the login of principal `User:stranger`"]);
        });
        scope.spawn(|| {
            works("tls", &tls, &mutual("ca.pem"));
            fails("other-ca", &tls, &mutual("other-ca.pem"), &["no TLS connection", "reader.pem", "ssl."]);
        });
        scope.spawn(|| {
            fails("no-topic", &sasl, &scram("nobody", "nobody-secret"), &["principal `User:nobody`", "Topic:guarded", "Read and Describe"]);
            fails("no-group", &sasl, &scram("groupless", "groupless-secret"), &["principal `User:groupless`", "Group:millpond-no-group-events"]);
            fails("no-certificate", &tls, &bare, &["no TLS connection", "ssl."]);
        });
    });
}

/// Minutes counted and every row kept, with partitions that are idle soon.
fn windowed(name: &str, broker: &Broker, topic: &str) -> String {
    format!(
        "pipeline: {name}
sources:
  events:
    kafka: {{brokers: '{}', topic: {topic}, start: earliest, options: {{topic.metadata.refresh.interval.ms: 500}}}}
    format: json
    columns: {{id: int64, at: timestamp}}
    watermark: {{column: at, idle_after: 1s}}
tables:
  minutes:
    sql: \"select window_start, count(*) as n from tumble(events, interval '1 minute') group by window_start\"
    key: [window_start]
  ids: {{sql: \"select id from events\"}}
lake: {{root: ./lake}}
epoch: {{every: 200ms}}
commit: {{every: 400ms}}
",
        broker.address()
    )
}

fn event(id: i64, minute: &str) -> String {
    format!("{{\"id\":{id},\"at\":\"2026-01-31T{minute}:00Z\"}}")
}

/// The one number of a query while a worker runs, once the table is there.
fn number(pond: &Pond, sql: &str) -> Option<i64> {
    let ended = pond.millpond(&["query", "pipeline.yaml", sql, "--json"]);
    serde_json::from_str::<Value>(ended.stdout.lines().next()?).ok()?.as_object()?.values().next()?.as_i64()
}

fn until(what: &str, running: &Running, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}: {}", running.stderr());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// FAULTS 26: a producer leaves a transaction open. Nothing behind it can be read on that
/// partition: a person is told, the other partitions go on, and since what waits there is no
/// silence, none of it is late when it comes.
#[test]
fn f26_a_hanging_transaction_is_told_and_holds_only_its_partition() {
    let broker = Broker::start();
    let topic = "hanging";
    broker.create_topic(topic, 2);
    broker.produce(topic, 0, "k", &event(1, "10:00"), 0);
    broker.produce(topic, 1, "k", &event(2, "10:00"), 0);
    let pond = Pond::new(&windowed("hanging", broker, topic));
    let running = pond.start(&["run", "pipeline.yaml"]);
    until("the first rows", &running, || number(&pond, "select count(*) from ids") == Some(2));

    let open = broker.transaction("left-open", topic, 0, &[&event(3, "10:05")]);
    // Somebody else's row, behind the open transaction.
    broker.produce(topic, 0, "k", &event(4, "10:06"), 0);
    broker.produce(topic, 1, "k", &event(5, "10:30"), 0);
    let alert = "alert: source events partition 0: an open transaction has held back everything from offset 1 of topic `hanging`";
    until("the alert", &running, || running.stderr().contains(alert));
    assert!(running.stderr().contains("--start-offset 1"), "{}", running.stderr());
    until("the other partition goes on", &running, || number(&pond, "select count(*) from ids where id = 5") == Some(1));
    // For longer than `idle_after`: a partition with rows that wait is not taken for idle.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(number(&pond, "select count(*) from ids"), Some(3));
    open.commit();
    until("what waited", &running, || number(&pond, "select count(*) from ids") == Some(5));
    assert!(running.stderr().contains("source events partition 0: the alert is over"), "{}", running.stderr());
    broker.produce(topic, 0, "k", &event(6, "10:30"), 0);
    until("windows close", &running, || number(&pond, "select count(*) from minutes") == Some(3));
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
    assert_eq!(pond.rows("hanging", "minutes__late"), Vec::<Value>::new());
    assert_eq!(texts(&pond.rows("hanging", "minutes"), &["window_start", "n"]), ["10:00 2", "10:05 1", "10:06 1"]);
}

/// FAULTS 27: partitions are added while a worker runs and while none does. Each is read from its
/// beginning, also what was written to it before anybody noticed.
#[test]
fn f27_partitions_added_later_are_read_from_their_beginning() {
    let broker = Broker::start();
    let topic = "growing";
    broker.create_topic(topic, 1);
    broker.produce(topic, 0, "k", &event(0, "10:00"), 0);
    let pond = Pond::new(&windowed("growing", broker, topic).replace("start: earliest", "start: latest"));
    let running = pond.start(&["run", "pipeline.yaml"]);
    until("it runs", &running, || pond.millpond(&["status", "pipeline.yaml", "--json"]).stdout.contains("\"offset\":1"));
    broker.add_partitions(topic, 3);
    broker.produce(topic, 2, "k", &event(20, "10:00"), 0);
    broker.produce(topic, 0, "k", &event(1, "10:00"), 0);
    until("the new partition's first record", &running, || number(&pond, "select sum(id) from ids") == Some(21));
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
    broker.add_partitions(topic, 4);
    broker.produce(topic, 3, "k", &event(300, "10:00"), 0);
    broker.produce(topic, 1, "k", &event(4000, "10:00"), 0);
    pond.until_end();
    // `latest` was for the partition that was there at the start: record 0 is not wanted, all others are.
    assert_eq!(pond.number("select sum(id) from ids"), 4321);
    assert_eq!(pond.number("select count(*) from ids"), 4);
}

/// FAULTS 30: a record over `max_record_bytes`, and one of hundreds of megabytes that its producer
/// compressed to almost nothing: dead letters with their place and size, and the run goes on in bounded memory.
#[test]
fn f30_oversized_records_and_decompression_bombs_are_dead_letters() {
    let broker = Broker::own();
    let topic = "oversized";
    broker.create_topic_with(topic, 1, &[("max.message.bytes", "16777216")]);
    let pond = Pond::new(&plain("oversized", &broker.address(), topic, "").replace("    columns:", "    max_record_bytes: 64KiB\n    columns:"));
    broker.produce(topic, 0, "k", "{\"id\":1}", 0);
    broker.produce(topic, 0, "k", &format!("{{\"id\":2,\"pad\":\"{}\"}}", "x".repeat(100_000)), 0);
    broker.produce(topic, 0, "k", "{\"id\":3}", 0);
    for codec in ["gzip", "zstd", "lz4"] {
        broker.produce_bomb(topic, 0, codec, 60 << 20);
        broker.produce(topic, 0, "k", "{\"id\":4}", 0);
    }
    let summary = pond.until_end();
    assert_eq!((&summary["records"], &summary["dead"]), (&json!(9), &json!(4)), "{summary}");
    let mut reasons: Vec<String> = pond.rows("oversized", "events__dead").iter().map(|r| format!("{} {}", r["_offset"], r["_reason"].as_str().unwrap_or("none"))).collect();
    reasons.sort();
    assert!(reasons.iter().zip([1, 3, 5, 7]).all(|(r, offset)| r.starts_with(&format!("{offset} ")) && r.contains("max_record_bytes")), "{reasons:?}");
    assert_eq!(pond.number("select sum(id) from ids"), 16);
    assert_eq!(pond.number("select max(octet_length(cast(_value as varchar))) from events__dead where _offset = 1"), 100_017, "what memory holds is kept");

    // One that decompresses to more than any answer may have: told with its place and the remedy.
    let topic = "bomb";
    broker.create_topic_with(topic, 2, &[("max.message.bytes", "16777216")]);
    broker.produce_bomb(topic, 0, "zstd", 120 << 20);
    broker.produce(topic, 0, "k", "{\"id\":1}", 0);
    broker.produce(topic, 1, "k", "{\"id\":2}", 0);
    let pond = Pond::new(&plain("bomb", &broker.address(), topic, ""));
    let running = pond.start(&["run", "pipeline.yaml"]);
    until("the bomb is told of", &running, || running.stderr().contains("partition 0 of topic `bomb`") && running.stderr().contains("receive.message.max.bytes"));
    until("the other partition goes on", &running, || number(&pond, "select sum(id) from ids") == Some(2));
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
    pond.rewrite(&plain("bomb", &broker.address(), topic, "receive.message.max.bytes: 1000000000"));
    let summary = pond.until_end();
    assert_eq!(summary["dead"], 1, "{summary}");
    assert_eq!(pond.number("select sum(id) from ids"), 3);
}
