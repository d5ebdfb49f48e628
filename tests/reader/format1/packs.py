"""Packs and chunks (sections 6 and 7), the index (section 8), and chunks fetched by their ids."""

import re
import struct
from collections import OrderedDict
from dataclasses import dataclass

from .keys import open_age
from .objects import by_hash, open_object, secrets_of
from .primitives import CHUNK_LIMIT, DIRECTORY_LIMIT, Cursor, decompress, derive, hash_of, insist, keyed_hash, unseal

KINDS = {1: "meta", 2: "row", 3: "payload"}
WRAPS = {1: "age", 2: "seal"}


@dataclass(frozen=True)
class Slot:
    epoch: int
    wrap: str
    wrapped: bytes


@dataclass(frozen=True)
class Entry:
    """A record of a directory."""

    chunk: bytes
    slot: int
    codec: int
    ordinal: int
    offset: int
    stored: int
    raw: int


@dataclass
class Pack:
    name: str
    kind: str
    size: int
    data_start: int
    slots: list[Slot]
    records: bytes
    entries: list[Entry]


def parse_records(records: bytes, slots: int) -> list[Entry]:
    cursor = Cursor(records)
    entries = []
    for _ in range(cursor.number(4)):
        chunk, slot, codec = cursor.take(32), cursor.number(2), cursor.number(1)
        cursor.zeros(1)
        entry = Entry(chunk, slot, codec, *cursor.numbers(4, "I"))
        insist(slot < slots, "has a chunk whose key slot is not there")
        insist(codec in (0, 1), f"has a chunk of codec {codec}")
        insist(entry.raw <= CHUNK_LIMIT, "has a chunk of more than 4 MiB")
        insist(codec == 1 or entry.stored == entry.raw + 16, "has a chunk of two lengths")
        insist(entry.stored >= 16, "has a chunk shorter than a tag")
        entries.append(entry)
    cursor.end()
    used = {(entry.slot, entry.ordinal) for entry in entries}
    insist(len(used) == len(entries), "uses an ordinal twice under one data key")
    return entries


def parse_slot(cursor: Cursor, kind: str) -> Slot:
    epoch, wrap = cursor.number(4), WRAPS.get(cursor.number(1))
    cursor.zeros(1)
    wrapped = cursor.take(cursor.number(2))
    check_slot(kind, wrap, wrapped)
    return Slot(epoch, wrap, wrapped)


def check_slot(kind: str, wrap: str | None, wrapped: bytes) -> None:
    insist(wrap == ("seal" if kind == "meta" else "age"), f"has a key slot that a pack of kind {kind} cannot have")
    insist(wrap != "seal" or len(wrapped) == 80, "has a sealed data key that is not 80 bytes long")


def parse_pack(name: str, data: bytes, configuration, epochs: dict) -> Pack:
    cursor = Cursor(data)
    insist(cursor.take(8) == b"RSTPACK1", "has another magic")
    kind = KINDS.get(cursor.number(1))
    insist(kind is not None, "is of an unknown kind")
    cursor.zeros(1)
    slot_count, length = cursor.number(2), cursor.number(4)
    insist(length <= DIRECTORY_LIMIT, "has a directory of more than 4 MiB")
    insist(cursor.take(16) == configuration.repository, "is of another repository")
    secrets = secrets_of(cursor.number(4), configuration, epochs)
    cursor.zeros(4)
    salt = cursor.take(32)
    slots = [parse_slot(cursor, kind) for _ in range(slot_count)]
    head = data[: cursor.position]
    sealed = cursor.take(length)
    data_start = cursor.position
    records = unseal(derive("seal directory", secrets.seal_secret, salt), 0, head, sealed)
    tail = Cursor(data, max(len(data) - length - 12, data_start))
    data_end = tail.position
    insist(tail.take(length) == sealed, "has two directories that differ")
    insist(tail.number(4) == length and tail.take(8) == b"RSTTAIL1", "has a wrong tail")
    tail.end()
    entries = parse_records(records, slot_count)
    place = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        insist(entry.offset == place, "has chunks that overlap or leave a hole")
        place += entry.stored
    insist(place == data_end - data_start, "has bytes behind its chunks")
    return Pack(name, kind, len(data), data_start, slots, records, entries)


def data_key(slot: Slot, configuration, epochs: dict) -> bytes:
    secrets = secrets_of(slot.epoch, configuration, epochs)
    if slot.wrap == "age":
        key = open_age(slot.wrapped, [secrets.identity])
        insist(key is not None and len(key) == 32, "has a data key that the epoch's recipient does not open")
        return key
    salt, sealed = slot.wrapped[:32], slot.wrapped[32:]
    return unseal(derive("pack-meta", secrets.seal_secret, salt), 0, b"", sealed)


def open_chunk(stored: bytes, entry: Entry, kind: str, key: bytes, repository: bytes, secrets) -> bytes:
    number = {name: number for number, name in KINDS.items()}[kind]
    insist(len(stored) == entry.stored, "has a chunk that is cut short")
    associated = (
        b"restante 1 chunk" + repository + bytes([number]) + entry.chunk + struct.pack("<IBI", entry.raw, entry.codec, entry.ordinal)
    )
    frame = unseal(key, entry.ordinal, associated, stored)
    plain = decompress(frame, entry.raw) if entry.codec else frame
    insist(len(plain) == entry.raw, "has a chunk of another length")
    secret = secrets.seal_secret if kind == "meta" else secrets.id_secret
    insist(keyed_hash(derive(f"chunk-id {kind}", secret), plain) == entry.chunk, "has a chunk whose id is wrong")
    return plain


