"""Reads configs: from YAML and flags to an `Experiment`, or to one sentence that says what is wrong."""

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from emopfx.config import DATASETS_ALLOWED, CustomVariant, Experiment, Intervention
from emopfx.errors import InputError

# Values in messages, however long or deep they are.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class _Loader(yaml.SafeLoader):
    """Reads YAML as `yaml.safe_load` does, but takes no key twice in one mapping, and says where a value is none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            # What PyYAML's own readers of dates, numbers and the like meet in values that are none.
            problem = f"{_SHORT.repr(node.value)} is no {node.tag.rpartition(':')[2]}; quote it if it is a text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a config file as it is, without checking its keys.

    Raises:
        InputError: If there is no such file, or it is not a YAML mapping.
    """
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Read the text of a config file, which may be a pipe and so can be read once only.

    Raises:
        InputError: If there is no such file, or it holds no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no config file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the config file {path}: {error}") from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return a config's keys and values as they are, without checking them.

    Raises:
        InputError: If it is not a YAML mapping.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{source}{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: its values are nested too deeply") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{source}: the config must be a mapping of keys such as name, model and variants")
    return value


def override(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw config with some values replaced, by dotted keys such as "dataset.samples"."""
    result = dict(raw)
    for dotted, value in changes.items():
        section, _, key = dotted.rpartition(".")
        if not section:
            result[key] = value
        elif isinstance(inner := result.get(section) or {}, Mapping):
            result[section] = {**inner, key: value}
    return result


def parse(raw: Mapping[str, Any], source: str, folder: Path | None = None, *, find_files: bool = True) -> Experiment:
    """Check a raw config.

    Args:
        raw: The keys and values as given.
        source: Where they come from, for messages.
        folder: Where the config lies: a relative dataset file is looked for there, then under the working directory,
            then in the folders above, so that a config finds what lies in its own repository.
        find_files: Whether a dataset file must be here; one in a cluster is not.

    Returns:
        The experiment, with every default filled in and the path of a dataset file here made absolute.

    Raises:
        InputError: If anything is wrong, in one sentence that says what, where, and what is allowed.
    """
    try:
        experiment = Experiment.model_validate(dict(raw))
    except ValidationError as error:
        raise InputError(f"{source}: {'; '.join(_describe(item) for item in error.errors()[:3])}") from None
    return _with_file(experiment, folder) if find_files else experiment


def _with_file(experiment: Experiment, folder: Path | None) -> Experiment:
    given = experiment.dataset
    if not given.is_file:
        # `datasets` would read what is here in place of what is on the hub.
        if Path(given.path).exists():
            raise InputError(f"dataset.path: {DATASETS_ALLOWED}, got {_kind(Path(given.path))} {given.path}")
        return experiment
    dataset = given.model_copy(update={"path": str(_find_file(given.path, folder))})
    return experiment.model_copy(update={"dataset": dataset})


def _find_file(given: str, folder: Path | None) -> Path:
    path = Path(given).expanduser()
    beside = [] if folder is None else [folder / path]
    above = [] if folder is None else [parent / path for parent in folder.absolute().parents]
    for candidate in [*beside, path, *above]:
        if candidate.is_file():
            return candidate.resolve()
    looked = list(dict.fromkeys([*beside, path]))
    for candidate in looked:
        if candidate.exists():
            raise InputError(f"dataset.path: {DATASETS_ALLOWED}, got {_kind(candidate)} {candidate}")
    raise InputError(f"dataset.path: there is no file {' nor '.join(map(str, looked))}")


def _kind(path: Path) -> str:
    return "the folder" if path.is_dir() else "the file"


def _describe(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"])
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return _unknown_key(error["loc"])
    if kind == "missing":
        return f"{where} is required"
    if kind == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if kind in ("model_type", "model_attributes_type"):
        allowed = _keys_at(error["loc"])
        return f"{where} must be a mapping with the keys {', '.join(allowed)}, got {_SHORT.repr(given)}"
    if error["loc"] and error["loc"][-1] == "name" and kind == "string_pattern_mismatch":
        return f"{where} must be 1 to 40 of a-z, 0-9 and - (not at its ends), got {_SHORT.repr(given)}"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{where}: {message}, got {_SHORT.repr(given)}"


def _unknown_key(location: tuple[int | str, ...]) -> str:
    key, allowed = str(location[-1]), _keys_at(location[:-1])
    where = ".".join(str(part) for part in location)
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key {where}; {hint}allowed here: {', '.join(allowed)}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    if not location:
        return list(Experiment.model_fields)
    if "interventions" in location:
        return list(Intervention.model_fields)
    if location[0] == "variants":
        return list(CustomVariant.model_fields)
    section: type[BaseModel] = Experiment
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        # A section may be optional.
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        section = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return list(section.model_fields)
