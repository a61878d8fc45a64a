"""Log lines, for people or as JSON, each with the id of the request that it is about."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from transformers.utils import logging as transformers_logging


class _Name:
    """A request's id: made up when it comes in, and its own when that is known."""

    def __init__(self, value: str) -> None:
        self.value = value


class RequestId:
    """The id of the request that is being served, for the log and for the answer's headers."""

    def __init__(self) -> None:
        self._name: ContextVar[_Name | None] = ContextVar("request_id", default=None)

    def name(self, value: str) -> _Name:
        """Give the request that begins here an id."""
        name = _Name(value)
        self._name.set(name)
        return name

    def rename(self, value: str) -> None:
        """Give the request that is being served its own id."""
        name = self._name.get()
        if name is not None:
            name.value = value

    def get(self) -> str | None:
        """The id, or None outside of requests."""
        name = self._name.get()
        return None if name is None else name.value


request_id = RequestId()


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        name = request_id.get()
        return f"{line} [{name}]" if name else line


def set_up(kind: Literal["text", "json"], level: str) -> None:
    """Send every log line to standard error, in one format, uvicorn's and transformers' too."""
    handler = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if kind == "json" else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("emopfx_server", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
