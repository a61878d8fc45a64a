"""report.html: one page with everything in it, which needs neither network nor server."""

import base64
import json
import re
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from emopfx.analysis.answers import Answer, Answers
from emopfx.analysis.schema import Report
from emopfx.layout import Layout, read_json, write_text
from emopfx.progress import Progress, say

TEMPLATE = resources.files("emopfx.analysis") / "page"
SCRIPTS = ("drawing.js", "charts.js", "answers.js", "page.js")
PROJECTIONS = "probes/projections.jsonl"
MOST_BYTES = 20_000_000
# What the numbers of questions that are not known beforehand may take up.
SLACK = 100
# What is behind the last question.
END_BYTES = 64
SEPARATOR = "\x1f"


def write(report: Report, answers: Answers, layout: Layout) -> None:
    """Write the page of a report, with the texts of as many questions as there is room for."""
    parts = {
        "title": report.experiment,
        "style": _template("page.css"),
        "script": "\n".join(_template(name) for name in SCRIPTS),
        "report": _embedded(report, {}),
        "answers": "",
    }
    # Base64 makes four bytes of three.
    room = (MOST_BYTES - SLACK - len(_filled(parts).encode())) // 4 * 3
    packed, questions = _pack(report, answers, layout, room)
    if questions["shown"] < questions["all"]:
        say(f"analyze: report.html has room for the answers to {questions['shown']} of {questions['all']} questions")
    parts |= {"report": _embedded(report, questions), "answers": base64.b64encode(packed).decode()}
    write_text(layout.report("html"), _filled(parts))


def _template(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _filled(parts: dict[str, str]) -> str:
    """Return the page with its parts in their places, in one pass: a part may hold what looks like another's place."""
    return re.sub(f"@({'|'.join(parts)})@", lambda match: parts[match[1]], _template("page.html"))


def _embedded(report: Report, questions: dict[str, int]) -> str:
    """Return a report as JSON in which nothing looks like the end of the script element."""
    data = {**report.model_dump(mode="json"), "questions": questions}
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _pack(report: Report, answers: Answers, layout: Layout, room: int) -> tuple[bytes, dict[str, int]]:
    """Return questions with their answers, a JSON object a line, as zlib; and how many there are, and in all."""
    by_question: dict[str, list[Answer]] = {}
    for answer in answers.finished:
        by_question.setdefault(answer.question, []).append(answer)
    compressor = zlib.compressobj()
    packed, shown = bytearray(), 0
    projections = _Projections(layout.artifacts / PROJECTIONS if report.probes and report.probes.projections else None)
    with Progress("report.html", len(by_question)) as progress:
        for own in by_question.values():
            line = json.dumps(_question(own, layout, projections), ensure_ascii=False) + "\n"
            before = compressor.copy()
            more = compressor.compress(line.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH)
            if len(packed) + len(more) + END_BYTES > room:
                compressor = before
                break
            packed += more
            shown += 1
            progress.update(shown)
    packed += compressor.flush()
    return bytes(packed), {"shown": shown, "all": len(by_question)}


def _question(answers: list[Answer], layout: Layout, projections: "_Projections") -> dict[str, Any]:
    samples = [read_json(layout.sample(answer.key) / "sample.json") or {} for answer in answers]
    return {
        "id": answers[0].question,
        "question": samples[0]["question"],
        "gold": samples[0]["metrics"]["gold"],
        "answers": [
            {
                "variant": answer.variant,
                "repeat": answer.repeat,
                "correct": answer.correct,
                "format": answer.format,
                "length": answer.completion_tokens,
                "truncated": answer.truncated,
                "answer": sample["metrics"]["answer"],
                "prefix": sample["prefix"],
                "text": _text(layout.sample(answer.key) / "trajectory.jsonl"),
                **projections.of(answer.key),
            }
            for answer, sample in zip(answers, samples, strict=True)
        ],
    }


def _text(trajectory: Path) -> str:
    """Return what was answered: the last message."""
    *_, last = trajectory.read_text(encoding="utf-8").splitlines()
    return str(json.loads(last)["content"])


class _Projections:
    """Tokens and their projections, which lie in a file in another order than they are asked for.

    Args:
        path: The file, None if there is none (see `schema.Probes.projections`).
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._starts = dict(self._lines(path)) if path else {}

    def _lines(self, path: Path) -> Iterator[tuple[str, int]]:
        with path.open("rb") as file:
            start = 0
            for line in file:
                yield json.loads(line)["key"], start
                start += len(line)

    def of(self, key: str) -> dict[str, Any]:
        """Return a sample's tokens as one string, and a letter per token for each probe: M is 0, A is -3, Y is +3."""
        if self._path is None or key not in self._starts:
            return {}
        with self._path.open("rb") as file:
            file.seek(self._starts[key])
            found = json.loads(file.readline())
        if not found["tokens"]:
            return {}
        letters = {name: "".join(map(_letter, values)) for name, values in found["values"].items()}
        return {"tokens": SEPARATOR.join(found["tokens"]), "values": letters}


def _letter(z: float) -> str:
    return chr(ord("M") + round(4 * max(-3.0, min(3.0, z))))
