"""What the benchmarks measure with: a PostgreSQL of their own, what a command takes, with the server's share, and a relay
that counts what goes to and fro."""

import asyncio
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
TICK = os.sysconf("SC_CLK_TCK")


def say(text=""):
    print(text, flush=True)


def run(*command, **more):
    return subprocess.run([str(part) for part in command], check=True, text=True, capture_output=True, **more).stdout


def stat(pid):
    """The fields of /proc/PID/stat behind the name, or nothing when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def title(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children():
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := stat(entry)):
            found.setdefault(int(fields[1]), []).append(int(entry))
    return found


class Server:
    """A PostgreSQL for this run. Autovacuum is off, so that nothing but the contenders makes it work."""

    def __init__(self, can_archive=False):
        self.folder, self.dsn = run(ROOT / "scripts/scratch-postgres").split("\n")[:2]
        # What has to run as the server's user.
        self.user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        try:
            self.sql("alter system set autovacuum = off", "alter system set max_wal_size = '8GB'", "select pg_reload_conf()")
            if can_archive:
                self.sql("alter system set archive_mode = on")
                self.archive("true")
                run(ROOT / "scripts/scratch-postgres", "restart", self.folder)
            self.pid = int(Path(self.folder, "data/postmaster.pid").read_text().split()[0])
        except BaseException:
            self.stop()
            raise

    def stop(self):
        run(ROOT / "scripts/scratch-postgres", "stop", self.folder)

    def sql(self, *statements, database="mail"):
        parts = [part for statement in statements for part in ("-c", statement)]
        return run("psql", "-qXAt", "-v", "ON_ERROR_STOP=1", self.at(database), *parts).strip()

    def archive(self, command):
        """What becomes of WAL from now on; "true" archives nothing and costs next to nothing."""
        self.sql(f"alter system set archive_command = '{command}'", "select pg_reload_conf()")

    def at(self, database):
        return self.dsn.replace("dbname=mail", f"dbname={database}")

    def settle(self):
        """Until only the server's own processes are left: then the time of every backend is in the postmaster's account."""
        own = ("checkpointer", "background writer", "walwriter", "autovacuum launcher", "logical replication launcher", "io worker",
               "stats collector", "archiver")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            titles = [title(pid) for pid in children().get(self.pid, [])]
            # A process that has ended and was not waited for yet has no title.
            if all(text.startswith(tuple(f"postgres: {name}" for name in own)) for text in titles):
                return
            time.sleep(0.02)
        sys.exit(f"the server does not come to rest: {titles}")

    def cpu(self):
        """Seconds of the postmaster, of its children that live, and of all that these have waited for (the archiver has children too)."""
        living = [stat(pid) for pid in [self.pid, *children().get(self.pid, [])]]
        return sum(int(field) for fields in living if fields for field in fields[11:15]) / TICK


class Peaks(threading.Thread):
    """Watches the peak memory of a process and its descendants."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peaks, self.over = pid, {}, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.05):
            tree, known = [self.pid], children()
            for pid in tree:
                tree.extend(known.get(pid, []))
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if match := re.search(r"VmHWM:\s+(\d+)", status):
                    self.peaks[pid] = max(self.peaks.get(pid, 0), int(match[1]) * 1024)

    def stop(self):
        self.over.set()
        self.join()
        return sum(self.peaks.values())


def measure(server, command, environment=None):
    """Runs a command, or a pipeline given as text, and says what it took."""
    if isinstance(command, str):
        command = ["bash", "-c", "set -eo pipefail; " + command]
    log = tempfile.TemporaryFile()
    server.settle()
    before, begin = server.cpu(), time.monotonic()
    child = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env={**os.environ, **(environment or {})})
    peaks = Peaks(child.pid)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.kill()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - begin
    memory = peaks.stop()
    server.settle()
    log.seek(0)
    told = log.read().decode(errors="replace")
    if child.returncode != 0:
        sys.exit(f"failed ({child.returncode}): {' '.join(map(str, command))}\n{told[-2000:]}")
    client, backend = usage.ru_utime + usage.ru_stime, server.cpu() - before
    return {
        "cpu": client + backend, "client_cpu": client, "client_system_cpu": usage.ru_stime, "server_cpu": backend,
        "wall": wall, "rss": memory, "stored": None, "told": told,
    }


def stored(path):
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


class Relay:
    """A process that passes connections on to a server, each direction later by half of `delay`, and counts."""

    def __init__(self, target, delay=0):
        self.target, self.delay = target, delay
        self.requests, self.received = multiprocessing.Value("q", 0), multiprocessing.Value("q", 0)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.process = multiprocessing.Process(target=self.work, args=(listening,), daemon=True)
        self.process.start()
        listening.close()

    def work(self, listening):
        # Not the parent's way to end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asyncio.run(self.serve(listening))

    async def serve(self, listening):
        async with await asyncio.start_server(self.connected, sock=listening) as server:
            await server.serve_forever()

    async def connected(self, reader, writer):
        onward_reader, onward_writer = await asyncio.open_connection(*self.target)
        # One request at a time goes over a connection, so one begins whenever the client speaks after the server has.
        answered = [True]

        def asked(_):
            self.requests.value += answered[0]
            answered[0] = False

        def told(data):
            self.received.value += len(data)
            answered[0] = True

        await asyncio.gather(self.carry(reader, onward_writer, asked), self.carry(onward_reader, writer, told))

    async def carry(self, reader, writer, seen):
        """What comes later waits here, so that the delay does not limit how much is on its way."""
        waiting, clock = asyncio.Queue(0 if self.delay else 1), asyncio.get_running_loop()

        async def deliver():
            while True:
                due, data = await waiting.get()
                if (rest := due - clock.time()) > 0:
                    await asyncio.sleep(rest)
                if not data:
                    break
                writer.write(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        try:
            while data := await reader.read(1 << 18):
                seen(data)
                await waiting.put((clock.time() + self.delay / 2, data))
        except ConnectionError:
            pass
        try:
            await waiting.put((clock.time() + self.delay / 2, b""))
            await delivery
            writer.close()
        except ConnectionError:
            pass

    def stop(self):
        self.process.terminate()
        self.process.join()
