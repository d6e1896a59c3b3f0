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

    def live(self, table):
        """The live files as the commits of the log have them, oldest first, and the number of the next one."""
        commits = sorted((pathlib.Path(self.path(table)) / "_delta_log").glob("*.json"))
        live = {}
        for action in (json.loads(line) for commit in commits for line in commit.read_text().splitlines()):
            if "remove" in action:
                live.pop(action["remove"]["path"], None)
            if "add" in action:
                live[action["add"]["path"]] = action["add"]
        return list(live.values()), int(commits[-1].stem) + 1

    def publish(self, table, version, operation, actions):
        info = {"timestamp": int(time.time() * 1000), "operation": operation, "engineInfo": "another engine"}
        lines = [json.dumps(action) + "\n" for action in [{"commitInfo": info}, *actions]]
        with open(pathlib.Path(self.path(table)) / f"_delta_log/{version:020}.json", "x") as out:
            out.writelines(lines)

    def hide(self, table, rows, **_):
        """Deletes the first rows of the oldest file by a deletion vector, as engines do that know them."""
        from deltalake import TableFeatures

        t = self.open(table)
        t.alter.add_feature([TableFeatures.DeletionVectors, *features(t)], allow_protocol_versions_increase=True)
        (old, *_), version = self.live(table)
        removed = {"path": old["path"], "deletionTimestamp": int(time.time() * 1000), "dataChange": True}
        self.publish(table, version, "DELETE", [{"remove": removed}, {"add": {**old, "deletionVector": deletion_vector(rows)}}])

    def replace(self, table, files=None, lose=0, double=0, stats=True, **_):
        """A compaction as another engine commits it: the oldest files, or all, become one. A faulty engine loses rows, or doubles some."""
        import pyarrow
        import pyarrow.parquet

        chosen, version = self.live(table)
        chosen, hidden = chosen[:files], {}
        for batch in pyarrow.RecordBatchReader.from_stream(self.open(table).deletion_vectors()):
            hidden.update({row["filepath"].rsplit("/", 1)[-1]: row["selection_vector"] for row in batch.to_pylist()})
        parts = []
        for add in chosen:
            part = pyarrow.parquet.read_table(self.root / table / add["path"])
            shown = hidden.get(add["path"], [])
            parts.append(part.filter(pyarrow.array(shown + [True] * (part.num_rows - len(shown)))))
        rows = faulty(pyarrow.concat_tables(parts), lose, double)
        name = f"another-{version}.parquet"
        pyarrow.parquet.write_table(rows, self.root / table / name)
        now = int(time.time() * 1000)
        actions = []
        for add in chosen:
            vector = {"deletionVector": add["deletionVector"]} if "deletionVector" in add else {}
            actions.append({"remove": {"path": add["path"], "deletionTimestamp": now, "dataChange": False, **vector}})
        size = (self.root / table / name).stat().st_size
        counted = {"stats": json.dumps({"numRecords": rows.num_rows})} if stats else {}
        actions.append({"add": {"path": name, "partitionValues": {}, "size": size, "modificationTime": now, "dataChange": False, **counted}})
        self.publish(table, version, "OPTIMIZE", actions)
        return {"files": len(chosen), "rows": rows.num_rows}

    def columns(self, table, add=(), **_):
        from deltalake.schema import Field, PrimitiveType

        t = self.open(table)
        if add:
            t.alter.add_columns([Field(name, PrimitiveType("string")) for name in add])
        return [f.name for f in self.open(table).schema().fields]

    def overwrite(self, table, drop=(), retype=(), by=None, **_):
        """All rows anew, without some columns, with some as text, or partitioned by one."""
        import pyarrow
        from deltalake import write_deltalake

        rows = self.open(table).to_pyarrow_table().drop_columns(list(drop))
        for name in retype:
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(pyarrow.string()))
        write_deltalake(self.path(table), rows, mode="overwrite", schema_mode="overwrite", partition_by=by)

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

    def replace(self, table, files=None, at=None, lose=0, double=0, **_):
        """A compaction as another engine commits it, a snapshot `replace`: the oldest data files, or all, become one, and their deletes are
        applied. `at`: the snapshot at which it began, whose sequence number its file keeps. A faulty engine loses rows, or doubles some."""
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files
        from pyiceberg.manifest import ManifestContent

        t = self.open(table)
        began = t.snapshot_by_id(at) if at else t.current_snapshot()
        entries = [e for m in began.manifests(t.io) if m.content == ManifestContent.DATA for e in m.fetch_manifest_entry(t.io)]
        entries.sort(key=lambda e: (e.sequence_number, e.data_file.file_path))
        chosen = [e.data_file for e in entries[:files]]
        paths = {f.file_path for f in chosen}

        def rows_at(snapshot):
            tasks = [task for task in t.scan(snapshot_id=snapshot.snapshot_id).plan_files() if task.file.file_path in paths]
            return ArrowScan(t.metadata, t.io, t.schema(), AlwaysTrue()).to_table(tasks), sum(len(task.delete_files) > 0 for task in tasks)

        rows, with_deletes = rows_at(began)
        # What was deleted from these files meanwhile would come back: then it starts over.
        assert rows_at(t.current_snapshot())[0].num_rows == rows.num_rows
        rows = faulty(rows, lose, double)
        with t.transaction() as transaction:
            with replacing(t, transaction, began.sequence_number if at else None) as replace:
                for file in chosen:
                    replace.delete_data_file(file)
                for file in _dataframe_to_data_files(table_metadata=transaction.table_metadata, df=rows, io=t.io):
                    replace.append_data_file(file)
        ours = self.open(table).snapshot_by_id(replace.snapshot_id)
        written = [e.sequence_number for m in ours.manifests(t.io) for e in m.fetch_manifest_entry(t.io) if e.snapshot_id == ours.snapshot_id]
        counts = {"rows": rows.num_rows, "with_deletes": with_deletes, "records": sum(f.record_count for f in chosen)}
        return {"files": len(chosen), "sequence": max(written), "newest": ours.sequence_number, **counts}

    def columns(self, table, drop=(), rename={}, widen=(), add=(), first=(), describe={}, **_):
        from pyiceberg.types import LongType, StringType

        with self.open(table).update_schema(allow_incompatible_changes=True) as update:
            for name in drop:
                update.delete_column(name)
            for name, to in rename.items():
                update.rename_column(name, to)
            for name in widen:
                update.update_column(name, field_type=LongType())
            for name in add:
                update.add_column(name, StringType())
            for name in first:
                update.move_first(name)
            for name, doc in describe.items():
                update.update_column(name, doc=doc)
        return [[f.name, f.doc] for f in self.open(table).schema().fields]

    def partition(self, table, by, **_):
        with self.open(table).update_spec() as update:
            update.add_identity(by)

    def layout(self, table, schema=None, spec=None, **_):
        """Makes a schema or a partition spec that the table knows the one that counts."""
        from pyiceberg.table.update import SetCurrentSchemaUpdate, SetDefaultSpecUpdate

        updates = [SetCurrentSchemaUpdate(schema_id=schema)] if schema is not None else []
        updates += [SetDefaultSpecUpdate(spec_id=spec)] if spec is not None else []
        with self.open(table).transaction() as transaction:
            transaction._apply(tuple(updates), ())

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


