"""Reads a table with readers that are not ours.

    read.py duckdb-iceberg PATH_OF_METADATA_JSON_OR_TABLE [WHERE]
    read.py pyiceberg CATALOG_DB NAMESPACE.TABLE [FILTER]
    read.py duckdb-delta PATH [WHERE]
    read.py deltalake PATH
    read.py ids duckdb-iceberg|duckdb-delta|deltalake PATH WHERE...   for each filter a line of ids
    read.py deltalake-files PATH COLUMN VALUE           how many files may hold it
    read.py pyiceberg-partitions CATALOG_DB NAMESPACE.TABLE
    read.py duckdb QUERY

and commits to one as somebody else would:

    read.py delta-compact PATH                         compacts small files
    read.py iceberg-rewrite CATALOG_DB NAMESPACE.TABLE  writes all rows anew

Prints the rows as NDJSON, sorted, with one spelling for each value whoever reads it: so that the
outputs of two readers of one table are equal byte by byte.
"""

import base64
import datetime
import decimal
import json
import math
import os
import sys
import uuid

# What a catalog calls itself unless the pipeline says otherwise.
CATALOG_NAME = "millpond"


def plain(value):
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.timezone.utc)
        return value.isoformat(timespec="microseconds")
    if isinstance(value, datetime.time):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def show(columns, rows):
    lines = [json.dumps(dict(zip(columns, map(plain, row))), ensure_ascii=False, sort_keys=True) for row in rows]
    for line in sorted(lines):
        print(line)


def show_arrow(table):
    maps = {f.name for f in table.schema if str(f.type).startswith("map<")}
    columns = table.column_names
    rows = []
    for record in table.to_pylist():
        for name in maps & record.keys():
            record[name] = None if record[name] is None else dict(record[name])
        for field in table.schema:
            # Arrow gives a uuid as its bytes where the extension type is not loaded.
            if field.metadata and field.metadata.get(b"uuid") and isinstance(record[field.name], bytes):
                record[field.name] = uuid.UUID(bytes=record[field.name])
        rows.append([record[c] for c in columns])
    show(columns, rows)


def duckdb_connection(*extensions):
    import importlib.util
    import pathlib

    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for extension in extensions:
        # The extensions come as Python packages: nothing is fetched while tests run.
        package = pathlib.Path(importlib.util.find_spec(f"duckdb_extension_{extension}").origin).parent
        file = next(package.rglob("*.duckdb_extension"))
        connection.execute(f"LOAD {quoted(str(file))}")
    return connection


def with_duckdb(connection, source, where):
    result = connection.execute(f"SELECT * FROM {source}" + (f" WHERE {where}" if where else ""))
    columns = [c[0] for c in result.description]
    show(columns, result.fetchall())


def ids(reader, path, *filters):
    if reader == "deltalake":
        from deltalake import DeltaTable, QueryBuilder

        import pyarrow

        session = QueryBuilder().register("t", DeltaTable(path))
        matching = lambda where: pyarrow.table(session.execute(f"select id from t where {where}").read_all())["id"].to_pylist()
    else:
        connection = duckdb_connection("avro", "iceberg") if reader == "duckdb-iceberg" else duckdb_connection("delta")
        scan = {"duckdb-iceberg": "iceberg_scan", "duckdb-delta": "delta_scan"}[reader]
        matching = lambda where: [row[0] for row in connection.execute(f"select id from {scan}({quoted(path)}) where {where}").fetchall()]
    for where in filters:
        print(json.dumps(sorted(matching(where))))


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def main(reader, *args):
    where = args[-1] if len(args) > 1 else None
    if reader == "duckdb-iceberg":
        with_duckdb(duckdb_connection("avro", "iceberg"), f"iceberg_scan({quoted(args[0])})", where)
    elif reader == "duckdb":
        result = duckdb_connection().execute(args[0])
        columns = [c[0] for c in result.description]
        show(columns, result.fetchall())
    elif reader == "duckdb-delta":
        with_duckdb(duckdb_connection("delta"), f"delta_scan({quoted(args[0])})", where)
    elif reader == "pyiceberg":
        from pyiceberg.catalog.sql import SqlCatalog

        catalog = SqlCatalog(CATALOG_NAME, uri=f"sqlite:///{args[0]}", warehouse="file:///nowhere")
        scan = catalog.load_table(args[1]).scan(**({"row_filter": args[2]} if len(args) > 2 else {}))
        show_arrow(scan.to_arrow())
    elif reader == "deltalake":
        import pyarrow
        from deltalake import DeltaTable

        show_arrow(pyarrow.table(DeltaTable(args[0]).to_pyarrow_table()))
    elif reader == "ids":
        ids(*args)
    elif reader == "deltalake-files":
        import pyarrow
        import pyarrow.dataset
        from deltalake import DeltaTable

        files = DeltaTable(args[0]).to_pyarrow_dataset()
        value = pyarrow.scalar(args[2]).cast(files.schema.field(args[1]).type)
        left = files.get_fragments(pyarrow.dataset.field(args[1]) == value)
        print(json.dumps({"files": len(list(files.get_fragments())), "left": len(list(left))}))
    elif reader == "pyiceberg-partitions":
        from pyiceberg.catalog.sql import SqlCatalog

        table = SqlCatalog(CATALOG_NAME, uri=f"sqlite:///{args[0]}", warehouse="file:///nowhere").load_table(args[1])
        for row in table.inspect.partitions().to_pylist():
            print(json.dumps({**row["partition"], "records": row["record_count"]}))
    elif reader == "delta-compact":
        from deltalake import DeltaTable

        done = DeltaTable(args[0]).optimize.compact()
        print(json.dumps({"files_added": done["numFilesAdded"], "files_removed": done["numFilesRemoved"]}))
    elif reader == "iceberg-rewrite":
        from pyiceberg.catalog.sql import SqlCatalog

        table = SqlCatalog(CATALOG_NAME, uri=f"sqlite:///{args[0]}", warehouse="file:///nowhere").load_table(args[1])
        table.overwrite(table.scan().to_arrow())
        print(json.dumps({"snapshots": len(table.metadata.snapshots)}))
    else:
        sys.exit(f"no such reader: {reader}")


main(*sys.argv[1:])
# Threads of the readers' native libraries now and then abort a process that ends in the usual way.
sys.stdout.flush()
os._exit(0)
