import pytest

from emopfx import cluster_config, config_identity
from emopfx.errors import InputError

TEXT = "name: nano\nmodel: {name: tiny}\ndataset: {path: only/in-the-image.jsonl}\n"


def digest(text: str) -> str:
    return config_identity.config_hash(cluster_config.identity(cluster_config.read(text, "x.yaml")))


def test_the_hash_covers_the_path_of_a_dataset_that_is_not_here() -> None:
    assert digest(TEXT) == digest(TEXT)
    assert digest(TEXT) != digest(TEXT.replace("only/", "also/"))


def test_the_hash_covers_what_changes_results_and_not_the_name() -> None:
    assert digest(TEXT + "generation: {concurrency: 2}") == digest(TEXT) == digest(TEXT.replace("nano", "other"))
    assert digest(TEXT + "generation: {seed: 2}") != digest(TEXT)


def test_a_dataset_of_the_hub_is_hashed_as_everywhere() -> None:
    experiment = cluster_config.read("name: nano\n", "x.yaml")
    assert cluster_config.identity(experiment)["dataset"] == {
        "name": "gsm8k",
        "samples": 8,
        "seed": 42,
        "path": "openai/gsm8k",
        "config": "main",
        "split": "test",
        "revision": None,
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("name: [", "x.yaml, line 1: not valid YAML"), ("- a", "must be a mapping"), ("nam: a", "did you mean name")],
)
def test_what_is_wrong_is_said(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        cluster_config.read(text, "x.yaml")
