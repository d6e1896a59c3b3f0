use super::*;
use crate::pipeline::{Column, ColumnType, FileInput, Format, From as FieldFrom, Input, Segment, TableFormatKind, Watermark};

fn column(name: &str, ty: ColumnType) -> Column {
    Column { name: name.into(), ty, nullable: true, from: FieldFrom::Path(vec![Segment::Field(name.into())]) }
}

pub(crate) fn events() -> SourceSpec {
    SourceSpec {
        name: "events".into(),
        input: Input::File(FileInput { path: "x".into() }),
        format: Format::Json,
        columns: vec![
            column("user_id", ColumnType::String),
            column("event_time", ColumnType::Timestamp(None)),
            column("amount", ColumnType::Decimal(12, 2)),
            column("wide", ColumnType::Decimal(38, 4)),
            column("i", ColumnType::Int64),
            column("n", ColumnType::Int32),
            column("x", ColumnType::Float64),
            column("b", ColumnType::Bool),
            column("cityName", ColumnType::String),
            column("id", ColumnType::Uuid),
        ],
        watermark: Some(Watermark { column: "event_time".into(), delay_us: 0, idle_after_us: None, max_ahead_us: 0 }),
        max_record_bytes: 1 << 20,
        max_depth: 64,
    }
}

pub(crate) fn decl(sql: &str, key: Option<&[&str]>) -> TableDecl {
    TableDecl {
        name: "t".into(),
        sql: sql.into(),
        key: key.map(|k| k.iter().map(|s| s.to_string()).collect()),
        allowed_lateness_us: 0,
        emit: Emit::OnClose,
        formats: vec![TableFormatKind::Iceberg],
        partition_by: vec![],
        properties: Default::default(),
        comment: None,
        sql_at: (1, 1),
    }
}

fn planned(sql: &str, key: Option<&[&str]>) -> Result<TablePlan, SqlError> {
    plan(&decl(sql, key), &[events()])
}

const T: &str = "tumble(events, interval '5 minutes')";

#[test]
fn the_plan_scans_what_it_reads_and_splits_at_the_aggregate() {
    let p = planned(
        &format!("select window_start, user_id, sum(amount) as sum_amount, count(*) as n from {T} where amount > 0 group by window_start, user_id having count(*) > 1"),
        Some(&["window_start", "user_id"]),
    )
    .unwrap();
    assert_eq!(p.scan, ["user_id", "event_time", "amount"]);
    assert_eq!(p.time, Some(1));
    assert_eq!(p.window.unwrap().size_us, 300_000_000);
    assert_eq!(p.key, ["window_start", "user_id"]);
    assert!(p.upsert);
    let text = p.describe();
    assert!(text.contains("aggregate sum(decimal(12,2)) as decimal(38,2)\n"), "{text}");
    assert!(text.contains("column sum_amount: decimal(22,2)\n"), "{text}");
    let names: Vec<&str> = p.output.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["window_start", "user_id", "sum_amount", "n"]);
    assert!(!p.output.field(0).is_nullable());
}

#[test]
fn the_description_does_not_depend_on_how_the_sql_is_written() {
    let a = planned(&format!("select window_start, sum(i) as s from {T} where i > 1 group by window_start"), None).unwrap();
    let b = planned("SELECT e.window_start, SUM(e.I) s FROM TUMBLE(Events, interval '300 seconds') AS e WHERE i > 2 and i < 7 GROUP BY 1", None).unwrap();
    assert_eq!(a.describe(), b.describe());
    assert_eq!(b.output.fields().last().unwrap().name(), OP);
}

