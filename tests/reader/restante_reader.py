#!/usr/bin/env python3
"""An independent reader of Restante's repository format 1, written from docs/format.md alone.

    restante_reader.py -i IDENTITY check REPOSITORY              everything, every snapshot; exits 1 at any disagreement
    restante_reader.py -i IDENTITY dump REPOSITORY SNAPSHOT SCHEMA.TABLE > rows.copy
    restante_reader.py -i IDENTITY export REPOSITORY SNAPSHOT FOLDER   every table so, with tables.json
    restante_reader.py vectors docs/format.md                    the page's test vectors

It shares no code with Restante and knows nothing that the page does not say: so the page is enough to get the mail back when the
program is gone. It reads what a restore needs and more, and it believes nothing: every hash, seal, signature and sum is computed again.
`dump` writes PostgreSQL's COPY BINARY; columns whose wire is `text` have their output text in it, as a text column would.

Needs Python 3.11 and the packages of tests/reader/requirements.txt, which scripts/install puts below target/tools/python.
"""

import argparse
import json
import os
import struct
import sys
from collections import Counter

HERE = os.path.dirname(os.path.abspath(__file__))
TOOLS = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(HERE, "../../target"), "tools/python")
sys.path.insert(0, TOOLS)
sys.dont_write_bytecode = True

from format1 import vectors  # noqa: E402
from format1.keys import configuration as read_configuration, identities, newest_ring  # noqa: E402
from format1.objects import Directory, Findings, Stop  # noqa: E402
from format1.packs import Index, Packs  # noqa: E402
from format1.primitives import INLINE_LIMIT, Damage, cbor, insist  # noqa: E402
from format1.snapshots import Snapshot, Table, all_snapshots, segments  # noqa: E402


class Repository:
    """A repository with its keys, packs, index and snapshots read and checked."""

    def __init__(self, path: str, identity_files: list[str], fingerprint: str | None):
        self.findings = Findings()
        self.storage = Directory(path)
        self.configuration = read_configuration(self.storage, self.findings)
        with self.findings.about("repository.json", fatal=True):
            insist(fingerprint in (None, self.configuration.fingerprint.hex()), "has another fingerprint than the one given")
        self.ring = newest_ring(self.storage, identities(identity_files), self.configuration, self.findings)
        epochs = self.ring.epochs
        self.packs = Packs(self.storage, self.configuration, epochs)
        self.packs.check_all(self.findings)
        self.index = Index()
        self.index.check_all(self.storage, self.configuration, epochs, self.packs, self.findings)
        self.snapshots = all_snapshots(self.storage, self.configuration, epochs, self.findings)

    def chunks(self, snapshot: Snapshot):
        """Fetches chunks as a reader of this snapshot would: only what its fragments name."""
        known = self.index.finder(snapshot.body.ids("fragments"))

        def fetch(kind: str, chunk: bytes) -> bytes:
            insist((kind, chunk) in known, f"needs the {kind} chunk {chunk.hex()}, which its index fragments do not name")
            return self.packs.chunk(kind, chunk)

        return fetch


def check_table(repository: Repository, table: Table, chunks, seen: Counter) -> None:
    value_bytes = 0
    for segment in segments(table, chunks, repository.ring.epochs):
        seen["segments"] += 1
        seen["segments of several increments"] += len(segment.increments) > 1
        for increment in segment.increments:
            value_bytes += increment.body.count("value_bytes")
            seen["increments"] += 1
            seen["dead rows"] += increment.live.count(False)
            if increment.zones:
                seen["zones"] += 1
                seen["absent keys tried"] += increment.zones.tried
                seen["absent keys that filters let pass"] += increment.zones.passed
        for values in segment.live_rows():
            seen["rows"] += 1
            seen["values"] += len(values)
            seen["NULLs"] += values.count(None)
            seen["large values"] += sum(value is not None and len(value) > INLINE_LIMIT for value in values)
    seen["tables of several segments"] += table.body.count("segments") > 1
    insist(value_bytes == table.body.count("value_bytes"), "has values of another total length")


def check_schema(snapshot: Snapshot, chunks) -> None:
    schema = snapshot.body.map("schema")
    cbor(b"".join(chunks("row", one) for one in schema.ids("catalog")), deterministic=False)
    dump = b"".join(chunks("row", one) for one in schema.ids("dump"))
    insist(not dump or dump.startswith(b"PGDMP"), "has a dump of the schema that is no archive of pg_dump")
    schema.text("dump_version", None)


