"""Signed objects (section 5) and where objects are kept (section 1)."""

import os
import re

from .primitives import OBJECT_LIMIT, Cursor, Damage, Map, cbor, check_signature, decompress, derive, hash_of, insist, unseal

KINDS = ["", "index", "manifest", "certificate", "checkpoint", "tombstone", "forgotten", "verified", "change", "replay", "lease"]


class Directory:
    """A repository in a directory."""

    def __init__(self, path: str):
        self.path = path

    def list(self, prefix: str) -> list[str]:
        found = []
        for folder, _, files in os.walk(os.path.join(self.path, prefix)):
            for file in files:
                found.append(os.path.relpath(os.path.join(folder, file), self.path))
        for name in found:
            parts = name.split("/")
            insist(all(re.fullmatch(r"[A-Za-z0-9._-]+", part) for part in parts), f"{name!r} is no name of an object")
        return sorted(found)

    def get(self, name: str) -> bytes:
        try:
            with open(os.path.join(self.path, name), "rb") as file:
                data = file.read(OBJECT_LIMIT + 1)
        except FileNotFoundError:
            raise Damage("is not there") from None
        insist(len(data) <= OBJECT_LIMIT, "is larger than 64 MiB")
        return data

    def part(self, name: str, start: int, length: int) -> bytes:
        with open(os.path.join(self.path, name), "rb") as file:
            file.seek(start)
            return file.read(length)


class Findings:
    """What disagrees with format.md. Reading goes on, so that one run tells everything."""

    def __init__(self):
        self.all = []
        # Objects of epochs that began after this reader was removed: not for him, and no damage.
        self.later = []

    def about(self, name: str, fatal: bool = False) -> "_About":
        return _About(self, name, fatal)


class NotForHim(Exception):
    """An object of an epoch that began after the newest ring of this reader."""


def secrets_of(epoch: int, configuration, epochs: dict):
    if max(epochs) < epoch <= configuration.epoch:
        raise NotForHim(f"is of epoch {epoch}, for whose key ring these identities are not")
    insist(epoch in epochs, f"is of epoch {epoch}, which never began")
    return epochs[epoch]


class Stop(Exception):
    """Nothing more can be read after the last finding."""


class _About:
    def __init__(self, findings: Findings, name: str, fatal: bool):
        self.findings, self.name, self.fatal = findings, name, fatal

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, NotForHim):
            self.findings.later.append(f"{self.name}: {error}")
            return True
        if not isinstance(error, Damage):
            return False
        self.findings.all.append(f"{self.name}: {error}")
        if self.fatal:
            raise Stop(self.findings.all[-1]) from error
        return True


def open_object(data: bytes, kind: str, configuration, epochs: dict) -> tuple[Map, int]:
    """Checks and opens a signed object, in the order that section 5 asks for; returns its body and epoch."""
    cursor = Cursor(data)
    insist(cursor.take(8) == b"RSTOBJ01", "has another magic")
    insist(cursor.number(1) == KINDS.index(kind), f"is no {kind}")
    cursor.zeros(3)
    epoch = cursor.number(4)
    insist(cursor.take(16) == configuration.repository, "is of another repository")
    salt = cursor.take(32)
    length, sealed_length = cursor.number(4), cursor.number(4)
    header = data[:72]
    insist(length <= OBJECT_LIMIT, "claims more than 64 MiB")
    sealed = cursor.take(sealed_length)
    signer = cursor.take(32)
    signed = data[: cursor.position]
    signature = cursor.take(64)
    cursor.end()
    check_signature(signer, kind, signature, signed)
    secrets = secrets_of(epoch, configuration, epochs)
    insist(signer in secrets.signers, "is signed by nobody whose signature counts")
    frame = unseal(derive("seal " + kind, secrets.seal_secret, salt), 0, header, sealed)
    return Map(cbor(decompress(frame, length)), f"the {kind}"), epoch


def by_hash(storage, name: str, digits: str) -> bytes:
    """An object that is named by its hash."""
    data = storage.get(name)
    insist(hash_of(data).hex() == digits, "is not what its name says")
    return data
