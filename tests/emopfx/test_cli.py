import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emopfx import cli
from emopfx.config_file import parse
from emopfx.layout import read_json
from tests.emopfx.scripted_server import STRUCTURE, Reply, Request, completion, serve

ROWS = "".join(json.dumps({"question": f"What is {i}?", "answer": f"#### {i}"}) + "\n" for i in range(1, 10))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-cluster"))
    (tmp_path / "stories.jsonl").write_text(ROWS)


def emopfx(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    code = end.value.code
    assert isinstance(code, int)
    return code


def server(request: Request) -> Reply:
    """Serve the model `tiny`, which answers 7 and captures nothing."""
    if request.method == "POST":
        return completion(request_id=request.body["ndif"]["request_id"])
    return Reply(body=STRUCTURE if request.path.endswith("structure") else {"status": "ready"})


FLAGS = ("--name", "nano", "--model", "tiny", "--dataset", "stories.jsonl", "--samples", "3", "--no-capture")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "say which experiment: -f experiment.yaml or --name"),
        (["run", "-f", "none.yaml"], "there is no config file none.yaml"),
        (["run", "-f", "broken.yaml"], "broken.yaml, line 3: not valid YAML"),
        (["run", "-f", "typo.yaml"], "typo.yaml: unknown key generation.max_token; did you mean max_tokens?"),
        (["run", *FLAGS, "--variants", "control,angry"], "unknown variant 'angry'; built in are control, "),
        (["run", *FLAGS, "--dataset", "none.jsonl"], "dataset.path: there is no file none.jsonl"),
        (["run", *FLAGS, "--samples", "10"], "dataset.samples is 10, but"),
        (["run", *FLAGS, "--max-tokens", "0"], "generation.max_tokens: input should be greater than or equal to 1"),
        (["run", *FLAGS, "--stages", "train"], "--stages: there is no stage 'train'; allowed: deploy, "),
        (["run", *FLAGS, "--target", "moon"], "--target: there is no target 'moon'; allowed: local"),
        (["run", *FLAGS, "--target", "moon"], "allowed: local, kubernetes"),
        (["run", *FLAGS, "--target", "kubernetes", "--verify"], "--verify is for the target local"),
        (["run", *FLAGS, "--stages", ","], "--stages names no stage; allowed: deploy, "),
        (["run", *FLAGS, "--stages", ""], "--stages names no stage"),
        (["run", *FLAGS, "--server", "localhost:1"], "must begin with http://"),
        (["run", *FLAGS, "--server", "ftp://host"], "must begin with http://"),
        (["run", *FLAGS, "--server", "http://host:port"], "must begin with http://"),
        (["run", *FLAGS, "--server", "http://[::1"], "must begin with http://"),
        (["run", *FLAGS, "--server", "http://me:pw@host"], "must hold no user or password; a key goes into EMOPFX_API"),
        (["run", *FLAGS, "--results", "stories.jsonl"], "--results: stories.jsonl is not a folder"),
        (["status", "--results", "stories.jsonl"], "--results: stories.jsonl is not a folder"),
        (["run", *FLAGS, "--results", "stories.jsonl/x"], "nano can't be a folder: there is a file in the way"),
        (["deploy", *FLAGS, "--results", "stories.jsonl/x"], "nano can't be a folder: there is a file in the way"),
        (["run", *FLAGS, "--dataset", "missing.csv"], "dataset.path: allowed are a .jsonl or .parquet file, and"),
        (["run", "-f", "shapes.yaml", "--probes"], "analysis must be a mapping with the keys probes, sae, got ['x']"),
        (["run", "-f", "shapes.yaml", "--variants", "angry"], "variants.0: unknown variant 'angry'"),
        (["run", "-f", "date.yaml"], "date.yaml, line 1: not valid YAML: '2020-13-45' is no timestamp"),
        *(
            ([stage, *FLAGS, "--target", "kubernetes"], f"emopfx run --stages {stage} runs this stage")
            for stage in ("deploy", "configure", "generate", "analyze")
        ),
        (["status", "--target", "kubernetes"], "there is no cluster to talk to"),
        (["logs", "--name", "nano", "--target", "local"], "only Jobs of the target kubernetes have logs"),
        (["fetch", "--name", "nano"], "say where the server is: --server http://…, or --target kubernetes"),
        (["download-activations", "--name", "nano"], "say where the server is"),
        (["delete", "--name", "nano"], "delete --data deletes both"),
        (["delete", "--name", "../nano", "--data"], "--name must be 1 to 40 of a-z, 0-9 and -"),
        (["run", "--name", "Nano"], "name must be 1 to 40 of a-z, 0-9 and -"),
        (["analyze", "--name", "none"], "there is no experiment none in results; there are: none"),
        (["status", "--name", "none"], "there is no experiment none"),
        (["monitor", "--name", "none"], "there is no experiment none"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("name: a\nmodel: {name: tiny\n")
    (tmp_path / "shapes.yaml").write_text("name: a\nanalysis: [x]\nvariants: [{name: [x], prefix: y}]\n")
    (tmp_path / "date.yaml").write_text("name: 2020-13-45\n")
    (tmp_path / "typo.yaml").write_text("name: a\ngeneration: {max_token: 3}\n")
    assert emopfx(*arguments) == 2
    output = capsys.readouterr()
    assert sentence in output.err
    assert len(output.err.splitlines()) == 1
    assert output.out == ""


@pytest.mark.parametrize("arguments", [["run", "--samples", "many"], ["run", "--sample", "3"], ["jump"]])
def test_bad_flags_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert emopfx(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_server_lacks_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(server) as running:
        assert emopfx("run", *FLAGS, "--model", "gpt2", "--server", running.url) == 2
    assert "the server serves the model tiny, but the config names gpt2" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert emopfx("run", *FLAGS, "--results", "x" * 300) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("emopfx: xxx")
    assert line.endswith("File name too long")


def test_a_server_that_is_not_there_is_said_at_once_and_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emopfx.targets.local.AWAY_SECONDS", 0.2)
    with serve(server) as running:
        pass
    assert emopfx("run", *FLAGS, "--server", running.url) == 1
    said = capsys.readouterr().err
    assert f"waiting for the server at {running.url}: " in said
    assert f"emopfx: the server at {running.url} was not ready within 1 s: " in said


def test_generate_alone_checks_the_server_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.yaml").write_text(
        "name: other\nmodel: {name: tiny, dtype: float32}\ndataset: {path: stories.jsonl, samples: 1}\n"
    )
    with serve(server) as running:
        for command in (("generate",), ("run", "--stages", "generate")):
            assert emopfx(*command, "-f", "other.yaml", "--server", running.url) == 2
            assert "the server computes in bfloat16, but the config says model.dtype float32" in capsys.readouterr().err
        assert not any(request.method == "POST" for request in running.requests)
        assert emopfx("generate", *FLAGS, "--server", running.url) == 0
    assert emopfx("analyze", "--name", "nano") == 0
    report = read_json(tmp_path / "results" / "nano" / "report.json")
    assert report is not None
    assert report["model"]["num_layers"] == 4
    assert report["server"]["url"] == running.url


def test_a_config_may_come_through_a_pipe(tmp_path: Path) -> None:
    text = "name: piped\nmodel: {name: tiny}\ndataset: {path: stories.jsonl, samples: 1}\ncapture: {enabled: false}\n"
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    with serve(server) as running:
        assert emopfx("run", "-f", f"/dev/fd/{reader}", "--server", running.url) == 0
    os.close(reader)
    assert (tmp_path / "results" / "piped" / "experiment.yaml").read_text() == text


def test_a_dataset_flag_is_a_path_from_here(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yaml").write_text("name: nano\nmodel: {name: tiny}\n")
    (tmp_path / "configs" / "stories.jsonl").write_text("wrong\n")
    with serve(server) as running:
        at = ("--server", running.url)
        flags = ("--dataset", "stories.jsonl", "--samples", "1", "--no-capture")
        assert emopfx("run", "-f", "configs/a.yaml", *flags, *at) == 0


def test_a_run_on_flags_alone_makes_a_report_and_a_second_one_sends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(server) as running:
        assert emopfx("run", *FLAGS, "--variants", "control,calm", "--server", running.url) == 0
        assert sum(request.method == "POST" for request in running.requests) == 6
        assert "nano: 6 of 6 samples" in capsys.readouterr().out
    # All is there: nobody asks the server, which is gone.
    assert emopfx("run", "--name", "nano", "--server", running.url) == 0
    assert "6 of 6 already done, 0 requests sent" in capsys.readouterr().err
    record = read_json(tmp_path / "results" / "nano" / "experiment_config.json")
    assert record is not None
    assert {entry["state"] for entry in record["stages"].values()} == {"succeeded"}
    assert record["model"]["num_layers"] == 4
    assert record["dataset"]["path"] == str(tmp_path / "stories.jsonl")
    given = yaml.safe_load((tmp_path / "results" / "nano" / "experiment.yaml").read_text())
    assert given["variants"] == ["control", "calm"]


def test_the_config_is_kept_as_given_and_flags_override_it(tmp_path: Path) -> None:
    text = (
        "# mine\nname: nano\nmodel: {name: tiny}\ndataset: {path: stories.jsonl, samples: 2}\n"
        "variants: [control, {name: rude, prefix: Oi!}]\ncapture: {enabled: false}\n"
    )
    (tmp_path / "mine.yaml").write_text(text)
    with serve(server) as running:
        common = ("run", "-f", "mine.yaml", "--server", running.url)
        assert emopfx(*common) == 0
        assert (tmp_path / "results" / "nano" / "experiment.yaml").read_text() == text
        assert emopfx(*common, "--name", "other", "--variants", "rude", "--samples", "1") == 0
    last = running.requests[-1].body
    assert last["messages"][0]["content"].startswith("Oi!\n\nWhat is ")
    given = yaml.safe_load((tmp_path / "results" / "other" / "experiment.yaml").read_text())
    assert (given["dataset"]["samples"], given["variants"]) == (1, [{"name": "rude", "prefix": "Oi!"}])


def test_a_changed_config_is_refused_or_gets_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(server) as running:
        common = ("run", *FLAGS, "--variants", "control", "--server", running.url)
        assert emopfx(*common) == 0
        assert emopfx(*common, "--seed", "9") == 2
        assert "generation.seed: 0 → 9" in capsys.readouterr().err
        assert emopfx(*common, "--seed", "9", "--new-revision") == 0
        (revision,) = (path.name for path in (tmp_path / "results").glob("nano-*"))
        kept = yaml.safe_load((tmp_path / "results" / revision / "experiment.yaml").read_text())
        assert (kept["name"], kept["generation"]["seed"]) == (revision, 9)
        assert emopfx("run", "--name", revision, "--server", running.url) == 0
    assert "3 of 3 already done" in capsys.readouterr().err


def test_stages_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(server) as running:
        at = ("--server", running.url)
        assert emopfx("configure", *FLAGS, *at) == 0
        assert emopfx("analyze", "--name", "nano") == 1
        assert "there are no finished samples" in capsys.readouterr().err
        assert emopfx("generate", "--name", "nano", *at) == 0
    (tmp_path / "stories.jsonl").unlink()
    assert emopfx("analyze", "--name", "nano") == 0
    assert emopfx("status", "--name", "nano") == 0
    assert emopfx("monitor", "--name", "nano") == 0
    assert "24 of 24" in capsys.readouterr().out


def test_deletes_an_experiment_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(server) as served:
        for name in ("nano", "other"):
            assert emopfx("run", *FLAGS, "--name", name, "--server", served.url) == 0
    assert emopfx("delete", "--name", "nano", "--data") == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["other"]
    assert emopfx("delete", "--name", "nano", "--data") == 0
    assert "there are no results of nano" in capsys.readouterr().err


def test_a_failed_run_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    def refusing(request: Request) -> Reply:
        return Reply(400, {"error": {"message": "The prompt is too long."}}) if request.body else server(request)

    with serve(refusing) as running:
        assert emopfx("run", *FLAGS, "--variants", "control", "--server", running.url) == 1
    assert "3 of 3 samples failed" in capsys.readouterr().err
    assert emopfx("status", "--name", "nano") == 0
    assert "failed" in capsys.readouterr().out


def test_the_schema_is_json_and_fits_the_experiments_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert emopfx("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    root = Path(__file__).parents[2]
    for path in (root / "manifests" / "experiments").glob("*.yaml"):
        raw = yaml.safe_load(path.read_text())
        assert set(raw) <= set(schema["properties"])
        if "path" in raw["dataset"] and raw["dataset"]["path"].endswith(".jsonl"):
            raw["dataset"]["path"] = str(root / raw["dataset"]["path"])
        assert parse(raw, path.name).name == path.stem


def test_the_schema_of_the_report_says_what_its_fields_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert emopfx("schema", "--report") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["required"]) >= {"version", "statistics", "probes", "sae", "config"}
    effect = schema["$defs"]["Effect"]["properties"]
    assert "Holm's method" in effect["p_holm"]["description"]


def test_help_imports_nothing_slow() -> None:
    slow = {"datasets", "torch", "pyarrow", "boto3", "scipy"}
    code = f"import sys, emopfx.cli; sys.exit(bool({slow} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