def check(repository: Repository, out) -> None:
    configuration, packs, fragments = repository.configuration, repository.packs, repository.index.fragments.values()
    slots = [pack.slots for pack in packs.packs.values()]
    seen = Counter()
    seen["configuration version"], seen["epoch"] = configuration.version, configuration.epoch
    seen["readers of the ring"], seen["epochs in the ring"] = len(repository.ring.readers), len(repository.ring.epochs)
    seen["packs"] = len(slots)
    seen["packs with several key slots"] = sum(len(one) > 1 for one in slots)
    seen["packs of several epochs"] = sum(len({slot.epoch for slot in one}) > 1 for one in slots)
    seen["packs in no fragment"] = len(set(packs.packs) - set().union(*(one.packs for one in fragments)))
    seen["chunks"], seen["copies of chunks"] = len(packs.places), packs.copies
    seen["fragments"], seen["fragments superseded"] = len(fragments), len(fragments) - len(repository.index.active())
    seen["snapshots"], seen["snapshots not used"] = len(repository.snapshots), 0
    for snapshot in repository.snapshots:
        if snapshot.certificate is None or not snapshot.counts:
            seen["snapshots not used"] += 1
            continue
        name = f"snapshot {snapshot.id.hex()}"
        chunks = repository.chunks(snapshot)
        with repository.findings.about(f"{name}: its schema"):
            check_schema(snapshot, chunks)
        for table in snapshot.tables:
            with repository.findings.about(f"{name}: {table.title}"):
                check_table(repository, table, chunks, seen)
    # Eight bits of fingerprint let one key in 256 pass. A filter that lets a twentieth pass is read wrongly.
    tried, passed = seen["absent keys tried"], seen["absent keys that filters let pass"]
    if tried >= 256 and passed * 20 > tried:
        repository.findings.all.append(f"filters let {passed} of {tried} keys pass that are not there")
    print(f"{'repository':<36}{configuration.repository.hex()}", file=out)
    print(f"{'fingerprint':<36}{configuration.fingerprint.hex()}", file=out)
    for what, number in seen.items():
        print(f"{what:<36}{number}", file=out)


def find(repository: Repository, prefix: str) -> Snapshot:
    good = [one for one in repository.snapshots if one.counts and one.certificate is not None]
    found = good[-1:] if prefix == "latest" else [one for one in good if one.id.hex().startswith(prefix)]
    insist(len(found) == 1, f"there are {len(found)} good snapshots {prefix}")
    return found[0]


def dump(repository: Repository, snapshot: Snapshot, table: Table, out) -> None:
    out.write(b"PGCOPY\n\xff\r\n\0" + struct.pack(">II", 0, 0))
    for segment in segments(table, repository.chunks(snapshot), repository.ring.epochs):
        for values in segment.live_rows():
            out.write(struct.pack(">h", len(values)))
            for value in values:
                out.write(struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value)
    out.write(struct.pack(">h", -1))
    out.flush()


def export(repository: Repository, snapshot: Snapshot, folder: str) -> None:
    tables = []
    for number, table in enumerate(snapshot.tables):
        file = f"{number}.copy"
        with open(os.path.join(folder, file), "wb") as out:
            dump(repository, snapshot, table, out)
        wires = [{"name": column.name, "wire": column.wire} for column in table.columns]
        tables.append({"schema": table.schema, "name": table.name, "columns": wires, "file": file})
    with open(os.path.join(folder, "tables.json"), "w", encoding="utf-8") as out:
        json.dump(tables, out)


def main() -> int:
    parser = argparse.ArgumentParser(description="An independent reader of Restante's repository format 1")
    parser.add_argument("-i", "--identity", action="append", default=[], help="a file with age identities, or an SSH private key")
    parser.add_argument("--fingerprint", help="that the repository must have, in hexadecimal")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("repository")
    for name, last in (("dump", "schema.table"), ("export", "an empty folder")):
        command = commands.add_parser(name)
        command.add_argument("repository")
        command.add_argument("snapshot", help="the beginning of its id, or latest")
        command.add_argument("target", help=last)
    commands.add_parser("vectors").add_argument("page")
    arguments = parser.parse_args()
    if arguments.command == "vectors":
        with open(arguments.page, encoding="utf-8") as page:
            print(f"{vectors.check(page.read())} vectors agree")
        return 0
    try:
        repository = Repository(arguments.repository, arguments.identity, arguments.fingerprint)
        findings = repository.findings
        if arguments.command == "check":
            check(repository, sys.stdout)
        else:
            snapshot = find(repository, arguments.snapshot)
            if arguments.command == "export":
                export(repository, snapshot, arguments.target)
            else:
                tables = [table for table in snapshot.tables if table.title == arguments.target]
                insist(len(tables) == 1, f"the snapshot has no table {arguments.target}")
                dump(repository, snapshot, tables[0], sys.stdout.buffer)
    except Stop as stop:
        print(f"damage: {stop}", file=sys.stderr)
        return 1
    for later in findings.later:
        print(f"passed over: {later}", file=sys.stderr)
    for finding in findings.all:
        print(f"damage: {finding}", file=sys.stderr)
    return 1 if findings.all else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Damage as damage:
        print(f"damage: {damage}", file=sys.stderr)
        sys.exit(1)
