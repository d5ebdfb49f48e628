#!/usr/bin/env python3
"""Proves, from outside, that a restore put every lost mail back once and nothing else.

Reads the journal that lies outside the database and the live store (through psql), and compares multisets of
(mailbox, SHA-256 of the raw mail, flags). Shares no code with Restante, nor with the driver that wrote the
journal; needs only Python and psql.

    proof.py --dsn DSN --journal FILE --snapshot 'xmin:xmax:xip'|RFC3339 [--beyond] [--json]

Exit 0: nothing lost, doubled, resurrected, altered, no wrong flags, all counters right. Exit 1: something is not.
Lost: the snapshot held it, the damage destroyed it, it is not back. Altered: mail that nobody ever delivered.
A mail of which the journal cannot say whether it must be back (it was being committed when the
snapshot was taken, or it was lost, arrived again and was expunged before its restore) may be there or not.
"""

import argparse
import collections
import datetime
import json
import subprocess
import sys

IGNORED_AFTER_RESTORE = {"\\Recent", "\\Deleted"}

# The raw mail: the body with each attachment put in at its place. A missing attachment makes it NULL.
LIVE = r"""
with pieces as (
    select p.message_id, p.ordinal,
           substr(m.body, (coalesce(lag(p.position) over w, 0) + 1)::int,
                  (p.position - coalesce(lag(p.position) over w, 0))::int) || a.content as piece,
           p.position, (a.hash is null) as missing
    from message_attachments p join messages m on m.id = p.message_id left join attachments a on a.hash = p.hash
    window w as (partition by p.message_id order by p.ordinal)
), joined as (
    select message_id, string_agg(piece, ''::bytea order by ordinal) as front, max(position) as at, bool_or(missing) as missing
    from pieces group by message_id
)
copy_start
select encode(convert_to(a.address, 'UTF8'), 'hex'), encode(convert_to(b.name, 'UTF8'), 'hex'), m.uid,
       case when j.missing then 'incomplete'
            else encode(sha256(case when j.message_id is null then m.body
                                    else j.front || substr(m.body, (j.at + 1)::int) end), 'hex') end,
       concat_ws(',', case when m.seen then '\Seen' end, case when m.answered then '\Answered' end,
                 case when m.flagged then '\Flagged' end, case when m.draft then '\Draft' end,
                 case when m.deleted then '\Deleted' end, case when m.recent then '\Recent' end),
       coalesce((select string_agg(encode(convert_to(k.keyword, 'UTF8'), 'hex'), ',') from keywords k
                 where k.message_id = m.id), ''),
       coalesce(m.size = octet_length(m.body) + coalesce((select sum(x.size) from message_attachments p
                 join attachments x using (hash) where p.message_id = m.id), 0), false)
from messages m join mailboxes b on b.id = m.mailbox_id join accounts a on a.id = b.account_id
left join joined j on j.message_id = m.id
where b.deleted_at is null
"""

COUNTERS = {
    "a UID is not below UIDNEXT": """select count(*) from messages m join mailboxes b on b.id = m.mailbox_id
        where m.uid >= b.uidnext""",
    "a UID is held twice": "select count(*) from (select from messages group by mailbox_id, uid having count(*) > 1) d",
    "a MODSEQ is above HIGHESTMODSEQ": """select count(*) from messages m join mailboxes b on b.id = m.mailbox_id
        where m.modseq > b.highestmodseq""",
    "mailbox_stats are wrong": """select count(*) from mailboxes b left join mailbox_stats s on s.mailbox_id = b.id
        cross join lateral (select count(*) as n, coalesce(sum(size), 0) as bytes from messages m where m.mailbox_id = b.id) t
        where (coalesce(s.messages, 0), coalesce(s.bytes, 0)) <> (t.n, t.bytes)""",
    "accounts.used_bytes are wrong": """select count(*) from accounts a where used_bytes <> coalesce((select sum(m.size)
        from messages m join mailboxes b on b.id = m.mailbox_id where b.account_id = a.id), 0)""",
    "a message lies in a deleted mailbox": """select count(*) from messages m join mailboxes b on b.id = m.mailbox_id
        where b.deleted_at is not null""",
    "children hang on to no message": """select (select count(*) from message_attachments c where not exists
            (select from messages m where m.id = c.message_id))
        + (select count(*) from keywords c where not exists (select from messages m where m.id = c.message_id))""",
}
for _table in ("accounts", "mailboxes", "messages", "expunged", "outbox"):
    COUNTERS[f"the sequence of {_table} is behind"] = (
        f"select count(*) from {_table}_id_seq s where (case when s.is_called then s.last_value else s.last_value - 1 end)"
        f" < coalesce((select max(id) from {_table}), 0)"
    )


