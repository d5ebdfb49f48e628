"""Zones (section 13): which values the rows of an increment can have."""

from .primitives import Cursor, Map, hash_of, insist

MASK = (1 << 64) - 1
# How COPY BINARY sends the types that have intervals: their width, and whether the ends of the range mean ±infinity.
# By OID: int2, int4, int8, oid; date, timestamp, timestamptz.
ORDERED = {21: (2, False), 23: (4, False), 20: (8, False), 26: (4, False), 1082: (4, True), 1114: (8, True), 1184: (8, True)}


class Filter:
    """A three-wise binary fuse filter."""

    def __init__(self, data: bytes):
        cursor = Cursor(data)
        self.seed, self.segment = cursor.number(8), cursor.number(4)
        self.mask, self.count = cursor.number(4), cursor.number(4)
        self.fingerprints = data[cursor.position :]
        good = self.segment > 0 and self.segment & (self.segment - 1) == 0 and self.mask == self.segment - 1
        good = good and self.count > 0 and self.count % self.segment == 0
        self.excludes = good and len(self.fingerprints) >= self.count + 2 * self.segment

    def may_have(self, field: bytes) -> bool:
        if not self.excludes:
            return True
        h = (int.from_bytes(hash_of(field)[:8], "little") + self.seed) & MASK
        h ^= h >> 33
        h = h * 0xFF51AFD7ED558CCD & MASK
        h ^= h >> 33
        h = h * 0xC4CEB9FE1A85EC53 & MASK
        h ^= h >> 33
        first = (h * self.count) >> 64
        second = (first + self.segment) ^ ((h >> 18) & self.mask)
        third = (first + 2 * self.segment) ^ (h & self.mask)
        prints = self.fingerprints
        return (h ^ (h >> 32)) & 0xFF == prints[first] ^ prints[second] ^ prints[third]


class Zone:
    def __init__(self, body: Map, columns: list):
        """`columns` are the table's, by number."""
        self.watched = {}
        # How often a filter let a key pass that is not there, out of how many tries.
        self.passed = self.tried = 0
        by_number = {column.number: index for index, column in enumerate(columns)}
        for one in body.maps("columns"):
            number = one.integer("column")
            insist(number in by_number, f"has a zone of a column {number} that the table does not have")
            index = by_number[number]
            insist(index not in self.watched, "has a zone with a column twice")
            intervals = one.array("intervals", list, [])
            insist(len(intervals) <= 8, "has a zone of more than 8 intervals")
            for pair in intervals:
                insist(len(pair) == 2 and all(type(end) is int for end in pair) and pair[0] <= pair[1], "has an interval that is none")
            bounds = [end for pair in intervals for end in pair]
            insist(bounds == sorted(bounds), "has intervals that do not ascend")
            data = one.octets("filter", None, None)
            keys = Filter(data) if data is not None else None
            if intervals:
                insist(columns[index].type_oid in ORDERED, f"has intervals for the type {columns[index].type_name}")
            if keys and keys.excludes:
                for absent in range(64):
                    self.tried += 1
                    self.passed += keys.may_have(b"no key of any store: %d" % absent)
            self.watched[index] = (one.boolean("has_nulls"), intervals, keys, columns[index])

    def check(self, values: list) -> None:
        """Every value of a row (None is NULL) must be a possible one."""
        for index, (has_nulls, intervals, keys, column) in self.watched.items():
            value = values[index]
            if value is None:
                insist(has_nulls, f"has a NULL in {column.name} that its zone denies")
                continue
            if column.type_oid in ORDERED and column.wire == "binary":
                width, infinite = ORDERED[column.type_oid]
                insist(len(value) == width, f"has a {column.type_name} of {len(value)} bytes")
                number = int.from_bytes(value, "big", signed=True)
                if infinite and number in (-(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1):
                    insist(has_nulls, f"has an infinity in {column.name} that its zone denies")
                else:
                    inside = any(low <= number <= high for low, high in intervals)
                    insist(inside, f"has a value in {column.name} outside its zone")
            if keys is not None:
                insist(keys.may_have(value), f"has a key in {column.name} that its filter denies")
