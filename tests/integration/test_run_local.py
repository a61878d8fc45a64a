"""Whole runs on the real server and the built-in model, and what is left when parts of them are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from emopfx.layout import Layout, read_json, write_json
from emopfx.record import Record, running
from emopfx.server_api import ServerApi
from emopfx.storage import files

GSM8K = os.environ.get("EMOPFX_GSM8K")
STORIES = Path(__file__).parents[2] / "manifests" / "experiments" / "demo-stories.jsonl"
SMALL = ("--model", "tiny", "--dataset", str(STORIES), "--max-tokens", "40")


@contextmanager
def started(root: Path, command: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start an emopfx command; at the end it is gone."""
    line = [sys.executable, "-m", "emopfx.cli", command, *arguments, "--results", str(root)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def emopfx(root: Path, command: str, *arguments: str) -> tuple[int, str, str]:
    """Run an emopfx command; return its exit code and what it printed."""
    with started(root, command, *arguments) as process:
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def finished(root: Path) -> list[Path]:
    return list(root.glob("nano/*/*/**/sample.json"))


def server_of(process: subprocess.Popen[str]) -> psutil.Process:
    return next(p for p in psutil.Process(process.pid).children() if "emopfx_server" in p.cmdline())


def check_whole(root: Path, expected: int, *, killed: bool = False) -> dict[str, Any]:
    """Check that every sample is there once, with whole activations and nothing else beside them.

    Where a server was killed, the hidden folder that it was writing may be left.
    """
    left = ".partial" if killed else ".none"
    layout = Layout(root, "nano")
    manifest = read_json(layout.manifest)
    assert manifest is not None
    assert len(manifest) == len(finished(root)) == expected
    for key, entry in manifest.items():
        assert files.problem(entry, root, None, checksums=True) is None
        folder = root / entry["save_dir"]
        saved = [path.name for path in folder.parent.iterdir() if path.suffix != left]
        assert saved == [folder.name], f"{key} was saved more than once"
        assert sorted(path.name for path in folder.iterdir()) == ["activations.safetensors", "metadata.json"]
    hidden = {path.name for path in layout.folder.rglob(".*") if path.suffix != left}
    assert hidden == {".lock"}
    return manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of 6 stories in 8 variants: its results, and what it printed."""
    root = tmp_path_factory.mktemp("results")
    code, out, err = emopfx(root, "run", "--name", "nano", *SMALL, "--samples", "6")
    assert code == 0, err
    return root, out, err


def test_a_run_makes_all_samples_and_the_report(run: tuple[Path, str, str]) -> None:
    root, out, err = run
    check_whole(root, 48)
    report = read_json(root / "nano" / "report.json")
    assert report is not None
    assert (report["expected"], report["found"], report["missing"]) == (48, 48, [])
    assert [entry["n"] for entry in report["statistics"]["variants"]] == [6] * 8
    assert sum(entry["correct"] for entry in report["statistics"]["variants"]) > 48 / 3
    assert "nano: 48 of 48 samples" in out
    assert re.search(r"generate 48/48 100\.0% [\d.]+/min failed=0 eta=0s", err)
    assert "0 kept, 48 generated" in err


def test_the_record_says_what_ran(run: tuple[Path, str, str]) -> None:
    record = Record.read(Layout(run[0], "nano"))
    assert record is not None
    content = record.content
    assert {stage: entry["state"] for stage, entry in content["stages"].items()} == dict.fromkeys(
        ("deploy", "configure", "generate", "analyze"), "succeeded"
    )
    assert content["model"]["model"] == "tiny"
    assert content["model"]["captured_layers"] == list(range(content["model"]["num_layers"]))
    assert set(content["server"]) >= {"url", "version", "torch"}


def test_activations_are_those_of_all_tokens_that_passed_through_the_model(run: tuple[Path, str, str]) -> None:
    root = run[0]
    layout = Layout(root, "nano")
    record = Record.read(layout)
    assert record is not None
    hidden = record.content["model"]["hidden_size"]
    for key in record.sample_keys()[::7]:
        sample = read_json(layout.sample(key) / "sample.json")
        assert sample is not None
        metrics, breadcrumb = sample["metrics"], sample["breadcrumb"]
        tokens = metrics["prompt_tokens"] + metrics["completion_tokens"] - 1
        with safe_open(root / breadcrumb["save_dir"] / "activations.safetensors", framework="pt") as tensors:
            names = set(tensors.keys()) - {"token_ids", "positions"}
            assert len(names) == 2 * record.content["model"]["num_layers"]
            assert {tuple(tensors.get_slice(name).get_shape()) for name in names} == {(tokens, hidden)}


def test_the_variants_of_a_question_differ_only_in_the_prefix(run: tuple[Path, str, str]) -> None:
    root = run[0]
    for calm in (root / "nano" / "calm").iterdir():
        asked = {
            variant: json.loads((root / "nano" / variant / calm.name / "trajectory.jsonl").read_text().split("\n")[0])
            for variant in ("control", "calm", "neutral")
        }
        question = asked["control"]["content"]
        assert asked["calm"]["content"].endswith(f"\n\n{question}")
        assert asked["neutral"]["content"].endswith(f"\n\n{question}")


def test_a_second_run_needs_no_server_and_sends_nothing(run: tuple[Path, str, str]) -> None:
    root = run[0]
    log = (root / "nano" / "server.log").stat()
    before = {path: path.stat().st_mtime_ns for path in finished(root)}
    code, out, err = emopfx(root, "run", "--name", "nano", *SMALL, "--samples", "6", "--verify")
    assert code == 0
    assert "generate: 48 of 48 already done, 0 requests sent" in err
    assert "nano: 48 of 48 samples" in out
    assert (root / "nano" / "server.log").stat().st_mtime_ns == log.st_mtime_ns
    assert before == {path: path.stat().st_mtime_ns for path in finished(root)}


@pytest.mark.skipif(not GSM8K, reason="EMOPFX_GSM8K names no file with GSM8K's test questions")
def test_real_questions_get_an_honest_accuracy(tmp_path: Path) -> None:
    flags = ("--name", "nano", "--model", "tiny", "--dataset", str(GSM8K), "--samples", "40", "--max-tokens", "64")
    code, out, err = emopfx(tmp_path, "run", *flags, "--target", "local")
    assert code == 0, err
    assert "nano: 320 of 320 samples" in out
    check_whole(tmp_path, 320)
    report = read_json(tmp_path / "nano" / "report.json")
    assert report is not None
    # The model learned one-step stories; these take several steps.
    assert sum(entry["correct"] for entry in report["statistics"]["variants"]) < 320 / 5


LONG = (*SMALL, "--samples", "12", "--variants", "control,calm,anxiety", "--repeats", "4", "--concurrency", "4")
LONG_TOTAL = 12 * 3 * 4


def test_the_server_killed_in_the_middle_is_started_again_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    with started(tmp_path, "run", "--name", "nano", *LONG) as process:
        wait_for(lambda: len(finished(tmp_path)) > 20)
        server_of(process).kill()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the server died (killed by SIGKILL) and is started again (1 of 3)" in err
    check_whole(tmp_path, LONG_TOTAL, killed=True)


@contextmanager
def served(data: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run an emopfx-server as by hand; yield its process and its address."""
    line = [sys.executable, "-m", "emopfx_server", "--model", "tiny", "--dtype", "bfloat16", "--data-dir", str(data)]
    with subprocess.Popen([*line, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            ready = next(said for said in iter(process.stdout.readline, b"") if b"ready on" in said)
            yield process, ready.split()[-1].decode()
        finally:
            process.kill()


def test_a_server_killed_in_the_middle_and_started_again_by_hand_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with (
        served(tmp_path) as (server, url),
        started(tmp_path, "run", "--name", "nano", *LONG, "--server", url) as process,
    ):
        wait_for(lambda: len(finished(tmp_path)) > 20)
        server.kill()
        server.wait()
        assert len(finished(tmp_path)) < LONG_TOTAL
        with served(tmp_path, int(url.rpartition(":")[2])):
            _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "generate: waiting for the server: the connection failed" in err
    check_whole(tmp_path, LONG_TOTAL, killed=True)


def test_the_command_killed_in_the_middle_takes_the_server_along_and_a_rerun_finishes(tmp_path: Path) -> None:
    with started(tmp_path, "run", "--name", "nano", *LONG) as process:
        wait_for(lambda: len(finished(tmp_path)) > 20)
        server = server_of(process)
        process.kill()
        process.wait()
        wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 10)
    done = len(finished(tmp_path))
    assert 20 < done < LONG_TOTAL
    assert not running(Layout(tmp_path, "nano"))
    _, shown, _ = emopfx(tmp_path, "status", "--name", "nano")
    assert re.search(r"generate +stopped", shown)
    code, _, err = emopfx(tmp_path, "run", "--name", "nano", *LONG)
    assert code == 0, err
    assert f"{done} of {LONG_TOTAL} already done" in err
    check_whole(tmp_path, LONG_TOTAL, killed=True)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_how_to_go_on_and_leaves_no_server(tmp_path: Path, kind: signal.Signals) -> None:
    endless = (*LONG, "--repeats", "200")
    with started(tmp_path, "run", "--name", "nano", *endless) as process:
        wait_for(lambda: len(finished(tmp_path)) > 5)
        server = server_of(process)
        code, _, err = emopfx(tmp_path, "run", "--name", "nano", *endless)
        assert code == 1
        assert "another run of nano is at work" in err
        process.send_signal(kind)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert not server.is_running()
    record = Record.read(Layout(tmp_path, "nano"))
    assert record is not None
    assert record.content["stages"]["generate"]["state"] == "failed"
    assert read_json(Layout(tmp_path, "nano").manifest)


def test_a_server_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    with started(tmp_path, "run", "--name", "nano", *LONG) as process:
        wait_for(lambda: len(finished(tmp_path)) > 2)
        killed: set[int] = set()
        while process.poll() is None:
            for child in psutil.Process(process.pid).children():
                if child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()
            time.sleep(0.1)
        _, err = process.communicate()
    assert process.returncode == 1
    assert "the server died 4 times (killed by SIGKILL)" in err
    assert len(killed) == 4


def test_a_deployed_server_is_used_by_other_commands_until_it_ends(tmp_path: Path) -> None:
    common = ("--name", "nano", *SMALL, "--samples", "2", "--variants", "control")
    address = Layout(tmp_path, "nano").server_address
    with started(tmp_path, "deploy", *common) as process:
        wait_for(address.exists)
        code, _, err = emopfx(tmp_path, "generate", *common)
        assert code == 0, err
        assert "starting a server" not in err
        # Another server for the same experiment, started later, keeps its address when the first one ends.
        with started(tmp_path, "deploy", *common) as other:
            wait_for(lambda: (read_json(address) or {}).get("pid") == other.pid)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            assert process.returncode == 130
            assert (read_json(address) or {}).get("pid") == other.pid
            other.send_signal(signal.SIGINT)
            other.communicate(timeout=30)
    assert not address.exists()
    check_whole(tmp_path, 2)


@pytest.fixture
def background() -> Iterator[None]:
    """Commands are started as in the background of a script, where ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("background")
def test_sigterm_stops_a_command_in_the_background_too(tmp_path: Path) -> None:
    address = Layout(tmp_path, "nano").server_address
    with started(tmp_path, "deploy", "--name", "nano", *SMALL) as process:
        wait_for(address.exists)
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert not address.exists()


def test_broken_activations_are_generated_again(tmp_path: Path) -> None:
    common = ("--name", "nano", *SMALL, "--samples", "2", "--variants", "control,calm")
    assert emopfx(tmp_path, "run", *common)[0] == 0
    manifest = check_whole(tmp_path, 4)
    first, second, third, fourth = (tmp_path / entry["save_dir"] for entry in manifest.values())
    sample = Layout(tmp_path, "nano").sample(f"{fourth.parent.parent.name}/{fourth.parent.name}") / "sample.json"
    write_json(sample, {**(read_json(sample) or {}), "breadcrumb": None})
    os.truncate(first / "activations.safetensors", 100)
    (second / "metadata.json").unlink()
    with (third / "activations.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    code, _, err = emopfx(tmp_path, "generate", *common, "--verify")
    assert code == 0, err
    assert err.count("is generated again") == 4
    assert "is generated again: it has no activations" in err
    assert "0 kept, 4 generated" in err
    check_whole(tmp_path, 4)


def test_another_server_can_be_used_and_asked_for_what_is_not_here(tmp_path: Path) -> None:
    common = ("--name", "nano", *SMALL, "--samples", "2", "--variants", "control")
    there, here = tmp_path / "there", tmp_path / "here"
    address = Layout(there, "nano").server_address
    with started(there, "deploy", *common):
        wait_for(address.exists)
        url = (read_json(address) or {})["url"]
        with ServerApi(url) as api:
            assert api.not_ready() is None
        code, _, err = emopfx(here, "run", *common, "--server", url)
        assert code == 0, err
        assert not (here / "nano" / "activations").exists()
        code, _, err = emopfx(here, "run", *common, "--server", url, "--verify")
        assert code == 0, err
        assert "2 of 2 already done, 0 requests sent" in err
        # What is damaged there is found only where checksums are compared, and made again.
        damaged = next((there / "nano" / "activations").rglob("activations.safetensors"))
        damaged.write_bytes(bytes(damaged.stat().st_size))
        code, _, err = emopfx(here, "run", *common, "--server", url, "--verify")
        assert code == 0, err
        assert "has other content than its checksum says" in err
        assert "1 kept, 1 generated" in err
        code, _, err = emopfx(here, "run", *common, "--server", url, "--verify")
        assert code == 0, err
        assert "2 of 2 already done, 0 requests sent" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "no/such/model"), "no/such/model"),
        (("--max-tokens", "100000"), "leaves no room for the question"),
    ],
)
def test_what_the_model_cannot_do_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    code, _, err = emopfx(tmp_path, "run", "--name", "nano", *SMALL, "--samples", "2", *arguments)
    assert code == 2, err
    assert sentence in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("capture", "sentence"),
    [("{layers: [99]}", "there is no layer 99, the model has 0 to"), ("{hook_points: [mlp.out]}", "it has input")],
)
def test_a_wrong_capture_is_refused_before_any_answer(tmp_path: Path, capture: str, sentence: str) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(
        f"name: nano\nmodel: {{name: tiny}}\ndataset: {{path: {STORIES}, samples: 2}}\ncapture: {capture}\n"
    )
    code, _, err = emopfx(tmp_path, "run", "-f", str(config))
    assert code == 2
    assert sentence in err.splitlines()[-1]
    assert finished(tmp_path) == []
