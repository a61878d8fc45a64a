"""Where everything of an experiment lies, and how it is written: all at once or not at all."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layout:
    """The folder of one experiment: `root` holds all experiments, `name` is this one's folder in it."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """The experiment's own folder."""
        return self.root / self.name

    @property
    def config(self) -> Path:
        """The config as it was given."""
        return self.folder / "experiment.yaml"

    @property
    def record(self) -> Path:
        """The config as resolved, with the state of the stages (see `record`)."""
        return self.folder / "experiment_config.json"

    @property
    def manifest(self) -> Path:
        """The list of all activations: key -> {save_dir, request_id, uri, files, tokens}."""
        return self.folder / "activations_manifest.json"

    @property
    def server_log(self) -> Path:
        """What servers that emopfx started for this experiment have printed."""
        return self.folder / "server.log"

    @property
    def server_address(self) -> Path:
        """Where `emopfx deploy` serves this experiment, while it does."""
        return self.folder / "server.json"

    @property
    def artifacts(self) -> Path:
        """What the parts of the analysis keep: a folder for each."""
        return self.folder / "artifacts"

    def report(self, suffix: str) -> Path:
        """The report, as "json", "md" or "html"."""
        return self.folder / f"report.{suffix}"

    def sample(self, key: str) -> Path:
        """The folder of one sample's trajectory.jsonl, agent_state.json and sample.json."""
        return self.folder / key

    def save_dir(self, key: str) -> str:
        """What the server is told to save a sample's activations under, relative to its data folder."""
        return f"{self.name}/activations/{key}"

    def activations(self, key: str) -> Path:
        """The folder of one sample's activations, on a disk that the server shares."""
        return self.root / self.save_dir(key)

    def finished(self, key: str, config_hash: str) -> dict[str, Any] | None:
        """Return the sample.json of a sample, None if that is not complete, or was made for another config."""
        value = read_json(self.sample(key) / "sample.json")
        if value is None or value.get("config_hash") != config_hash:
            return None
        return value if {"metrics", "breadcrumb"} <= value.keys() else None


def sample_key(variant: str, sample_id: str, repeat: int, repeats: int) -> str:
    """Return "calm/gsm8k_0001", or "calm/gsm8k_0001/r2" where there is more than one repeat (from 1)."""
    return f"{variant}/{sample_id}" if repeats == 1 else f"{variant}/{sample_id}/r{repeat}"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any time, finds the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name per file, not per process: an experiment has one writer, and a crash leaves at most one behind.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    commit(temporary, path)


def commit(temporary: Path, path: Path) -> None:
    """Give a file that was written beside it the name `path`, for good."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_text(path: Path, text: str) -> None:
    """Write a text (see `write_bytes`)."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON (see `write_text`)."""
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """Return a value as it stands in the results' JSON files."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if there is no such file or it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