class Store:
    def __init__(self, dsn):
        self.dsn = dsn

    def rows(self, sql):
        command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.dsn, "-f", "-"]
        sql = f"copy ({sql.replace('copy_start', '')}) to stdout;"
        told = subprocess.run(command, input=sql.encode(), stdout=subprocess.PIPE, check=True).stdout.decode("ascii")
        return [line.split("\t") for line in told.splitlines()]

    def number(self, sql):
        return int(self.rows(sql)[0][0])


def text(hexed):
    return bytes.fromhex(hexed).decode("utf-8")


class Snapshot:
    """Which transactions the snapshot saw: True, False, or None where only a clock could tell."""

    def __init__(self, given):
        parts = given.split(":")
        if len(parts) == 3 and parts[0].isdigit() and parts[1].isdigit():
            self.end = int(parts[1])
            self.running = {int(xid) for xid in parts[2].split(",") if xid}
            self.instant = None
        else:
            moment = datetime.datetime.fromisoformat(given)
            if moment.tzinfo is None:
                sys.exit("proof: the snapshot's time needs a zone, such as Z")
            self.instant = moment.timestamp() * 1000

    def saw(self, xid, begun, done):
        if self.instant is None:
            return xid < self.end and xid not in self.running
        if done < self.instant:
            return True
        return False if begun > self.instant else None


class Mail:
    """One copy of a mail in one mailbox, as the journal tells its life."""

    __slots__ = ("hash", "flags", "kept", "doubtful", "stands_for")

    def __init__(self, digest, flags, kept, doubtful=False, stands_for=None):
        self.hash = digest
        self.flags = frozenset(flags)
        self.kept = kept  # flags that the snapshot may hold; None: it does not hold the mail
        self.doubtful = doubtful
        self.stands_for = stands_for


class Box:
    def __init__(self):
        self.by_uid = {}
        self.lost = []
        self.returned = []
        self.either = []

    def everything(self):
        return [*self.by_uid.values(), *self.lost, *self.returned]


def draw(pile, digest, was=None):
    """Takes a mail from a pile: rather one that a restore gave the flags `was`, rather one that the snapshot holds."""
    chosen = None
    for at, mail in enumerate(pile):
        if mail.hash == digest:
            fits = was is not None and free(was) in [free(flags) for flags in mail.kept or []]
            rank = (fits, mail.kept is not None, -at)
            chosen = rank if chosen is None else max(chosen, rank)
    return None if chosen is None else pile.pop(-chosen[2])


