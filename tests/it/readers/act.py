"""Does to a lake what other engines and people do.

    act.py LAKE PIPELINE STEPS

STEPS is a JSON array of objects {"do": ACTION, "table": NAME, ...}; the answer of each is printed as
one line of JSON. One with "tries" is tried as often where others commit meanwhile. Delta tables are changed by deltalake, Iceberg tables by PyIceberg; what neither can
do is committed by hand, as an engine that can would.
"""

import datetime
import json
import os
import pathlib
import shutil
import sys
import time

CATALOG_NAME = "millpond"


class Delta:
    def __init__(self, lake, pipeline):
        self.root = pathlib.Path(lake) / "delta" / pipeline

    def path(self, table):
        return str(self.root / table)

    def open(self, table):
        from deltalake import DeltaTable

        return DeltaTable(self.path(table))

    def version(self, table, **_):
        return self.open(table).version()

    def compact(self, table, **_):
        metrics = self.open(table).optimize.compact()
        return {"added": metrics["numFilesAdded"], "removed": metrics["numFilesRemoved"]}

    def vacuum(self, table, full=False, **_):
        return len(self.open(table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=full))

    def checkpoint(self, table, **_):
        self.open(table).create_checkpoint()

    def delete(self, table, where, **_):
        return self.open(table).delete(where)["num_deleted_rows"]

    def update(self, table, set, where, **_):
        return self.open(table).update(updates=set, predicate=where)["num_updated_rows"]

    def append(self, table, rows, **_):
        from deltalake import write_deltalake

        write_deltalake(self.path(table), arrow_rows(self.open(table).to_pyarrow_dataset().schema, rows), mode="append")

    def restore(self, table, version, **_):
        self.open(table).restore(version)

    def unset(self, table, keys, **_):
        """As `ALTER TABLE … UNSET TBLPROPERTIES` commits it."""
        t = self.open(table)
        log = pathlib.Path(self.path(table)) / "_delta_log"
        metadata = None
        for version in range(t.version(), -1, -1):
            for line in (log / f"{version:020}.json").read_text().splitlines():
                metadata = metadata or json.loads(line).get("metaData")
            if metadata:
                break
        removed = [k for k in keys if metadata["configuration"].pop(k, None) is not None]
        info = {"timestamp": int(time.time() * 1000), "operation": "UNSET TBLPROPERTIES", "operationParameters": {"properties": json.dumps(keys)}}
        with open(log / f"{t.version() + 1:020}.json", "x") as out:
            out.write(json.dumps({"commitInfo": info}) + "\n" + json.dumps({"metaData": metadata}) + "\n")
        return removed

    def drop(self, table, **_):
        shutil.rmtree(self.path(table))

    def recreate(self, table, **_):
        from deltalake import write_deltalake

        schema = self.open(table).to_pyarrow_dataset().schema
        self.drop(table)
        write_deltalake(self.path(table), schema.empty_table())


