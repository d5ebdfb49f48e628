"""Manifests and certificates (section 9), pages, descriptors and increments (section 10), down to every value."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Iterator

from .objects import by_hash, open_object
from .primitives import INLINE_LIMIT, PAGE_LIMIT, Map, cbor, derive, insist, keyed_hash
from .values import LARGE, NULL, RowMap, map_hash, multiset_digest, row_digest, run_recipe, split_rows, value_map
from .zones import Zone

FEATURES = {"rows-1"}


@dataclass(frozen=True)
class Column:
    number: int
    name: str
    type_oid: int
    type_name: str
    wire: str


@dataclass
class Table:
    schema: str
    name: str
    kind: str
    columns: list[Column]
    body: Map

    @property
    def title(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass
class Snapshot:
    id: bytes
    taken: str
    epoch: int
    body: Map
    tables: list[Table]
    counts: bool
    certificate: Map | None = None


def _time(text: str) -> datetime:
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z", text)
    insist(found is not None, f"has a time {text!r} that is not RFC 3339 in UTC")
    return datetime.fromisoformat(found[1])


def _table(body: Map) -> Table:
    columns = []
    for one in body.maps("columns"):
        column = Column(
            one.integer("number"), one.text("name"), one.count("type_oid"), one.text("type_name"), one.text("wire")
        )
        insist(column.wire in ("binary", "text"), f"has a column on a wire {column.wire!r}")
        columns.append(column)
    table = Table(body.text("schema"), body.text("name"), body.text("kind"), columns, body)
    insist(table.kind in ("r", "p", "m"), f"has a table of kind {table.kind!r}")
    for key in ("oid", "segments", "rows", "value_bytes"):
        body.count(key)
    for key in ("relfilenode", "partition_of", "updated", "deleted"):
        body.integer(key, None)
    insist(body.count("block_size") > 0 and body.count("blocks_per_segment") > 0 or table.kind == "p", "has a table without blocks")
    body.text("schema_digest"), body.ids("pages"), body.octets("digest", 16)
    return table


def open_manifest(name: str, data: bytes, configuration, epochs: dict) -> Snapshot:
    body, epoch = open_object(data, "manifest", configuration, epochs)
    insist(body.integer("version") == 1, "is of an unknown version")
    unknown = set(body.array("features", str)) - FEATURES
    insist(not unknown, f"needs features that this reader does not know: {unknown}")
    insist(not body.array("critical", str), f"has keys that must not be ignored: {body.value['critical']}")
    insist(body.octets("repository", 16) == configuration.repository, "names another repository than its header")
    insist(body.integer("epoch") == epoch, "names another epoch than its header")
    taken = body.text("taken")
    digits = name.rsplit("-", 1)[1]
    insist(name == f"snapshots/{_time(taken):%Y%m%dT%H%M%SZ}-{digits}", "has another name than its time gives")
    for key in ("started", "finished"):
        _time(body.text(key))
    body.text("program"), body.boolean("complete"), body.array("suspect", str), body.array("tags", str)
    insist(body.integer("sequence") >= 1, "has a sequence below 1")
    for key in ("previous", "parent"):
        body.octets(key, 32, None)
    store, server = body.map("store"), body.map("server")
    store.integer("system_identifier", None), store.text("database"), store.count("database_oid")
    server.count("version_num"), server.text("encoding"), server.integer("timeline", None), server.boolean("standby")
    server.boolean("data_checksums", None), server.count("xmin"), server.count("xmax"), server.integer("marker", None)
    for one in body.maps("not_covered"):
        one.text("object"), one.text("reason")
    tables = [_table(one) for one in body.maps("tables")]
    insist(len({table.title for table in tables}) == len(tables), "has a table twice")
    totals = body.map("totals")
    for key in ("rows", "value_bytes"):
        insist(totals.count(key) == sum(table.body.count(key) for table in tables), f"has wrong totals of {key}")
    insist(totals.count("tables") == len(tables), "has a wrong total of tables")
    for key in ("new_chunks", "new_packs", "stored_bytes"):
        totals.count(key)
    identity = bytes.fromhex(digits)
    counts = epoch == configuration.epoch or identity in configuration.kept
    return Snapshot(identity, taken, epoch, body, tables, counts)


def all_snapshots(storage, configuration, epochs: dict, findings) -> list[Snapshot]:
    """Every manifest, oldest first, with its certificate."""
    found = {}
    for name in storage.list("snapshots/"):
        with findings.about(name):
            match = re.fullmatch(r"snapshots/[0-9]{8}T[0-9]{6}Z-([0-9a-f]{64})", name)
            insist(match is not None, "is no name of a manifest")
            snapshot = open_manifest(name, by_hash(storage, name, match[1]), configuration, epochs)
            found[snapshot.id] = snapshot
    for name in storage.list("certificates/"):
        with findings.about(name):
            match = re.fullmatch(r"certificates/([0-9a-f]{64})", name)
            insist(match is not None, "is no name of a certificate")
            body, _ = open_object(storage.get(name), "certificate", configuration, epochs)
            insist(body.integer("version") == 1, "is of an unknown version")
            insist(body.octets("snapshot", 32).hex() == match[1], "certifies another snapshot than its name says")
            _time(body.text("certified")), body.count("packs_read_back"), body.count("packs_present")
            complete, suspect = body.boolean("complete"), body.boolean("suspect")
            snapshot = found.get(bytes.fromhex(match[1]))
            if snapshot is not None:
                is_so = (snapshot.body.boolean("complete"), bool(snapshot.body.array("suspect", str)))
                insist((complete, suspect) == is_so, "does not agree with its manifest")
                snapshot.certificate = body
    return sorted(found.values(), key=lambda snapshot: (snapshot.taken, snapshot.id))


class Increment:
    """The rows of a segment that one snapshot added."""

    def __init__(self, body: Map, table: Table, chunks, epochs: dict):
        self.table, self.chunks, self.body = table, chunks, body
        epoch = body.integer("epoch")
        insist(epoch in epochs, f"is keyed in epoch {epoch}, which the key ring does not have")
        secret = epochs[epoch].id_secret
        self.value_key, self.digest_key = derive("value-hash", secret), derive("row-digest", secret)
        self.rows = body.count("rows")
        self.map = RowMap([chunks("meta", one) for one in body.ids("row_map")])
        insist(len(self.map.places) == self.rows, "has a row map of another length than its descriptor says")
        dead = body.octets("dead", None, b"")
        insist(len(dead) * 8 < self.rows + 8, "has dead rows beyond its end")
        bits = int.from_bytes(dead, "little")
        insist(bits >> self.rows == 0, "has dead rows beyond its end")
        self.live = [not bits >> row & 1 for row in range(self.rows)]
        self.payload = body.octets("payload", None, b"")
        insist(len(self.payload) % 32 == 0, "has a chunk list that is cut short")
        zone = body.octets("zone", 32, None)
        self.zone = zone
        self.zones = Zone(Map(cbor(chunks("row", zone)), "the zone"), table.columns) if zone else None

    def _payload(self, ordinal: int) -> bytes:
        insist(ordinal * 32 < len(self.payload), "has a recipe with a chunk that is not in the list")
        return self.chunks("payload", self.payload[32 * ordinal : 32 * ordinal + 32])

    def _large(self) -> Iterator[tuple[bytes, bytes]]:
        """Every large value, checked against the value map, with its hash."""
        for one in self.body.maps("value_map"):
            hashes, cursor = value_map(self.chunks("meta", one.octets("id", 32)), one.count("values"))
            for half in hashes:
                value = run_recipe(cursor, self._payload)
                full = keyed_hash(self.value_key, value)
                insist(full[:16] == half, "has a large value with another hash than its value map says")
                insist(len(value) > INLINE_LIMIT, "has a large value of at most 512 bytes")
                yield value, full
            cursor.end()

    def values(self) -> Iterator[list]:
        """Every row, dead ones too, with its values: bytes, or None for NULL. Everything about it is checked."""
        large = self._large()
        taken = row = value_bytes = 0
        for one in self.body.maps("row_chunks"):
            before = taken
            for fields in split_rows(self.chunks("row", one.octets("id", 32)), one.count("rows"), len(self.table.columns)):
                hashes = {}
                for place, field in enumerate(fields):
                    if field is LARGE:
                        value = next(large, None)
                        insist(value is not None, "has more large values than its value map")
                        fields[place], hashes[place] = value
                        taken += 1
                    elif field is NULL:
                        fields[place] = None
                insist(row < self.rows, "has more rows than its descriptor says")
                digest = row_digest(self.digest_key, fields, hashes)
                insist(digest == self.map.digests[row], f"has another row at {self.map.places[row]} than its row map says")
                if self.zones:
                    self.zones.check(fields)
                value_bytes += sum(len(field) for field in fields if field is not None)
                row += 1
                yield fields
            insist(taken - before == one.count("values"), "has a row chunk with another number of large values")
        insist(row == self.rows, "has fewer rows than its descriptor says")
        insist(next(large, None) is None, "has fewer large values than its value map")
        insist(value_bytes == self.body.count("value_bytes"), "has values of another total length")


class Segment:
    def __init__(self, entry: Map, table: Table, chunks, epochs: dict):
        self.body = Map(cbor(chunks("meta", entry.octets("descriptor", 32))), "the descriptor")
        self.table = table
        self.first, self.end = self.body.count("first_block"), self.body.integer("end_block", None)
        insist(self.end is None or self.end > self.first, "is a range of no blocks")
        self.increments = [Increment(one, table, chunks, epochs) for one in self.body.maps("increments")]
        self.rows, self.digest = self.body.count("rows"), self.body.octets("digest", 16)
        live = self._live()
        places = [place for place, _, _ in live]
        insist(len(set(places)) == len(places), "has two live rows in one place")
        insist(all(self.first <= block and (self.end is None or block < self.end) for block, _ in places), "has rows of other blocks")
        insist(self.rows == entry.count("rows") == len(live), "has another number of live rows than it says")
        insist(map_hash([(place, xmin) for place, xmin, _ in live]) == entry.octets("map_hash", 32), "has a wrong map hash")
        digest = multiset_digest([digest for _, _, digest in live])
        insist(digest == self.digest == entry.octets("digest", 16), "has a wrong multiset digest")
        zones = [increment.zone for increment in self.increments if increment.zone]
        insist(zones == entry.ids("zones"), "has other zones than its page says")

    def _live(self) -> list[tuple[tuple[int, int], int, bytes]]:
        live = []
        for increment in self.increments:
            rows = zip(increment.map.places, increment.map.xmins, increment.map.digests, increment.live)
            live += [(place, xmin, digest) for place, xmin, digest, alive in rows if alive]
        return live

    def live_rows(self) -> list[list]:
        """By their place, which is the order in which the server's own scan meets them."""
        rows = []
        for increment in self.increments:
            every = zip(increment.map.places, increment.live, increment.values(), strict=True)
            rows += [(place, values) for place, alive, values in every if alive]
        return [values for _, values in sorted(rows, key=lambda row: row[0])]


def segments(table: Table, chunks, epochs: dict) -> Iterator[Segment]:
    """A table's segments, with the sums over them checked at the end."""
    body = table.body
    count = rows = 0
    end, digests = 0, []
    for page in body.ids("pages"):
        entries = Map(cbor(chunks("meta", page)), "the page").maps("segments")
        insist(0 < len(entries) <= PAGE_LIMIT, f"has a page of {len(entries)} segments")
        for entry in entries:
            insist(end is not None, "has a segment behind the open one")
            segment = Segment(entry, table, chunks, epochs)
            insist(segment.first >= end, "has segments that overlap")
            count, rows, end = count + 1, rows + segment.rows, segment.end
            digests.append(segment.digest)
            yield segment
    insist(table.kind != "p" or count == 0, "is partitioned and has segments of its own")
    insist((count, rows) == (body.count("segments"), body.count("rows")), "has another number of segments or rows")
    insist(multiset_digest(digests) == body.octets("digest", 16), "has a wrong multiset digest")