class History:
    def __init__(self):
        self.boxes = {}
        self.destroyed = {}
        self.removed = set()
        self.odd = []
        self.outbox = 0
        self.damaged = False
        self.after_damage = 0

    def box(self, name):
        if name not in self.boxes:
            self.boxes[name] = self.destroyed.pop(name, None) or Box()
        return self.boxes[name]

    def take(self, of):
        name, uid, digest, was = tuple(of["mailbox"]), of["uid"], of["hash"], of.get("was")
        box = self.box(name)
        mail = box.by_uid.get(uid)
        if mail is not None and mail.hash == digest:
            return box.by_uid.pop(uid)
        for pile in (box.returned, box.lost, box.either, getattr(self.destroyed.get(name), "lost", [])):
            mail = draw(pile, digest, was)
            if mail is not None:
                # A restore gave it the flags of the snapshot, not those that it was lost with.
                mail.flags = mail.flags if was is None else frozenset(was)
                return mail
        self.odd.append((name, digest))
        return None

    def arrive(self, to, seen):
        box = self.box(tuple(to["mailbox"]))
        digest = to["hash"]
        known = sum(mail.hash == digest for mail in [*box.by_uid.values(), *box.returned])
        for _ in range(known, to.get("present") or 0):
            back = draw(box.lost, digest)
            if back is not None:
                box.returned.append(back)
        flags = frozenset(to["flags"])
        kept = None if seen is False else [flags]
        replaced = draw(box.lost, digest)
        if replaced is not None and replaced.kept is not None:
            # It may as well stand for another equal mail; then this one comes back, with its own flags.
            for other in box.lost:
                if other.hash == digest and other.kept is not None:
                    other.kept = [*other.kept, *replaced.kept]
        box.by_uid[to["uid"]] = Mail(digest, flags, kept, seen is None, replaced)
        # The mailbox took the name of a destroyed one that held the same mail: whether both are one is a matter of view.
        namesake = self.destroyed.get(tuple(to["mailbox"]))
        twin = draw(namesake.lost, digest) if namesake else None
        if twin is not None:
            box.either.append(twin)

    def leave(self, of):
        name = tuple(of["mailbox"])
        mail = self.take(of)
        self.removed.add((name, of["hash"]))
        if mail is not None and mail.stands_for is not None:
            self.box(name).either.append(mail.stands_for)

    def apply(self, change, seen):
        kind = change["op"]
        self.after_damage += self.damaged
        if kind == "arrive":
            self.outbox += change["outbox"]
            self.arrive(change["to"], seen)
        elif kind == "copy":
            of = change["of"]
            mail = self.take(of)
            if mail is not None:
                self.box(tuple(of["mailbox"])).by_uid[of["uid"]] = mail
            self.arrive(change["to"], seen)
        elif kind == "move":
            self.leave(change["of"])
            self.arrive(change["to"], seen)
        elif kind == "flag":
            of = change["of"]
            mail = self.take(of)
            if mail is not None:
                mail.flags = frozenset(change["flags"])
                if mail.kept is not None:
                    mail.kept = {True: [mail.flags], None: [*mail.kept, mail.flags], False: mail.kept}[seen]
                self.box(tuple(of["mailbox"])).by_uid[of["uid"]] = mail
        elif kind == "expunge":
            self.leave(change["of"])
        elif kind == "create_mailbox":
            self.boxes[tuple(change["mailbox"])] = Box()
        elif kind == "rename_mailbox":
            box = self.box(tuple(change["mailbox"]))
            del self.boxes[tuple(change["mailbox"])]
            self.boxes[tuple(change["to"])] = box
        elif kind == "delete_mailbox":
            name = tuple(change["mailbox"])
            self.removed |= {(name, mail.hash) for mail in self.box(name).everything()}
            del self.boxes[name]
        elif kind == "damage":
            self.damaged = True
            for of in change["lost"]:
                mail = self.take(of)
                if mail is not None:
                    self.box(tuple(of["mailbox"])).lost.append(mail)
            for name in map(tuple, change["mailboxes"]):
                if name in self.boxes:
                    self.destroyed[name] = self.boxes.pop(name)
        else:
            sys.exit(f"proof: the journal has an operation {kind!r} that this proof does not know")


def read_journal(path, store, snapshot):
    with open(path, "rb") as file:
        lines = [json.loads(line) for line in file if line.endswith(b"\n")]
    done = {line["xid"]: line["time"] for line in lines if line["line"] == "done"}
    aborted = {line["xid"] for line in lines if line["line"] == "abort"}
    history = History()
    resolved = 0
    for line in lines:
        if line["line"] == "mailbox":
            history.boxes[tuple(line["mailbox"])] = Box()
        elif line["line"] == "message":
            flags = frozenset(line["flags"])
            history.box(tuple(line["mailbox"])).by_uid[line["uid"]] = Mail(line["hash"], flags, [flags])
        elif line["line"] == "loaded":
            history.outbox += line["outbox"]
        elif line["line"] == "intent":
            xid = line["xid"]
            if xid in aborted:
                continue
            if xid not in done:
                # Killed between the commit and its line: the server knows.
                status = store.rows(f"select pg_xact_status('{int(xid)}'::xid8)")[0][0]
                resolved += 1
                if status == "aborted":
                    continue
                if status != "committed":
                    sys.exit(f"proof: the server says {status} of transaction {xid}; stop the driver, or this is another cluster")
            history.apply(line["change"], snapshot.saw(xid, line["time"], done.get(xid, float("inf"))))
    return history, resolved


def expectation(history):
    alive = collections.defaultdict(list)
    restored = collections.defaultdict(list)
    optional = collections.Counter()
    beyond = []
    for name, box in [*history.boxes.items(), *history.destroyed.items()]:
        for mail in box.by_uid.values():
            alive[name, mail.hash].append(mail.flags)
        for mail in box.returned:
            restored[name, mail.hash].append(mail.kept or [])
        for mail in box.lost:
            if mail.kept is None:
                beyond.append((name, mail.hash))
                optional[name, mail.hash] += 1
            elif mail.doubtful:
                optional[name, mail.hash] += 1
            else:
                restored[name, mail.hash].append(mail.kept)
        for mail in box.either:
            optional[name, mail.hash] += 1
    return alive, restored, optional, beyond


