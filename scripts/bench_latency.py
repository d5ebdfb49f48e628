"""What a slow way to the storage costs: the full snapshot and the restore of a window against an S3 server, straight and with a delay.

Both ways lead through a relay, which also counts. With the delay every byte arrives 25 ms later in each direction, so a request takes
50 ms longer, and as many bytes go through as without it.
"""

import itertools
import os
import urllib.parse

from measuring import ROOT, Relay, measure, run

# Seconds that a request and its answer need longer.
DELAY = 0.050


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

    def again(self, delay):
        environment = self.repositories[delay]
        return self.measured(delay, lambda: measure(self.store.server, self.store.snapshot_command(), environment))

    def snapshot(self, delay):
        number = next(self.numbers)
        self.repositories[delay] = environment = {
            **self.store.restante_environment(), "AWS_ACCESS_KEY_ID": "AKDEMO", "AWS_SECRET_ACCESS_KEY": "SKDEMO",
            "RESTANTE_REPO": f"s3://demo/{number}?endpoint=http://127.0.0.1:{self.relays[delay].port}&region=us-east-1&path_style=true",
            "RESTANTE_KEY": str(self.store.work / f"latency-{number}.key"),
        }
        self.store.initialise(environment)
        os.sync()
        return self.again(delay)

    def restore(self, delay):
        return self.measured(delay, lambda: self.window.restante(self.repositories[delay]))

    def snapshot_straight(self):
        return self.snapshot(0)

    def snapshot_delayed(self):
        return self.snapshot(DELAY)

    def again_straight(self):
        return self.again(0)

    def again_delayed(self):
        return self.again(DELAY)

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
