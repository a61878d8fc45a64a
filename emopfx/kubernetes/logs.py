"""What the pods of Jobs print: new lines, told apart by their times, and the progress in them."""

import math
import re
import time
from collections.abc import Iterator

from emopfx.errors import RunError
from emopfx.kubernetes.api import Cluster, Object

# As `progress.Progress` prints it in a pod.
PROGRESS = re.compile(r"^(\w+) (\d+)/(\d+) \d+\.\d% ")
TIMED = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z ?(.*)$")
# How far back to read over what was read before: a line may reach the node's file after its time.
OVERLAP_SECONDS = 10.0


def progress(line: str) -> tuple[int, int] | None:
    """Return how many items a progress line says are done, and of how many; None for another line."""
    match = PROGRESS.match(line)
    return (int(match[2]), int(match[3])) if match else None


def split(line: str) -> tuple[str, str] | None:
    """Return a line's time, as text that sorts like the times do, and the line without it; None if it has no time.

    Where a log is gone, the node says so in its place, in a line without a time.
    """
    match = TIMED.match(line)
    return (f"{match[1]}.{match[2] or '':0<9}", match[3]) if match else None


def timed(log: str) -> list[tuple[str, str]]:
    """Return the lines of a log, each with its time."""
    return [found for line in log.splitlines() if (found := split(line))]


class Tail:
    """Reads the logs of one Job's pods bit by bit, the older pods first: all that they print, each line once.

    Attributes:
        problem: Why a log could not be read the last time, empty if all could; the next call tries again.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: dict[str, str] = {}
        self._read: dict[str, float] = {}
        self._finished: set[str] = set()
        self.problem = ""

    def new_lines(self, pods: list[Object]) -> Iterator[str]:
        """Yield the lines that these pods have printed since the last call."""
        self.problem = ""
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase")
            if name in self._finished or phase in ("Pending", None):
                continue
            try:
                log = self._new_log(name)
            except RunError as error:
                self.problem = str(error)
                continue
            for moment, text in timed(log):
                if moment > self._seen.get(name, ""):
                    self._seen[name] = moment
                    yield text
            if phase in ("Succeeded", "Failed"):
                self._finished.add(name)

    def _new_log(self, pod: str) -> str:
        before, now = self._read.get(pod), time.monotonic()
        seconds = None if before is None else math.ceil(now - before + OVERLAP_SECONDS)
        log = self._cluster.log(pod, seconds=seconds)
        self._read[pod] = now
        return log
