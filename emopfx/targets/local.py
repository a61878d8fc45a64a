"""The target `local`: every stage runs in this process, against a server here or elsewhere."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from rich.console import Console

from emopfx.analysis.tables import show
from emopfx.config import Experiment
from emopfx.dataset import Sample
from emopfx.layout import Layout, read_json, write_json
from emopfx.progress import say
from emopfx.record import Record, make_folder
from emopfx.server_api import ServerApi
from emopfx.stages.analyze import analyze
from emopfx.stages.configure import configure
from emopfx.stages.generate import Outcome, generate, nothing, split_finished
from emopfx.storage import files
from emopfx.targets.server_process import ServerProcess
from emopfx.units import Unit, plan

READY_SECONDS = 600.0
# How long a server that does not answer at all is waited for: in a cluster it may be on its way to another node.
AWAY_SECONDS = READY_SECONDS if "KUBERNETES_SERVICE_HOST" in os.environ else 30.0


class LocalTarget:
    """Runs stages of one experiment; `close` stops the server that it started, if it did.

    Args:
        record: The experiment's record.
        experiment: The config.
        samples: The questions.
        server: Address of a server to use; without it, the one of `emopfx deploy` is used while it lives, and
            otherwise one is started when a stage needs it.
        verify: Whether activations are checked by checksum, not only by size.
    """

    def __init__(
        self,
        record: Record,
        experiment: Experiment,
        samples: list[Sample],
        *,
        server: str | None,
        verify: bool,
    ) -> None:
        self._record, self._experiment, self._layout = record, experiment, record.layout
        # A server of our own, or of `emopfx deploy`, writes under the results folder; another one may not.
        self._remote = server is not None
        self._url = server
        self._own: ServerProcess | None = None
        self._checked = False
        self._verify = verify
        self._units = plan(experiment, samples, record.hash)

    def close(self) -> None:
        """Stop the server, if it is our own."""
        if self._own is not None:
            self._own.stop()

    def needs_server(self) -> bool:
        """Whether a sample is missing, as far as can be told without a server."""
        return bool(self._split_here[0])

    def run(self, stage: str, entry: dict[str, Any]) -> None:
        """Run one stage.

        Args:
            stage: deploy, configure, generate or analyze.
            entry: The stage's entry in the record, to which counts are added.
        """
        match stage:
            case "deploy":
                entry["url"] = self._server_url()
            case "configure":
                self._configure()
            case "generate":
                self._generate(entry)
            case "analyze":
                show(analyze(self._record), Console())
                say(f"results are in {self._layout.folder}")

    def _server_url(self) -> str:
        self._url = self._url or deployed_url(self._layout)
        if self._url is None:
            say(f"deploy: starting a server for {self._experiment.model.name}, log in {self._layout.server_log}")
            self._own = ServerProcess(self._experiment.model, self._layout.root, self._layout.server_log)
            self._own.start()
            self._url = self._own.url
            say(f"deploy: the server is ready on {self._url}")
        elif self._own is None:
            with ServerApi(self._url) as api:
                api.wait_ready(READY_SECONDS, AWAY_SECONDS)
        return self._url

    def _configure(self) -> None:
        with ServerApi(self._server_url()) as api:
            structure = api.structure()
        layers = configure(self._experiment, structure)
        model = {key: value for key, value in structure.raw.items() if key != "server"}
        self._record.content["model"] = {**model, "captured_layers": layers}
        self._record.content["server"] = {"url": api.url, **structure.raw.get("server", {})}
        self._record.save()
        self._checked = True
        hook_points = len(self._experiment.capture.hook_points) if layers else 0
        say(
            f"configure: {structure.model}, {structure.num_layers} layers, {structure.dtype}; "
            f"capturing {len(layers)} layers x {hook_points} hook points"
        )

    def _generate(self, entry: dict[str, Any]) -> None:
        todo, broken = self._split_here
        if todo and self._remote:
            with ServerApi(self._server_url()) as api:
                todo, broken = self._split(api)
        if todo and not self._checked:
            self._configure()
        for key, reason in broken.items():
            say(f"generate: {key} is generated again: {reason}")
            # The server keeps what it has committed, so what is broken must go first.
            shutil.rmtree(self._layout.activations(key), ignore_errors=True)
        with self._saved() as saved:
            outcome = asyncio.run(self._supervised(todo, saved))
        entry |= {"kept": outcome.kept, "generated": outcome.generated, "failed": len(outcome.failures)}

    @contextmanager
    def _saved(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Yield what is to be done with each answer once it is kept."""
        s3 = self._experiment.storage.s3
        if s3 is None:
            yield nothing
            return
        # boto3 takes a while to import.
        from emopfx.storage import push

        with push.continuous(self._layout, s3) as saved:
            yield saved

    async def _supervised(self, todo: list[Unit], saved: Callable[[dict[str, Any]], None]) -> Outcome:
        """Generate, while our own server is started again when it dies."""
        work = asyncio.create_task(generate(self._experiment, self._units, todo, self._layout, self._url, saved))
        if self._own is None or not todo:
            return await work
        watch = asyncio.create_task(self._own.supervise())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                watch.result()
            return await work
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    @cached_property
    def _split_here(self) -> tuple[list[Unit], dict[str, str]]:
        return self._split(None)

    @cached_property
    def _elsewhere(self) -> set[str]:
        """The folders of activations that are in S3 and not here."""
        entries = (read_json(self._layout.manifest) or {}).values()
        if not any(entry["uri"] for entry in entries):
            return set()
        from emopfx.storage import inventory

        return inventory.whole_elsewhere(self._layout, self._experiment.storage.s3)

    def _split(self, api: ServerApi | None) -> tuple[list[Unit], dict[str, str]]:
        elsewhere = self._elsewhere

        def check(entry: dict[str, Any] | None) -> str | None:
            if entry is None:
                return "it has no activations" if self._experiment.capture.enabled else None
            if entry["save_dir"] in elsewhere:
                return None
            return files.problem(entry, self._layout.root, api, checksums=self._verify)

        return split_finished(self._units, self._layout, check)


def deployed_url(layout: Layout) -> str | None:
    """Return the address of the server that `emopfx deploy` runs for an experiment, None if it doesn't."""
    state = read_json(layout.server_address)
    if state is None:
        return None
    # One that was killed could not take its address back, and its process id may be another one's by now.
    try:
        os.kill(state["pid"], 0)
    except OSError:
        return None
    with ServerApi(state["url"]) as api:
        return api.url if api.is_alive() else None


def serve(experiment: Experiment, layout: Layout) -> None:
    """Run a server for an experiment until interrupted, and let other commands know where it is."""
    make_folder(layout)
    server = ServerProcess(experiment.model, layout.root, layout.server_log)
    try:
        server.start()
        write_json(layout.server_address, {"url": server.url, "pid": os.getpid()})
        say(f"deploy: {experiment.model.name} is served on {server.url} until ctrl-C")
        asyncio.run(server.supervise())
    finally:
        # Another one may serve the experiment too by now.
        if (read_json(layout.server_address) or {}).get("pid") == os.getpid():
            layout.server_address.unlink()
        server.stop()
