"""Who wrote the repository and how to open it: the configuration (section 3) and the key rings (section 4)."""

import json
import re
from dataclasses import dataclass

import pyrage

from .primitives import Cursor, Damage, Map, cbor, check_signature, hash_of, insist


@dataclass
class Configuration:
    repository: bytes
    fingerprint: bytes
    version: int
    epoch: int
    signers: list[tuple[int, bytes]]
    kept: set[bytes]

    def signers_of(self, epoch: int) -> set[bytes]:
        return {key for of, key in self.signers if of == epoch}


@dataclass
class Secrets:
    """One epoch of a key ring."""

    identity: object
    id_secret: bytes
    seal_secret: bytes
    signers: set[bytes]


@dataclass
class Ring:
    name: str
    readers: list[str]
    epochs: dict[int, Secrets]


def _hexadecimal(text: str, length: int) -> bytes:
    insist(re.fullmatch(r"[0-9a-f]{%d}" % (2 * length), text) is not None, f"{text!r} is not {length} bytes in hexadecimal")
    return bytes.fromhex(text)


def _no_key_twice(pairs: list) -> dict:
    insist(len({key for key, _ in pairs}) == len(pairs), "has a key twice")
    return dict(pairs)


def _json(line: bytes, what: str) -> Map:
    try:
        return Map(json.loads(line.decode(), object_pairs_hook=_no_key_twice), what)
    except ValueError as error:
        raise Damage(f"{what} is no JSON: {error}") from None


def _version(name: str, data: bytes, before: tuple[Configuration, bytes] | None) -> Configuration:
    """One version of the configuration; `before` is the one that it follows, with its bytes."""
    lines = data.split(b"\n")
    insist(len(lines) == 3 and lines[2] == b"", "has not exactly two lines")
    signature = _json(lines[1], "the signature")
    signer = _hexadecimal(signature.text("signer"), 32)
    check_signature(signer, "configuration", _hexadecimal(signature.text("signature"), 64), lines[0] + b"\n")
    body = _json(lines[0], "the configuration")
    insist(body.text("magic") == "restante repository", "has another magic")
    insist(body.integer("format") == 1, f"is of format {body.integer('format')}, this reader knows 1")
    needs = body.map("needs")
    insist(not needs.array("read", str, []), f"needs features that this reader does not know: {needs.value.get('read')}")
    signers = [(one.integer("epoch"), _hexadecimal(one.text("key"), 32)) for one in body.maps("signers")]
    configuration = Configuration(
        repository=_hexadecimal(body.text("repository"), 16),
        fingerprint=before[0].fingerprint if before else hash_of(data),
        version=body.integer("version"),
        epoch=body.integer("epoch"),
        signers=signers,
        kept={_hexadecimal(one, 32) for one in body.array("kept", str, [])},
    )
    body.text("created")
    if before is None:
        judge = configuration
        insist(configuration.version == 1 and body.text("previous", None) is None, "is not a first version")
    else:
        judge, earlier = before
        insist(configuration.version == judge.version + 1, f"is version {configuration.version} after {judge.version}")
        insist(body.text("previous") == hash_of(earlier).hex(), "does not follow the version before")
        insist(configuration.repository == judge.repository, "is of another repository")
        insist(configuration.epoch >= judge.epoch, "goes back to an earlier epoch")
    insist(signer in judge.signers_of(judge.epoch), "is signed by somebody who has no say")
    return configuration


def configuration(storage, findings) -> Configuration:
    """Follows the chain from `repository.json` to the newest version."""
    with findings.about("repository.json", fatal=True):
        data = storage.get("repository.json")
        current = _version("repository.json", data, None)
    later = {}
    for name in storage.list("config/"):
        with findings.about(name, fatal=True):
            found = re.fullmatch(r"config/([1-9][0-9]*)-([0-9a-f]{64})", name)
            insist(found is not None, "is no name of a configuration")
            insist(int(found[1]) not in later, "is a fork: there is another of this number")
            content = storage.get(name)
            insist(hash_of(content).hex() == found[2], "is not what its name says")
            later[int(found[1])] = (name, content)
    for number in sorted(later):
        name, content = later[number]
        with findings.about(name, fatal=True):
            current, data = _version(name, content, (current, data)), content
            insist(current.version == number, "has another version than its name")
    return current


def identities(files: list[str]) -> list:
    """age identities, one a line, or an SSH private key a file."""
    found = []
    for file in files:
        with open(file, "rb") as handle:
            content = handle.read()
        if b"PRIVATE KEY" in content:
            found.append(pyrage.ssh.Identity.from_buffer(content))
            continue
        for line in content.decode().splitlines():
            if line.strip() and not line.startswith("#"):
                found.append(pyrage.x25519.Identity.from_str(line.strip()))
    return found


def open_age(data: bytes, own: list) -> bytes | None:
    """The plaintext of an age file; `None` when it is not for these identities or is damaged."""
    try:
        return pyrage.decrypt(data, own)
    except pyrage.DecryptError:
        return None


def _ring(name: str, epoch: int, number: int, plain: bytes, configuration: Configuration) -> Ring:
    cursor = Cursor(plain)
    insist(cursor.take(8) == b"RSTRING1", "has another magic")
    signer, signature = cursor.take(32), cursor.take(64)
    content = plain[cursor.position :]
    check_signature(signer, "key ring", signature, content)
    insist(signer in configuration.signers_of(epoch), "is signed by nobody whom the configuration names for its epoch")
    body = Map(cbor(content), "the ring")
    insist(body.octets("repository", 16) == configuration.repository, "is of another repository")
    insist(body.octets("fingerprint", 32) == configuration.fingerprint, "has another fingerprint")
    insist((body.integer("epoch"), body.integer("number")) == (epoch, number), "has another number than its name")
    epochs = {}
    for one in body.maps("epochs"):
        insist(one.integer("epoch") not in epochs, "has an epoch twice")
        epochs[one.integer("epoch")] = Secrets(
            identity=pyrage.x25519.Identity.from_str(one.text("identity")),
            id_secret=one.octets("id_secret", 32),
            seal_secret=one.octets("seal_secret", 32),
            signers=set(one.ids("signers")),
        )
    insist(set(epochs) == set(range(1, epoch + 1)), f"holds the epochs {sorted(epochs)}, not 1 to {epoch}")
    return Ring(name, body.array("readers", str), epochs)


def newest_ring(storage, own: list, configuration: Configuration, findings) -> Ring:
    """The ring that a reader takes. One that is not for him is passed over; one that is damaged is also a finding."""
    newest = None
    for name in storage.list("keys/"):
        with findings.about(name):
            found = re.fullmatch(r"keys/([1-9][0-9]*)/([1-9][0-9]*)-([0-9a-f]{64})\.age", name)
            insist(found is not None, "is no name of a key ring")
            data = storage.get(name)
            insist(hash_of(data).hex() == found[3], "is not what its name says")
            plain = open_age(data, own)
            if plain is None:
                continue
            place = (int(found[1]), int(found[2]))
            ring = _ring(name, *place, plain, configuration)
            if newest is None or place > newest[0]:
                newest = (place, ring)
    with findings.about("keys/", fatal=True):
        insist(newest is not None, "has no ring that these identities open")
    return newest[1]
