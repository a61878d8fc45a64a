"""What the pods of Jobs print: new lines, told apart by their times, and the progress in them."""

import re
from collections.abc import Iterator

from emopfx.kubernetes.api import Cluster, Object

# As `progress.Progress` prints it in a pod.
PROGRESS = re.compile(r"^(\w+) (\d+)/(\d+) \d+\.\d% ")
TIMED = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z ?(.*)$")
TAIL_LINES = 500


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
    """Reads the logs of one Job's pods bit by bit, the older pods first."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: dict[str, str] = {}
        self._finished: set[str] = set()

    def new_lines(self, pods: list[Object]) -> Iterator[str]:
        """Yield the lines that these pods have printed since the last call."""
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase")
            if name in self._finished or phase in ("Pending", None):
                continue
            for time, text in timed(self._cluster.log(name, last=TAIL_LINES)):
                if time > self._seen.get(name, ""):
                    self._seen[name] = time
                    yield text
            if phase in ("Succeeded", "Failed"):
                self._finished.add(name)