class Iceberg:
    def __init__(self, lake, pipeline):
        from pyiceberg.catalog.sql import SqlCatalog

        self.lake, self.namespace = pathlib.Path(lake), pipeline
        self.catalog = SqlCatalog(CATALOG_NAME, uri=f"sqlite:///{lake}/catalog.db", warehouse=f"file://{lake}/elsewhere")

    def open(self, table):
        return self.catalog.load_table((self.namespace, table))

    def snapshot(self, table, **_):
        return self.open(table).current_snapshot().snapshot_id

    def snapshots(self, table, **_):
        return [s.snapshot_id for s in sorted(self.open(table).snapshots(), key=lambda s: s.sequence_number)]

    def metadata_location(self, table, **_):
        return self.open(table).metadata_location

    def properties(self, table, **_):
        return dict(self.open(table).properties)

    def compact(self, table, **_):
        """A rewrite as another engine commits it: all rows anew, all files replaced, one snapshot."""
        t = self.open(table)
        rows = t.scan().to_arrow()
        old = list({task.file.file_path: task.file for task in t.scan().plan_files()}.values())
        from pyiceberg.io.pyarrow import _dataframe_to_data_files
        from pyiceberg.table.snapshots import Operation

        with t.transaction() as transaction:
            with transaction.update_snapshot(snapshot_properties={"compacted-by": "another engine"}).overwrite() as overwrite:
                for file in old:
                    overwrite.delete_data_file(file)
                for file in _dataframe_to_data_files(table_metadata=transaction.table_metadata, df=rows, io=t.io):
                    overwrite.append_data_file(file)
        return {"removed": len(old), "operation": str(Operation.OVERWRITE.value)}

    def delete(self, table, where, **_):
        before = self.open(table).scan().count()
        self.open(table).delete(where)
        return before - self.open(table).scan().count()

    def append(self, table, rows, **_):
        t = self.open(table)
        t.append(arrow_rows(t.schema().as_arrow(), rows))

    def overwrite(self, table, where, rows, **_):
        t = self.open(table)
        t.overwrite(arrow_rows(t.schema().as_arrow(), rows), overwrite_filter=where)

    def expire(self, table, **_):
        """Every snapshot but the last."""
        t = self.open(table)
        last = t.current_snapshot().snapshot_id
        gone = [s.snapshot_id for s in t.snapshots() if s.snapshot_id != last]
        t.maintenance.expire_snapshots().by_ids(gone).commit()
        return len(gone)

    def set_current(self, table, snapshot, **_):
        self.open(table).manage_snapshots().set_current_snapshot(snapshot_id=snapshot).commit()

    def rollback(self, table, snapshot, **_):
        self.open(table).manage_snapshots().rollback_to_snapshot(snapshot_id=snapshot).commit()

    def unset(self, table, keys, **_):
        t = self.open(table)
        removed = [k for k in keys if k in t.properties]
        with t.transaction() as transaction:
            transaction.remove_properties(*removed)
        return removed

    def set(self, table, properties, **_):
        with self.open(table).transaction() as transaction:
            transaction.set_properties(properties)

    def drop(self, table, **_):
        self.catalog.drop_table((self.namespace, table))

    def recreate(self, table, keep_properties=False, **_):
        t = self.open(table)
        schema, spec, location, properties = t.schema(), t.spec(), t.location(), dict(t.properties)
        self.drop(table)
        self.catalog.create_table((self.namespace, table), schema, location=location, partition_spec=spec, properties=properties if keep_properties else {})


def arrow_rows(schema, rows):
    import pyarrow

    def value(field, text):
        if text is None:
            return None
        if pyarrow.types.is_timestamp(field.type):
            return datetime.datetime.fromisoformat(text)
        if pyarrow.types.is_decimal(field.type):
            import decimal

            return decimal.Decimal(text)
        return text

    columns = {f.name: [value(f, row.get(f.name)) for row in rows] for f in schema}
    return pyarrow.Table.from_pydict(columns, schema=schema)


def persistently(act, arguments, tries):
    """As an engine does whose commits lose against those of others: anew, from the table as it is now."""
    from deltalake.exceptions import CommitFailedError
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    for _ in range(tries):
        try:
            return act(**arguments)
        except (CommitFailedError, CommitFailedException, ValidationException) as lost:
            why = lost
    raise why


def main(lake, pipeline, steps):
    made = {}
    for step in json.loads(steps):
        if step["in"] not in made:
            made[step["in"]] = {"delta": Delta, "iceberg": Iceberg}[step["in"]](lake, pipeline)
        arguments = {k: v for k, v in step.items() if k not in ("in", "do", "tries")}
        act = getattr(made[step["in"]], step["do"])
        print(json.dumps(persistently(act, arguments, step.get("tries", 1))))


main(*sys.argv[1:])
# Threads of the native libraries now and then abort a process that ends in the usual way.
sys.stdout.flush()
os._exit(0)