def faulty(rows, lose, double):
    import pyarrow

    return pyarrow.concat_tables([rows.slice(lose), rows.slice(lose, double)])


def features(table):
    """Those that a table of the older protocol has without saying so: an upgrade must not lose them."""
    from deltalake import TableFeatures

    protocol = table.protocol()
    return [] if protocol.writer_features else [TableFeatures.AppendOnly, TableFeatures.Invariants]


def deletion_vector(rows):
    """Of the first rows of a file, within the log: a roaring bitmap of one array, in the alphabet of Z85."""
    import base64
    import struct

    plain = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    data = struct.pack("<IQIIIHHI", 1681511377, 1, 0, 12346, 1, 0, rows - 1, 16) + struct.pack(f"<{rows}H", *range(rows))
    padded = data + bytes(-len(data) % 4)
    text = base64.b85encode(padded).translate(bytes.maketrans(plain, z85)).decode()
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": rows}


def replacing(table, transaction, sequence):
    """PyIceberg's overwrite as a `replace`, which it has not; its files keep this sequence number, where one is given."""
    from pyiceberg.table.snapshots import Operation, Summary
    from pyiceberg.table.update.snapshot import _OverwriteFiles

    class Replace(_OverwriteFiles):
        def _summary(self, snapshot_properties={}):
            return Summary(operation=Operation.REPLACE, **super()._summary(snapshot_properties).additional_properties)

        def new_manifest_writer(self, spec):
            writer = super().new_manifest_writer(spec)
            add = writer.add

            def add_as_of_then(entry):
                entry.sequence_number = sequence
                return add(entry)

            writer.add = add_as_of_then
            return writer

    return Replace(operation=Operation.OVERWRITE, transaction=transaction, io=table.io, snapshot_properties={"engine-name": "another engine"})


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