#[test]
fn unquoted_names_find_columns_whatever_their_case() {
    let p = planned("select CITYNAME, events.User_Id as u from EVENTS", None).unwrap();
    let names: Vec<&str> = p.output.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["cityName", "u"]);
    assert_eq!(p.scan, ["user_id", "cityName"]);
    let e = planned("select \"CITYNAME\" from events", None).unwrap_err();
    assert!(e.to_string().contains("CITYNAME") && e.to_string().contains("did you mean cityName"), "{e}");
    let mut source = events();
    source.columns.push(column("CityName", ColumnType::String));
    let e = plan(&decl("select cityname from events", None), &[source.clone()]).unwrap_err();
    assert!(e.message.contains("may be any of"), "{e}");
    assert!(plan(&decl("select CityName from events", None), &[source]).is_ok());
}

/// The parser takes `user` for a function, as in PostgreSQL.
#[test]
fn a_column_may_be_called_as_a_function_without_brackets_is() {
    let mut source = events();
    source.columns.push(column("user", ColumnType::String));
    let sql = format!("select window_start, user, count(*) as n from {T} where User <> 'x' group by window_start, user having min(user) > 'a'");
    let p = plan(&decl(&sql, Some(&["window_start", "user"])), &[source.clone()]).unwrap();
    let names: Vec<&str> = p.output.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["window_start", "user", "n"]);
    assert_eq!(plan(&decl("select user from events", None), &[source]).unwrap().scan, ["user"]);
    let e = planned("select user from events", None).unwrap_err();
    assert!(e.message.contains("no column is named user"), "{e}");
    let e = planned("select current_timestamp as t from events", None).unwrap_err();
    assert!(e.message.contains("another answer each time"), "{e}");
}

#[test]
fn a_uuid_handed_through_stays_one() {
    let p = planned("select id, upper(cityName) as c from events", None).unwrap();
    assert_eq!(p.output.field(0).metadata().get(crate::pipeline::TYPE_KEY).map(String::as_str), Some("uuid"));
}

#[test]
fn uuids_are_compared_with_texts_and_cast_to_them() {
    use arrow::array::{Array, FixedSizeBinaryArray};
    let bytes = [[0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17, 0x40, 0x00], [0xff; 16]];
    let batch = |plan: &TablePlan| {
        let ids = FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes.iter().map(Some).chain([None]), 16).unwrap();
        RecordBatch::try_new(plan.below_input(), vec![Arc::new(ids)]).unwrap()
    };
    let text = "123E4567-e89b-12d3-a456-426614174000";
    for (condition, rows) in [
        (format!("id = '{text}'"), vec![0]),
        (format!("'{text}' <> id"), vec![1]),
        (format!("id > '{text}'"), vec![1]),
        (format!("id in ('{text}', 'ffffffff-ffff-ffff-ffff-ffffffffffff')"), vec![0, 1]),
        (format!("id between '00000000-0000-0000-0000-000000000000' and '{text}'"), vec![0]),
        (format!("events.Id is distinct from '{text}'"), vec![1, 2]),
        (format!("coalesce(id, id) = '{text}'"), vec![0]),
        (format!("cast(id as varchar) = '{}'", text.to_lowercase()), vec![0]),
        ("id is null".into(), vec![2]),
    ] {
        let p = Arc::new(planned(&format!("select id from events where {condition}"), None).unwrap_or_else(|e| panic!("{condition}: {e}")));
        let done = crate::transform::Transform::new(p.clone()).apply(&batch(&p)).unwrap();
        assert_eq!(done.rows, rows, "{condition}");
    }
    let p = Arc::new(planned("select cast(id as varchar) as t, id::text as u, coalesce(id, id) as c from events", None).unwrap());
    let done = crate::transform::Transform::new(p.clone()).apply(&batch(&p)).unwrap();
    assert_eq!(done.failed, []);
    for column in [0, 1] {
        let texts: Vec<Option<&str>> = done.batch.column(column).as_string::<i32>().iter().collect();
        assert_eq!(texts, [Some("123e4567-e89b-12d3-a456-426614174000"), Some("ffffffff-ffff-ffff-ffff-ffffffffffff"), None]);
    }
    assert!(done.batch.column(2).is_null(2));
    let uuid = |f: &Field| f.metadata().get(crate::pipeline::TYPE_KEY).map(String::as_str) == Some("uuid");
    assert!(uuid(p.output.field(2)) && !uuid(p.output.field(0)));
    // Largest and smallest of them, and groups by them.
    let p = planned(&format!("select window_start, id, max(id) as most, min(id) as least, count(distinct id) as n from {T} group by window_start, id having max(id) > '{text}'"), None).unwrap();
    assert!((1..4).all(|i| uuid(p.output.field(i))), "{:?}", p.output);
}

