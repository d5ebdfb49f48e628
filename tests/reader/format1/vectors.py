"""The test vectors of section 18, computed again."""

import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import cbor2

from .packs import Entry, open_chunk
from .primitives import Cursor, derive, insist, keyed_hash, seal
from .values import LARGE, NULL, RowMap, encode_base64, map_hash, multiset_digest, row_digest, run_recipe, split_rows, value_map
from .zones import Filter


class _Secrets:
    def __init__(self, secret: bytes):
        self.id_secret = self.seal_secret = secret


def check(page: str) -> int:
    """Checks the block of vectors in the text of format.md; returns how many there are."""
    block = page.split("```vectors\n")[1].split("```")[0]
    given = {name: bytes.fromhex(digits) for name, digits in (line.split(" = ") for line in block.splitlines())}
    secret, salt, plain = given["secret"], given["salt"], given["plain"]
    salted = {"seal directory", "pack-meta", "seal index", "seal manifest", "seal certificate"}
    computed = {"secret": secret, "salt": salt, "plain": plain}
    for name in given:
        if name.startswith("key "):
            context = name.removeprefix("key ")
            computed[name] = derive(context, secret, salt if context in salted else b"")

    repository = bytes([7]) * 16
    chunk = computed["chunk id row"] = keyed_hash(computed["key chunk-id row"], plain)
    associated = b"restante 1 chunk" + repository + b"\2" + chunk + struct.pack("<IBI", len(plain), 0, 258)
    computed["chunk associated data"] = associated
    computed["chunk sealed"] = seal(secret, 258, associated, plain)
    entry = Entry(chunk, 0, 0, 258, 4096, len(plain) + 16, len(plain))
    insist(open_chunk(given["chunk sealed"], entry, "row", secret, repository, _Secrets(secret)) == plain, "chunk sealed does not open")
    computed["entry"] = struct.pack("<I32sHBBIIII", 1, chunk, 0, 0, 0, 258, 4096, len(plain) + 16, len(plain))

    large = b"a" * 600
    row = [None, bytes.fromhex("0000002a"), large]
    large_hash = computed["value hash"] = keyed_hash(computed["key value-hash"], large)
    digest = computed["row digest"] = row_digest(computed["key row-digest"], row, {2: large_hash})
    computed["multiset digest"] = multiset_digest([digest, digest])
    insist(list(split_rows(given["row chunk"], 1, 3)) == [[NULL, row[1], LARGE]], "row chunk does not split")
    computed["row chunk"] = b"\0" + b"\6" + row[1] + b"\1"
    computed["row map"] = struct.pack("<IIHI", 1, 1, 2, 3) + digest
    rows = RowMap([given["row map"]])
    insist((rows.places, rows.xmins, rows.digests) == ([(1, 2)], [3], [digest]), "row map does not parse")
    computed["map hash"] = map_hash([((1, 2), 3)])

    chunks = [bytes(range(256)) * 2, bytes(57)]
    value = run_recipe(Cursor(given["recipe"]), chunks.__getitem__)
    insist(value == chunks[0][10:310] + encode_base64(bytes(57), 76, True, True) and len(value) == 378, "recipe gives another value")
    computed["recipe"] = bytes.fromhex("fa02 000aac02 0300394c03")
    hashes, cursor = value_map(given["value map"], 1)
    insist(hashes == [large_hash[:16]] and cursor.data[cursor.position :] == given["recipe"], "value map does not parse")
    computed["value map"] = struct.pack("<I", 1) + large_hash[:16] + given["recipe"]
    computed["base64"] = encode_base64(plain, 4, False, True)

    key = Ed25519PrivateKey.from_private_bytes(secret)
    computed["signer"] = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    computed["signature"] = key.sign(b"restante 1 sign manifest\0" + plain)
    computed["slot seal"] = salt + seal(computed["key pack-meta"], 0, b"", secret)
    fragment = {"version": 1, "level": 0, "supersedes": [secret], "packs": []}
    computed["cbor"] = cbor2.dumps(fragment, canonical=True)
    names = Filter(given["filter"])
    insist(all(map(names.may_have, (b"alice", b"bob", b"carol"))) and not names.may_have(b"dave"), "filter answers otherwise")
    computed["filter"] = given["filter"]

    for name in given:
        insist(computed.get(name) == given[name], f"the vector {name} comes out otherwise")
    return len(given)
