"""Hashes, seals, numbers and CBOR: the conventions of format.md, and section 2's derivation of keys."""

import io
import struct

import cbor2
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

OBJECT_LIMIT = 64 << 20
CHUNK_LIMIT = 4 << 20
DIRECTORY_LIMIT = 4 << 20
VALUE_LIMIT = 1 << 30
INLINE_LIMIT = 512
PAGE_LIMIT = 512
MAP_ROWS_LIMIT = 131_072


class Damage(Exception):
    """Something does not fit format.md."""


def insist(fits: bool, otherwise: str) -> None:
    if not fits:
        raise Damage(otherwise)


def hash_of(data: bytes) -> bytes:
    return blake3(data).digest()


def keyed_hash(key: bytes, data: bytes) -> bytes:
    return blake3(data, key=key).digest()


def derive(context: str, secret: bytes, salt: bytes = b"") -> bytes:
    return blake3(secret + salt, derive_key_context="restante 1 " + context).digest()


def _nonce(number: int) -> bytes:
    return struct.pack("<I", number) + bytes(8)


def seal(key: bytes, number: int, associated: bytes, plain: bytes) -> bytes:
    return AESGCM(key).encrypt(_nonce(number), plain, associated)


def unseal(key: bytes, number: int, associated: bytes, sealed: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(_nonce(number), sealed, associated)
    except (InvalidTag, ValueError):
        raise Damage("the seal is broken") from None


def check_signature(signer: bytes, purpose: str, signature: bytes, signed: bytes) -> None:
    try:
        message = b"restante 1 sign " + purpose.encode() + b"\0" + signed
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Damage("the signature is wrong") from None


def decompress(frame: bytes, length: int) -> bytes:
    """Exactly one Zstandard frame of exactly `length` bytes."""
    # One byte more would be room for the mistake to show; zero would mean "no limit" to the library.
    try:
        plain = zstandard.ZstdDecompressor().decompress(frame, max_output_size=length + 1, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise Damage(f"cannot decompress: {error}") from None
    insist(len(plain) == length, f"decompresses to {len(plain)} bytes instead of {length}")
    return plain


def cbor(data: bytes, deterministic: bool = True) -> object:
    """One CBOR item and nothing behind it; of the metadata also its deterministic encoding is checked."""
    stream = io.BytesIO(data)
    try:
        item = cbor2.load(stream)
    except Exception as error:  # cbor2 lets ValueError, OverflowError and others through besides its own
        raise Damage(f"is no CBOR: {error}") from None
    insist(stream.tell() == len(data), "has bytes behind its CBOR")
    insist(not deterministic or cbor2.dumps(item, canonical=True) == data, "is not deterministic CBOR")
    return item


class Cursor:
    """Reads little-endian numbers and byte strings, and never past the end."""

    def __init__(self, data: bytes, position: int = 0):
        self.data = data
        self.position = position

    def take(self, count: int) -> bytes:
        end = self.position + count
        insist(end <= len(self.data), f"ends before byte {end}")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def numbers(self, count: int, letter: str) -> tuple:
        """`count` numbers as in `struct`: H is u16, I is u32."""
        return struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(letter)))

    def varint(self) -> int:
        value = 0
        for index in range(10):
            byte = self.number(1)
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                insist(value < 1 << 64, "has a varint beyond 64 bits")
                return value
        raise Damage("has a varint of more than ten bytes")

    def zeros(self, count: int) -> None:
        insist(not any(self.take(count)), "has reserved bytes that are not zero")

    def at_end(self) -> bool:
        return self.position == len(self.data)

    def end(self) -> None:
        insist(self.at_end(), f"has {len(self.data) - self.position} bytes too many")


REQUIRED = object()


class Map:
    """A CBOR or JSON map whose keys are fetched by type; keys nobody asks for are ignored (section 16)."""

    def __init__(self, value: object, what: str):
        insist(isinstance(value, dict), f"{what} is no map")
        insist(all(isinstance(key, str) for key in value), f"{what} has keys that are no text")
        self.value = value
        self.what = what

    def _get(self, key: str, kind: type, missing: object) -> object:
        found = self.value.get(key)
        if found is None:
            insist(missing is not REQUIRED, f"{self.what} lacks {key}")
            return missing
        fits = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
        insist(fits, f"{self.what}: {key} is a {type(found).__name__}")
        return found

    def integer(self, key: str, missing: object = REQUIRED) -> int:
        return self._get(key, int, missing)

    def count(self, key: str) -> int:
        found = self.integer(key)
        insist(found >= 0, f"{self.what}: {key} is negative")
        return found

    def text(self, key: str, missing: object = REQUIRED) -> str:
        return self._get(key, str, missing)

    def boolean(self, key: str, missing: object = REQUIRED) -> bool:
        return self._get(key, bool, missing)

    def octets(self, key: str, length: int | None = None, missing: object = REQUIRED) -> bytes:
        found = self._get(key, bytes, missing)
        insist(length is None or found is missing or len(found) == length, f"{self.what}: {key} has a wrong length")
        return found

    def array(self, key: str, kind: type, missing: object = REQUIRED) -> list:
        found = self._get(key, list, missing)
        insist(all(isinstance(item, kind) for item in found), f"{self.what}: {key} holds something else")
        return found

    def ids(self, key: str, missing: object = REQUIRED) -> list[bytes]:
        found = self.array(key, bytes, missing)
        insist(all(len(item) == 32 for item in found), f"{self.what}: {key} holds something that is no id")
        return found

    def maps(self, key: str) -> list["Map"]:
        return [Map(item, f"{self.what}: {key}") for item in self.array(key, dict)]

    def map(self, key: str) -> "Map":
        return Map(self._get(key, dict, REQUIRED), f"{self.what}: {key}")
