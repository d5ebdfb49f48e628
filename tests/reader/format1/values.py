"""Rows, row digests, value maps and recipes: sections 11 and 12, and the row map of section 10."""

import base64
import struct
from typing import Callable, Iterator

from .primitives import INLINE_LIMIT, MAP_ROWS_LIMIT, VALUE_LIMIT, Cursor, hash_of, insist, keyed_hash

NULL, LARGE = object(), object()


class RowMap:
    """The joined chunks of a row map: where each row of an increment lies, and its digest."""

    def __init__(self, chunks: list[bytes]):
        self.places: list[tuple[int, int]] = []
        self.xmins: list[int] = []
        self.digests: list[bytes] = []
        for chunk in chunks:
            cursor = Cursor(chunk)
            count = cursor.number(4)
            insist(count <= MAP_ROWS_LIMIT, "has a row map of too many rows")
            blocks, offsets = cursor.numbers(count, "I"), cursor.numbers(count, "H")
            self.places += zip(blocks, offsets)
            self.xmins += cursor.numbers(count, "I")
            self.digests += [cursor.take(16) for _ in range(count)]
            cursor.end()
        insist(all(a < b for a, b in zip(self.places, self.places[1:])), "has a row map that does not ascend")


def map_hash(rows: list[tuple[tuple[int, int], int]]) -> bytes:
    """Of `((block, offset), xmin)` of live rows."""
    return hash_of(b"".join(struct.pack("<IHI", *place, xmin) for place, xmin in sorted(rows)))


def split_rows(chunk: bytes, rows: int, columns: int) -> Iterator[list]:
    """The fields of each row of a row chunk: bytes, `NULL` or `LARGE`."""
    cursor = Cursor(chunk)
    for _ in range(rows):
        fields = []
        for _ in range(columns):
            head = cursor.varint()
            insist(head - 2 <= INLINE_LIMIT, "has a small value of more than 512 bytes")
            fields.append(NULL if head == 0 else LARGE if head == 1 else cursor.take(head - 2))
        yield fields
    cursor.end()


def row_digest(key: bytes, values: list, large: dict[int, bytes]) -> bytes:
    """`values` are bytes or None; `large` are the value hashes of the large ones, by their place."""
    message = bytearray()
    for place, value in enumerate(values):
        if value is None:
            message += b"\0"
        elif place in large:
            message += b"\2" + struct.pack("<I", len(value)) + large[place]
        else:
            message += b"\1" + struct.pack("<I", len(value)) + value
    return keyed_hash(key, bytes(message))[:16]


def multiset_digest(digests: list[bytes]) -> bytes:
    total = sum(int.from_bytes(digest, "little") for digest in digests)
    return (total % (1 << 128)).to_bytes(16, "little")


def encode_base64(data: bytes, line: int, crlf: bool, final: bool) -> bytes:
    text = base64.b64encode(data)
    ending = b"\r\n" if crlf else b"\n"
    lines = [text[at : at + line] for at in range(0, len(text), line)] if line else [text]
    return ending.join(lines) + (ending if final else b"")


def run_recipe(cursor: Cursor, payload: Callable[[int], bytes]) -> bytes:
    """Puts one value together; `payload` gives the plaintext of a chunk by its ordinal in the increment's list."""
    length = cursor.varint()
    insist(length <= VALUE_LIMIT, "has a recipe for more than 1 GiB")
    value = bytearray()
    while len(value) < length:
        head, offset, count = cursor.varint(), cursor.varint(), cursor.varint()
        plain = payload(head >> 1)
        insist(offset + count <= len(plain), "has a recipe that reaches outside its chunk")
        piece = plain[offset : offset + count]
        if head & 1:
            line, flags = cursor.varint(), cursor.number(1)
            insist(line <= 0xFFFF and flags & ~3 == 0, "has a recipe with unknown flags or too long lines")
            piece = encode_base64(piece, line, bool(flags & 1), bool(flags & 2))
        insist(len(piece) > 0, "has a recipe with an operation that puts out nothing")
        value += piece
        insist(len(value) <= length, "has a recipe that puts out more than its length")
    return bytes(value)


def value_map(chunk: bytes, values: int) -> tuple[list[bytes], Cursor]:
    """The first halves of the value hashes, and a cursor at the first recipe."""
    cursor = Cursor(chunk)
    insist(cursor.number(4) == values, "has a value map of another count than its descriptor says")
    return [cursor.take(16) for _ in range(values)], cursor
