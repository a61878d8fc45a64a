import json
from pathlib import Path

import pytest

from emopfx.config import Dataset
from emopfx.dataset import fingerprint, load, stem
from emopfx.errors import InputError


def write_rows(path: Path, rows: list[dict[str, object]]) -> Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset(path=str(path), samples=None)


def rows(count: int) -> list[dict[str, object]]:
    return [{"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(1, count + 1)]


def test_reads_all_rows_of_a_file_in_order(tmp_path: Path) -> None:
    samples = load(write_rows(tmp_path / "stories.jsonl", rows(12)))
    assert [sample.sample_id for sample in samples] == [f"stories_{i:04d}" for i in range(1, 13)]
    assert samples[3].question == "What is 4?"
    assert samples[3].gold == "4"


def test_selection_is_by_seed_and_grows_with_the_number(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "stories.jsonl", rows(50))

    def chosen(samples: int, seed: int) -> list[str]:
        return [s.sample_id for s in load(dataset.model_copy(update={"samples": samples, "seed": seed}))]

    assert chosen(8, 42) == chosen(8, 42) == sorted(chosen(8, 42))
    assert set(chosen(8, 42)) < set(chosen(20, 42))
    assert chosen(8, 42) != chosen(8, 43)


def test_reads_parquet(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "gsm8k" / "test.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_list(rows(3)).to_parquet(str(path))
    assert [s.sample_id for s in load(Dataset(path=str(path), samples=3))] == [f"gsm8k_000{i}" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("openai/gsm8k", "gsm8k"),
        ("/data/gsm8k/test.jsonl", "gsm8k"),
        ("/data/gsm8k/train.parquet", "gsm8k"),
        ("manifests/experiments/demo-stories.jsonl", "demo-stories"),
        ("My Stories (v2).jsonl", "my-stories-v2"),
        ("test.jsonl", "test"),
    ],
)
def test_samples_are_named_after_the_dataset(path: str, name: str) -> None:
    assert stem(Dataset(path=path)) == name


def test_a_file_is_identified_by_its_content_not_its_folder(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a" / "stories.jsonl", rows(3))
    moved = write_rows(tmp_path / "b" / "stories.jsonl", rows(3))
    changed = write_rows(tmp_path / "c" / "stories.jsonl", rows(4))
    assert fingerprint(first) == fingerprint(moved)
    assert fingerprint(first) != fingerprint(changed)


@pytest.mark.parametrize(
    ("content", "samples", "message"),
    [
        ("", None, "has no rows"),
        ('{"question": "a", "answer": "1"}\n', 2, "dataset.samples is 2, but .* has only 1 rows"),
        ('{"question": "a", "solution": "1"}\n', None, "line 1 of .* no field 'answer'; it has: question, solution"),
        ('{"question": "a", "answer": "none"}\n', None, "line 1 of .*: no number in the answer 'none'"),
        ('{"question": " ", "answer": "1"}\n', None, "line 1 of .*: the question is empty"),
        ('{"question": "\\ud800", "answer": "1"}\n', None, "bad.jsonl"),
        ('{"question": "a", \n', None, "line 1 of .* is not valid JSON"),
        ('\n{"question": "a", "answer": "1"}\nnull\n', None, "line 3 of .* must be an object .* got None"),
        ("1\n", None, "line 1 of .* must be an object with question and answer, got 1"),
        ('"a"\n', None, "line 1 of .* must be an object"),
        ('{"question": "a", "answer": 7}\n', None, "line 1 of .*: the field 'answer' must be a text, got 7"),
        ('{"question": ["a"], "answer": "7"}\n', None, "line 1 of .*: the field 'question' must be a text"),
        ("[" * 100_000 + "\n", None, "line 1 of .* is not valid JSON"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(
    tmp_path: Path, content: str, samples: int | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load(Dataset(path=str(path), samples=samples))
    assert "\n" not in str(caught.value)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["[x].jsonl", "a*.jsonl", "::x.jsonl", "test.JSONL", "[x].parquet", "X.Parquet"])
def test_a_file_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    import datasets

    write_rows(tmp_path / "ab.jsonl", rows(5))
    path = tmp_path / name
    if path.suffix.lower() == ".jsonl":
        write_rows(path, rows(2))
    else:
        with path.open("wb") as file:
            datasets.Dataset.from_list(rows(2)).to_parquet(file)
    assert len(load(Dataset(path=str(path), samples=None))) == 2


def test_a_question_stays_the_text_that_it_is(tmp_path: Path) -> None:
    dates: list[dict[str, object]] = [{"question": "2020-01-01", "answer": "1 \u2028 2"}] * 2
    dataset = write_rows(tmp_path / "x.jsonl", dates)
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "x.jsonl").read_bytes() + b"\r\n")
    assert [(sample.question, sample.gold) for sample in load(dataset)] == [("2020-01-01", "2")] * 2


def test_a_broken_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"none")
    with pytest.raises(InputError, match=r"can't read the dataset .*x.parquet: ") as caught:
        load(Dataset(path=str(tmp_path / "x.parquet")))
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_dataset_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="can't read the dataset nobody/nothing"):
        load(Dataset(path="nobody/nothing"))


def test_reading_a_file_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load(write_rows(tmp_path / "stories.jsonl", rows(3)))
    assert not (tmp_path / "cache").exists()