#[test]
fn what_cannot_be_split_is_refused_with_the_reason() {
    let refused: &[(&str, &str)] = &[
        ("select count(*) as n from T group by window_start order by 1", "order by"),
        ("select count(*) as n from T group by window_start limit 3", "limit"),
        ("select count(*) as n from T group by window_start union all select 1", "union"),
        ("select distinct user_id from events", "distinct"),
        ("select n from (select count(*) as n from T group by window_start)", "subqueries"),
        ("select user_id, count(*) as n from T group by user_id", "window_start"),
        ("select user_id, count(*) as n from events group by user_id", "without a window"),
        ("select window_start, sum(count(*)) over () as s from T group by window_start", "window function"),
        ("select count(*) as n from T group by rollup(window_start, user_id)", "rollup"),
        ("select count(*) as n from T where amount > (select avg(amount) from events) group by window_start", "subqueries"),
        ("with e as (select * from events) select user_id from e", "with"),
        ("select count(*) as n from tumble(events, interval '1 month') group by window_start", "months"),
        ("select count(*) as n from tumble(events, interval 5) group by window_start", "needs a unit"),
        ("select count(*) as n from tumble(events, interval '5') group by window_start", "needs a unit"),
        ("select count(*) as n from tumble(events, interval '-1 day') group by window_start", "above zero"),
        ("select count(*) as n from tumble(events, '5 minutes') group by window_start", "interval"),
        ("select window_start, user_id from T", "without an aggregate"),
        ("select count(*) as n from T where event_time > now() group by window_start", "now()"),
        ("select random() as r from events", "random()"),
        ("select uuid() as r from events", "uuid()"),
        ("select usr_id from events", "did you mean user_id?"),
        ("select user_id from evnts", "did you mean events?"),
        ("select substrr(session, 1, 2) as s from events", "did you mean substr?"),
        ("select uper(user_id) as u from events", "uper"),
        ("select user_id frm events", ""),
        ("select amount + 1 from events", "needs a name"),
        ("select user_id, USER_ID from events", "same name"),
        ("select user_id, cityName as \"User_ID\" from events", "two columns"),
        ("select null as z from events", "null has no type"),
        ("select window_start, sum(user_id) as s from T group by window_start", "there is no sum of string; expected a number"),
        ("select window_start, avg(b) as s from T group by window_start", "there is no avg of bool"),
        ("select window_start, stddev(event_time) as s from T group by window_start", "there is no stddev of timestamp"),
        ("select window_start, bool_and(user_id) as s from T group by window_start", "there is no bool_and of string"),
        ("select window_start, sum(i) + 1 as s from T group by all", "group by all cannot group by sum(i) + 1, which holds an aggregate"),
        ("select user_id, count(*) as n from T group by all", "window_start"),
        ("select window_start, version() as v, count(*) as n from T group by all", "no function is named version"),
        ("select user_id from events where id = user_id", "there is no uuid = string"),
        ("select user_id from events where id = 'abc'", "'abc' is no uuid"),
        ("select cast(id as bigint) as n from events", "no cast from uuid to int64"),
        ("select id || 'x' as n from events", "uuid"),
        ("select upper(id) as n from events", "uuid"),
        ("select length(id) as n from events", "no cast from uuid to string; expected another type; `cast(… as varchar)`"),
        ("select id like 'a%' as n from events", "there is no uuid like string"),
        ("select event_time + event_time as n from events", "there is no timestamp + timestamp; expected numbers"),
        ("select make_array(i)[user_id] as m from events", "list<int64>"),
        ("select cast(user_id as uuid) as n from events", "compares a uuid with the one that it names"),
        ("select 9223372036854775807 + i - i + (9223372036854775807 + 1) as z from events", "fails for every row"),
        ("insert into events values (1)", "one select"),
        ("select 1 as a from events; select 2 as b from events", "statements"),
        ("select window_start, sum(distinct i) as s from T group by window_start", "distinct is supported for count only"),
        ("select window_start, sum(x order by i) as s from T group by window_start", "order by within"),
        ("select window_start, count(*) as n from tumble(events, interval '1 hour', 'Europe/Berlin') group by window_start", "whole days"),
        ("select window_start, count(*) as n from tumble(events, interval '1 day', 'Europe/Berlyn') group by window_start", "Europe/Berlin"),
    ];
    for (sql, word) in refused {
        let sql = sql.replace(" T", &format!(" {T}"));
        let e = planned(&sql, None).expect_err(&sql);
        assert!(e.to_string().contains(word), "{sql}\n    {e}");
        assert!(!e.unsupported, "{sql}");
    }
    for (sql, word) in [
        ("select count(*) as n from hop(events, interval '1 minute', interval '5 minutes') group by window_start", "hop()"),
        ("select count(*) as n from session(events, interval '1 minute') group by window_start", "session()"),
        ("select a.user_id from events a join events b on a.user_id = b.user_id", "joins"),
        ("select window_start, median(x) as m from T group by window_start", "median"),
    ] {
        let e = planned(&sql.replace(" T", &format!(" {T}")), None).expect_err(sql);
        assert!(e.unsupported && e.to_string().contains(word), "{sql}\n    {e}");
    }
    assert!(planned("select user_id from events", Some(&["user_id"])).unwrap_err().unsupported);
}

