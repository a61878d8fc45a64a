"""A server of our own on this machine: started, restarted when it dies, stopped, and never left behind."""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from emopfx.config import Model
from emopfx.errors import InputError, RunError
from emopfx.progress import say

READY_LINE = re.compile(rb"^emopfx-server ready on (http://\S+:(\d+))", re.MULTILINE)
MAX_RESTARTS = 3
STOP_SECONDS = 15.0
NOTE_SECONDS = 15.0
BAD_INPUT_EXIT = 2


def _dies_with_parent() -> Callable[[], None] | None:
    """Return what a child must call so that Linux kills it when its parent is gone, even by kill -9."""
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


class ServerProcess:
    """An `emopfx-server` process.

    Args:
        model: What it serves.
        data_dir: The folder under which it saves activations.
        log: What it prints is added to this file.
    """

    def __init__(self, model: Model, data_dir: Path, log: Path) -> None:
        self.url = ""
        self._model, self._data_dir, self._log = model, data_dir, log
        self._port = 0
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            InputError: If it says that its model or another setting is wrong.
            RunError: If it ends for another reason, with the last lines of its log.
        """
        self._spawn()
        began = noted = time.monotonic()
        while not self._is_ready():
            time.sleep(0.1)
            if time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                waited = f"{noted - began:.0f} s"
                say(f"deploy: the server is loading {self._model.name} ({waited}): {self._last_lines(1)}")

    async def supervise(self) -> None:
        """Start the server again, on its old port, whenever it dies; runs until cancelled.

        Whoever asks the server repeats requests until it answers again.

        Raises:
            RunError: If it dies more than MAX_RESTARTS times.
        """
        restarts = 0
        while True:
            await asyncio.sleep(0.2)
            if self._process is None or self._process.poll() is None:
                continue
            code = self._process.returncode
            if restarts == MAX_RESTARTS:
                raise RunError(f"the server died {restarts + 1} times ({_exit(code)}); {self._log_tail()}")
            restarts += 1
            say(f"the server died ({_exit(code)}) and is started again ({restarts} of {MAX_RESTARTS})")
            self._spawn()

    def stop(self) -> None:
        """Ask the server to end, and end it if it doesn't."""
        if self._process is None:
            return
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                return

    def _spawn(self) -> None:
        command = [
            sys.executable,
            "-m",
            "emopfx_server",
            "--model",
            self._model.name,
            "--dtype",
            self._model.dtype,
        ]
        command += ["--port", str(self._port), "--data-dir", str(self._data_dir)]
        if self._model.revision is not None:
            command += ["--revision", self._model.revision]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            # A session of its own: ctrl-C on the terminal is for us, and we stop the server in good order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_dies_with_parent(),
            )

    def _is_ready(self) -> bool:
        assert self._process is not None
        ended = self._process.poll()
        match = READY_LINE.search(self._printed())
        if ended == BAD_INPUT_EXIT:
            raise InputError(f"the server refused to start: {self._last_lines(1)}")
        if ended is not None:
            raise RunError(f"the server ended before it was ready ({_exit(ended)}); {self._log_tail()}")
        if match:
            self.url, self._port = match[1].decode(), int(match[2])
        return match is not None

    def _printed(self) -> bytes:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()

    def _last_lines(self, count: int) -> str:
        lines = [line.strip() for line in self._printed().decode(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-count:]) or "nothing printed"

    def _log_tail(self) -> str:
        return f"the end of {self._log}:\n{self._last_lines(10)}"


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
