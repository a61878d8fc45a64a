"""What the server tells Prometheus about itself."""

import shutil
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class Metrics:
    """Counters, histograms and gauges of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests to the API, by path and HTTP status", "path", "status")
        self.answers = self._counter("answers", "Generated answers, by how they ended", "outcome")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of the prompts that were run")
        self.generated_tokens = self._counter("generated_tokens", "Tokens that were generated")
        self.capture_bytes = self._counter("capture_bytes", "Bytes of activation files that were written")
        self.step_seconds = self._histogram("step_seconds", "Time of one step of the whole batch", _STEP_BUCKETS)
        self.first_token_seconds = self._histogram(
            "first_token_seconds", "Time from a request's arrival to its first token", _REQUEST_BUCKETS
        )
        self.answer_seconds = self._histogram(
            "answer_seconds", "Time from a request's arrival to its committed answer", _REQUEST_BUCKETS
        )
        self.writing = Gauge("emopfx_writer_backlog", "Answers that wait to be written", registry=self.registry)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(f"emopfx_{name}", text, registry=self.registry).set_function(read)

    def watch_disk(self, folder: Path) -> None:
        """Add the free bytes of the disk that a folder is on."""
        self.watch("disk_free_bytes", "Bytes free where activations go", lambda: shutil.disk_usage(folder).free)

    def describe(self, **build: str) -> None:
        """Say what runs: versions, and the model."""
        Info("emopfx_build", "What runs", registry=self.registry).info(build)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"emopfx_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"emopfx_{name}", text, buckets=buckets, registry=self.registry)
