"""Twenty hours of mail are gone: what it takes to put them back into the live store, in the ways that there are.

`restante restore` from plan to journal, held against COPY of the very rows, which is the least that PostgreSQL can do, and against what
people do with other backups: the whole table beside, or the whole cluster aside, and a merge. Each has a copy of its own of the damaged store.
"""

import os
import re
import shutil
from pathlib import Path

from measuring import measure, run

# The generator's store is thirty days old: of 60,000 messages these are 1,667.
PART = 36
# What tells the rows of a table apart, and those that belong to the messages `m` of the window.
KEYS = {"attachments": "hash", "messages": "id", "message_attachments": "message_id, ordinal", "keywords": "message_id, keyword"}
IN_WINDOW = {
    "attachments": "exists (select from message_attachments p join messages m on m.id = p.message_id where p.hash = t.hash and {})",
    "messages": "exists (select from messages m where m.id = t.id and {})",
    "message_attachments": "exists (select from messages m where m.id = t.message_id and {})",
    "keywords": "exists (select from messages m where m.id = t.message_id and {})",
}
# Full backups from which a window can be put back by hand.
PEERS = ["copy-zstd", "pg_basebackup", "pgbackrest"]


class Window:
    """The damaged store, and the ways to mend it. `store` is backed up before."""

    def __init__(self, store):
        self.store, self.server, self.work = store, store.server, store.work
        self.lost = store.arguments.lost or max(1, int(self.sql("select count(*) from messages", database=store.database)) // PART)
        first, files, gone, self.back = store.newest(self.lost)
        self.bytes = sum(path.stat().st_size for path in files.values())
        instant = "to_char(({}) at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        told = self.sql(f"select {instant.format('min(saved_at)')}, {instant.format('max(saved_at) + interval $$1 s$$')}"
                        f" from messages where id >= {first}", database=store.database)
        self.begin, self.end = told.split("|")
        self.whole = self.state(store.database)
        self.copy_database(store.database, "damaged")
        self.sql(*gone, "vacuum analyze", "checkpoint", database="damaged")

    def sql(self, *statements, database="live"):
        return self.server.sql(*statements, database=database)

    def state(self, database):
        """Tells the messages of the window, whatever their ids and UIDs are, and what attachments there are."""
        return self.sql("select count(*), sum(hashtextextended(mailbox_id || encode(sha256(body), 'hex'), 0)), sum(extract(epoch from saved_at))"
                        f" from messages where saved_at >= '{self.begin}'",
                        "select count(*), sum(length(content)) from message_attachments join attachments using (hash)", database=database)

    def copy_database(self, origin, name):
        """File by file, and written out, so that no contender pays for it."""
        self.server.settle()
        strategy = "strategy file_copy" if int(self.sql("show server_version_num", database="postgres")) >= 150000 else ""
        self.sql(f"drop database if exists {name}", f"create database {name} template {origin} {strategy}", database="postgres")
        os.sync()

    def mend(self, command, environment=None):
        """Runs a command on a fresh copy of the damaged store, and looks that all is there again."""
        self.copy_database("damaged", "live")
        result = measure(self.server, command, environment)
        if (state := self.state("live")) != self.whole:
            raise SystemExit(f"not all of the mail is back: {state} in place of {self.whole}\n{result['told'][-2000:]}")
        return result

    def restante(self, environment=None):
        environment = {**self.store.restante_environment(), **(environment or {}), "RESTANTE_STORE": self.server.at("live")}
        return self.mend(
            [self.store.programs / "restante", "restore", "latest", "--from", self.begin, "--to", self.end, "-i", self.work / "alice.identity",
             "--yes", "--json", "--progress", "none"], environment)

    def copy_rows(self):
        parts = [part for statement in self.back for part in ("-c", statement)]
        return self.mend(["psql", "-qX1", "-v", "ON_ERROR_STOP=1", self.server.at("live"), *parts])

    def merge(self, source):
        """The rest of a pipeline for each table: `source` says how its rows come, `{}` being the table."""
        live = f"psql -qX -v ON_ERROR_STOP=1 '{self.server.at('live')}'"
        return "\n".join(
            f"{source(table)} | {live} -c 'create temp table side (like {table})' -c 'copy side from stdin (format binary)' -c 'analyze side'"
            f" -c 'insert into {table} select * from side s where not exists (select from {table} t where ({columns('t', keys)}) = ({columns('s', keys)}))'"
            for table, keys in KEYS.items())

    def copy_zstd(self):
        """Everything into a table beside, and of that what is missing."""
        file = lambda table: self.work / f"whole.{table}.zst"
        for table in KEYS:
            if not file(table).exists():
                run("bash", "-c", f"set -eo pipefail; psql -qX '{self.store.dsn}' -c 'copy {table} to stdout (format binary)' | zstd -q -3 -T2 -o '{file(table)}'")
        return self.mend(self.merge(lambda table: f"zstd -dcq '{file(table)}'"))

    def aside(self, restore):
        """A cluster put back aside, started, and what is missing taken from there. It belongs to the command, so its CPU time counts."""
        server, folder = self.server, Path(self.server.folder, "aside")
        shutil.rmtree(folder, ignore_errors=True)
        user = " ".join(server.user)
        port = int(re.search(r"port=(\d+)", server.dsn)[1])
        # Its socket has another folder, so it can have the server's port.
        start = f"postgres -D {folder} -p {port} -k {folder} -c listen_addresses= -c fsync={self.sql('show fsync', database='postgres')} -c archive_mode=off"
        psql = f"psql -qXAt -v ON_ERROR_STOP=1 'host={folder} port={port} user=postgres dbname={self.store.database}'"
        when = f"m.saved_at >= '{self.begin}' and m.saved_at < '{self.end}'"
        rows = lambda table: f'{psql} -c "copy (select * from {table} t where {IN_WINDOW[table].format(when)}) to stdout (format binary)"'
        try:
            return self.mend(f"""
{user} mkdir -m 700 {folder}
{restore.format(user=user, folder=folder)}
{user} {start} &
aside=$!
trap 'kill -INT $aside; wait $aside || true' EXIT
ready() {{ for _ in $(seq 1200); do {psql} -c 'select' 2> /dev/null && return; sleep 0.05; done; return 1; }}
ready
{self.merge(rows)}
""")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def pg_basebackup(self):
        backup = self.work / "basebackup"
        return self.aside(f"zstd -dcq {backup}/base.tar.zst | {{user}} tar -x -C {{folder}}\n{{user}} tar -x -C {{folder}}/pg_wal < {backup}/pg_wal.tar")

    def pgbackrest(self):
        return self.aside(f"{{user}} pgbackrest --config={self.server.folder}/pgbackrest.conf --stanza=bench --pg1-path={{folder}} --type=immediate restore")

    def over(self):
        self.sql("drop database if exists live", "drop database damaged", database="postgres")


def columns(alias, keys):
    return ", ".join(f"{alias}.{key}" for key in keys.split(", "))