def free(flags):
    return frozenset(f for f in flags if f not in IGNORED_AFTER_RESTORE and not f.startswith("$Restored"))


def compare(history, rows):
    alive, restored, optional, beyond = expectation(history)
    found = collections.defaultdict(list)
    sizes = []
    for address, name, _uid, digest, flags, keywords, size_right in rows:
        name = (text(address), text(name))
        if name not in history.boxes and name[1].startswith("Recovered/"):
            name = (name[0], name[1][len("Recovered/"):])
        flags = {flag for flag in flags.split(",") if flag} | {text(word) for word in keywords.split(",") if word}
        # COPY doubles the backslash of a flag.
        found[name, digest].append(frozenset(flag.replace("\\\\", "\\") for flag in flags))
        if size_right != "t":
            sizes.append((name, digest))
    findings = {word: [] for word in ("lost", "doubled", "resurrected", "altered", "flags", "odd", "size")}
    findings["odd"] = list(history.odd)
    findings["size"] = sizes
    for key in sorted({*alive, *restored, *optional, *found}):
        there = list(found.get(key, []))
        must = len(alive.get(key, [])) + len(restored.get(key, []))
        may = must + optional.get(key, 0)
        findings["lost"] += [key] * max(0, must - len(there))
        surplus = [key] * max(0, len(there) - may)
        if may:
            findings["doubled"] += surplus
        elif key in history.removed:
            findings["resurrected"] += surplus
        else:
            findings["altered"] += surplus
        wrong = 0
        for flags in alive.get(key, []):
            if flags in there:
                there.remove(flags)
            else:
                wrong += 1
        for choices in restored.get(key, []):
            wanted = {free(choice) for choice in choices}
            match = next((flags for flags in there if not choices or free(flags) in wanted), None)
            if match is None:
                wrong += 1
            else:
                there.remove(match)
        findings["flags"] += [key] * min(wrong, len(there))
    tallies = {
        "in the live store": sum(map(len, found.values())),
        "never lost": sum(map(len, alive.values())),
        "lost and to be back": sum(map(len, restored.values())),
        "may be there or not": sum(optional.values()) - len(beyond),
        "changes after the damage": history.after_damage,
    }
    return findings, beyond, tallies


def shown(key):
    (address, mailbox), digest = key
    return f"{address} {json.dumps(mailbox)} {digest[:16]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dsn", "-d", required=True)
    parser.add_argument("--journal", required=True)
    parser.add_argument("--snapshot", required=True, help="pg_current_snapshot() of the snapshot (exact), or its time, RFC 3339")
    parser.add_argument("--beyond", action="store_true", help="list what was lost beyond the snapshot")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    store = Store(arguments.dsn)
    history, resolved = read_journal(arguments.journal, store, Snapshot(arguments.snapshot))
    findings, beyond, tallies = compare(history, store.rows(LIVE))
    tallies["commits asked of the server"] = resolved
    counters = {what: count for what, sql in COUNTERS.items() if (count := store.number(sql))}
    letters = store.number("select count(*) from outbox")
    if letters != history.outbox:
        counters["letters in the outbox that no delivery wrote"] = letters - history.outbox
    good = not any(findings.values()) and not counters

    if arguments.json:
        told = {word: [[*key[0], key[1]] for key in keys] for word, keys in findings.items()}
        told |= {"beyond": [[*key[0], key[1]] for key in beyond], "counters": counters, "tallies": tallies, "good": good}
        print(json.dumps(told))
        return 0 if good else 1
    for what, count in tallies.items():
        print(f"{count:>9}  {what}")
    print(f"{len(beyond):>9}  beyond the snapshot")
    if arguments.beyond:
        for key in sorted(beyond):
            print(f"           {shown(key)}")
    meanings = {
        "lost": "lost",
        "doubled": "doubled",
        "resurrected": "resurrected",
        "altered": "altered: mail that nobody delivered",
        "flags": "with wrong flags",
        "odd": "touched by a user although it could not be there",
        "size": "whose size does not fit its bytes",
    }
    for word, meaning in meanings.items():
        keys = findings[word]
        print(f"{len(keys):>9}  {meaning}")
        for key in keys[:5]:
            print(f"           {shown(key)}")
    for what, count in counters.items():
        print(f"{count:>9}  {what}")
    print("PROVEN" if good else "NOT PROVEN")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
