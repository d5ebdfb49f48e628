"""What a slow way to the storage costs: the full snapshot and the restore of a window against an S3 server, straight and with a delay.

Both ways lead through a relay, which also counts. With the delay every byte arrives 25 ms later in each direction, so a request takes
50 ms longer, and as many bytes go through as without it.
"""

import asyncio
import itertools
import multiprocessing
import os
import signal
import socket
import urllib.parse

from measuring import ROOT, measure, run

# Seconds that a request and its answer need longer.
DELAY = 0.050


class Relay:
    """A process that passes connections on to a server, each direction later by half of `delay`."""

    def __init__(self, target, delay):
        self.target, self.delay = target, delay
        self.requests = multiprocessing.Value("q", 0)
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

        def asked():
            if answered[0]:
                with self.requests.get_lock():
                    self.requests.value += 1
            answered[0] = False

        def told():
            answered[0] = True

        await asyncio.gather(self.carry(reader, onward_writer, asked), self.carry(onward_reader, writer, told))

    async def carry(self, reader, writer, seen):
        """What comes is taken at once and waits here, so that the delay does not limit how much is on its way."""
        waiting, clock = asyncio.Queue(), asyncio.get_running_loop()

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
                seen()
                waiting.put_nowait((clock.time() + self.delay / 2, data))
        except ConnectionError:
            pass
        waiting.put_nowait((clock.time() + self.delay / 2, b""))
        try:
            await delivery
            writer.close()
        except ConnectionError:
            pass

    def stop(self):
        self.process.terminate()
        self.process.join()


class Latency:
    """The S3 server with its relays; `window` is the damaged store."""

    def __init__(self, window):
        self.window, self.store = window, window.store
        self.numbers = itertools.count(1)
        self.folder, self.pid, endpoint = run(ROOT / "scripts/scratch-s3").split()
        there = urllib.parse.urlsplit(endpoint)
        self.relays = {delay: Relay((there.hostname, there.port), delay) for delay in (0, DELAY)}
        # Where the last snapshot of each way is.
        self.repositories = {}

    def measured(self, delay, action):
        relay = self.relays[delay]
        before = relay.requests.value
        result = action()
        return {**result, "requests": relay.requests.value - before}

    def snapshot(self, delay):
        number = next(self.numbers)
        self.repositories[delay] = environment = {
            **self.store.restante_environment(), "AWS_ACCESS_KEY_ID": "AKDEMO", "AWS_SECRET_ACCESS_KEY": "SKDEMO",
            "RESTANTE_REPO": f"s3://demo/{number}?endpoint=http://127.0.0.1:{self.relays[delay].port}&region=us-east-1&path_style=true",
            "RESTANTE_KEY": str(self.store.work / f"latency-{number}.key"),
        }
        self.store.initialise(environment)
        os.sync()
        return self.measured(delay, lambda: measure(self.store.server, self.store.snapshot_command(), environment))

    def restore(self, delay):
        return self.measured(delay, lambda: self.window.restante(self.repositories[delay]))

    def snapshot_straight(self):
        return self.snapshot(0)

    def snapshot_delayed(self):
        return self.snapshot(DELAY)

    def restore_straight(self):
        return self.restore(0)

    def restore_delayed(self):
        return self.restore(DELAY)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for relay in self.relays.values():
            relay.stop()
        run(ROOT / "scripts/scratch-s3", "stop", self.folder, self.pid)