class Packs:
    """Every pack of the repository, checked once; afterwards chunks by their ids, the latest ones from memory."""

    MEMORY = 64 << 20

    def __init__(self, storage, configuration, epochs: dict):
        self.storage, self.configuration, self.epochs = storage, configuration, epochs
        self.packs: dict[bytes, Pack] = {}
        # Which entry of which pack holds a chunk. Every place was opened, so any will do.
        self.places: dict[tuple[str, bytes], tuple[bytes, Entry]] = {}
        self.keys: dict[Slot, bytes] = {}
        # What was sealed under a data key and an ordinal: the same nonce must never seal two things.
        self.sealed: dict[tuple[bytes, int], bytes] = {}
        self.memory: OrderedDict = OrderedDict()
        self.held = 0
        self.copies = 0

    def check_all(self, findings) -> None:
        for name in self.storage.list("packs/"):
            with findings.about(name):
                found = re.fullmatch(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{62})", name)
                insist(found is not None, "is no name of a pack")
                self._check(name, bytes.fromhex(found[2]))

    def _check(self, name: str, pack_id: bytes) -> None:
        data = by_hash(self.storage, name, pack_id.hex())
        pack = parse_pack(name, data, self.configuration, self.epochs)
        for slot in pack.slots:
            if slot not in self.keys:
                self.keys[slot] = data_key(slot, self.configuration, self.epochs)
        for entry in pack.entries:
            slot = pack.slots[entry.slot]
            start = pack.data_start + entry.offset
            stored = data[start : start + entry.stored]
            open_chunk(stored, entry, pack.kind, self.keys[slot], self.configuration.repository, self.epochs[slot.epoch])
            nonce = (self.keys[slot], entry.ordinal)
            insist(self.sealed.setdefault(nonce, hash_of(stored)) == hash_of(stored), "uses a nonce for two contents")
            place = (pack.kind, entry.chunk)
            self.copies += place in self.places
            self.places[place] = (pack_id, entry)
        self.packs[pack_id] = pack

    def chunk(self, kind: str, chunk: bytes) -> bytes:
        place = (kind, chunk)
        if place in self.memory:
            self.memory.move_to_end(place)
            return self.memory[place]
        insist(place in self.places, f"needs the {kind} chunk {chunk.hex()}, which no good pack holds")
        pack_id, entry = self.places[place]
        pack = self.packs[pack_id]
        slot = pack.slots[entry.slot]
        stored = self.storage.part(pack.name, pack.data_start + entry.offset, entry.stored)
        repository = self.configuration.repository
        plain = open_chunk(stored, entry, pack.kind, self.keys[slot], repository, self.epochs[slot.epoch])
        self.memory[place] = plain
        self.held += len(plain)
        while self.held > self.MEMORY and len(self.memory) > 1:
            self.held -= len(self.memory.popitem(last=False)[1])
        return plain


@dataclass
class Fragment:
    supersedes: list[bytes]
    packs: set[bytes]
    # (kind, chunk id) of every chunk that it finds.
    chunks: set[tuple[str, bytes]]


class Index:
    def __init__(self):
        self.fragments: dict[bytes, Fragment] = {}

    def check_all(self, storage, configuration, epochs: dict, packs: Packs, findings) -> None:
        for name in storage.list("index/"):
            with findings.about(name):
                found = re.fullmatch(r"index/([0-9a-f]{64})", name)
                insist(found is not None, "is no name of an index fragment")
                body, _ = open_object(by_hash(storage, name, found[1]), "index", configuration, epochs)
                self.fragments[bytes.fromhex(found[1])] = self._fragment(body, packs)

    def _fragment(self, body, packs: Packs) -> Fragment:
        insist(body.integer("version") == 1, "is of an unknown version")
        body.count("level")
        fragment = Fragment(body.ids("supersedes"), set(), set())
        for one in body.maps("packs"):
            pack_id = one.octets("id", 32)
            insist(pack_id not in fragment.packs, "names a pack twice")
            pack = packs.packs.get(pack_id)
            insist(pack is not None, f"names the pack {pack_id.hex()}, which is not there or not good")
            slots = []
            for slot in one.maps("slots"):
                slots.append(Slot(slot.count("epoch"), slot.text("wrap"), slot.octets("wrapped")))
            says = (one.text("kind"), one.count("size"), one.count("data_start"), slots, one.octets("entries"))
            is_so = (pack.kind, pack.size, pack.data_start, pack.slots, pack.records)
            insist(says == is_so, f"does not agree with the pack {pack_id.hex()}")
            fragment.packs.add(pack_id)
            fragment.chunks |= {(pack.kind, entry.chunk) for entry in parse_records(says[4], len(slots))}
        return fragment

    def active(self) -> list[Fragment]:
        superseded = {one for fragment in self.fragments.values() for one in fragment.supersedes}
        return [fragment for one, fragment in self.fragments.items() if one not in superseded]

    def finder(self, hint: list[bytes]) -> set[tuple[str, bytes]]:
        """The chunks that the named fragments find; all of the index when one of them is gone."""
        if all(one in self.fragments for one in hint):
            fragments = [self.fragments[one] for one in hint]
        else:
            fragments = self.active()
        return set().union(*(fragment.chunks for fragment in fragments))