#[test]
fn what_was_taken_before_is_taken() {
    for sql in ["select window_start, count(*) from T group by window_start", "select window_start, user_id, sum(i) as s from T group by all", "select 1 as one, window_start, count(*) as n from T group by all", "select window_start as w, upper(user_id) as U, count(*) as cnt from T as e group by 1, u having CNT > 1"] {
        let sql = sql.replace(" T", &format!(" {T}"));
        planned(&sql, None).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
}

#[test]
fn aggregates_have_their_usual_names() {
    use AggregateFunction::*;
    for (names, function) in [
        (&["variance", "var", "var_samp", "variance_samp", "var_sample", "VARIANCE"][..], VarSamp),
        (&["var_pop", "variance_pop", "variance_population", "var_population"], VarPop),
        (&["stddev", "stddev_samp", "std"], StddevSamp),
        (&["stddev_pop"], StddevPop),
        (&["avg", "mean"], Avg),
    ] {
        for name in names {
            let p = planned(&format!("select window_start, {name}(x) as v from {T} group by window_start having {name}(x) > 1"), None).unwrap();
            let calls: Vec<AggregateFunction> = p.aggregate.unwrap().calls.iter().map(|c| c.function).collect();
            assert_eq!(calls, [function], "{name}");
        }
    }
}

#[test]
fn each_error_of_a_select_is_told_once() {
    let told = |sql: &str, key: Option<&[&str]>| {
        let source = events();
        let declared = [Declared { spec: &source, doubtful: &["later".to_string()], open: false, timeless: false }];
        check(&decl(sql, key), &declared, false).unwrap_err().errors.iter().map(|e| e.to_string()).collect::<Vec<_>>()
    };
    // What reads a column of unknown type is not judged by types, and not missed.
    assert_eq!(told("select later + 1 as a, upper(later) as b from events where later", None), Vec::<String>::new());
    assert_eq!(told(&format!("select window_start, later, sum(later) as s from {T} group by window_start, later"), Some(&["window_start", "later"])), Vec::<String>::new());
    let all = told(&format!("select window_start, later, sum(i) as s, sum(b) as t from {T} group by window_start, later having lat > 1"), Some(&["later"]));
    assert_eq!(all.len(), 2, "{all:?}");
    // A group expression that is misspelt makes no column ungrouped.
    let all = told(&format!("select window_start, user_id, count(*) as n from {T} group by window_start, usr_id"), Some(&["window_start", "user_id"]));
    assert_eq!(all, ["no column is named usr_id; did you mean user_id?"]);
}

#[test]
fn an_aggregate_within_an_expression_is_told_once_under_group_by_all() {
    let source = events();
    let declared = [Declared { spec: &source, doubtful: &[], open: false, timeless: false }];
    let wrong = check(&decl(&format!("select window_start, sum(i) + max(i) as s from {T} group by all"), None), &declared, false).unwrap_err();
    assert_eq!(wrong.errors.len(), 1, "{:?}", wrong.errors);
    assert!(wrong.errors[0].message.contains("which holds an aggregate") && wrong.errors[0].place.is_sql());
}

#[test]
fn errors_know_their_place() {
    let from = |e: &SqlError| match &e.place {
        Place::Sql { from, .. } => *from,
        other => panic!("{e}: {other:?}"),
    };
    let e = planned("select user_id,\n  usr_id\nfrom events", None).unwrap_err();
    assert_eq!(from(&e), (2, 3), "{e}");
    let e = planned("select user_id\nfrom events\norder by user_id", None).unwrap_err();
    assert_eq!(from(&e).0, 3, "{e}");
    let e = planned("select user_id\nfrom evnts", None).unwrap_err();
    assert_eq!(from(&e), (2, 6), "{e}");
    let e = planned("select (user_id\nfrom events", None).unwrap_err();
    assert_eq!(from(&e).0, 2, "{e}");
}

#[test]
fn the_key_is_the_group_key() {
    let sql = format!("select window_start, window_end, user_id as u, count(*) as n from {T} group by window_start, window_end, user_id");
    assert!(planned(&sql, Some(&["window_start", "u"])).is_ok());
    assert!(planned(&sql, Some(&["u", "window_start", "window_end"])).is_ok());
    let e = planned(&sql, Some(&["u"])).unwrap_err();
    assert!(e.to_string().contains("found [u]; expected [window_start, u]"), "{e}");
    assert!(planned(&sql, Some(&["window_start", "u", "n"])).is_err());
    let e = planned(&format!("select window_start, count(*) as n from {T} group by window_start, user_id"), Some(&["window_start"])).unwrap_err();
    assert!(e.message.contains("user_id is not among"), "{e}");
}

#[test]
fn shifts_and_zones_align_windows() {
    let window = |args: &str| planned(&format!("select window_start, count(*) as n from tumble(events, {args}) group by window_start"), None).unwrap().window.unwrap();
    assert_eq!(window("interval '1 hour', interval '15 minutes'").align, Align::Epoch { offset_us: 900_000_000 });
    assert_eq!(window("interval '1 hour', interval '-15 minutes'").align, Align::Epoch { offset_us: 2_700_000_000 });
    assert_eq!(window("interval '7 days', 'Europe/Berlin'").align, Align::Days { zone: chrono_tz::Europe::Berlin, days: 7 });
}

#[test]
fn a_float_is_never_compared_as_a_decimal() {
    for sql in [
        "select user_id from events where x > 0.5",
        "select case when b then x else 0.5 end as v from events",
        "select coalesce(x, 0.0) as v from events",
        "select user_id from events where x in (0.5, 1) and x between 0.1 and 1e300",
        "select user_id from events where x = amount",
    ] {
        let p = planned(sql, None).unwrap();
        let text = format!("{:?}", p.below);
        assert!(!text.contains("Decimal128(30"), "{sql}: {text}");
    }
    let p = planned("select amount * 1.1 as v, x * 1.1 as w from events", None).unwrap();
    assert_eq!(p.output.field(0).data_type(), &DataType::Decimal128(15, 3));
    assert_eq!(p.output.field(1).data_type(), &DataType::Float64);
}
