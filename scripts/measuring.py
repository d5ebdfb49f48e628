"""What the benchmarks measure with: a PostgreSQL of their own, and what a command takes, with the server's share."""

import os
import re
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
