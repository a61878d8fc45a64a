from pathlib import Path

from emopfx.config import Experiment
from emopfx.config_file import parse
from emopfx.dataset import Sample
from emopfx.layout import Layout
from emopfx.units import ndif_request, plan

SAMPLES = [Sample(f"gsm8k_{i:04d}", f"What is {i}?", str(i)) for i in range(1, 5)]


def experiment(**changes: object) -> Experiment:
    return parse({"name": "nano", "variants": ["control", "calm", "neutral"], **changes}, "test")


def test_units_are_all_variants_of_all_samples_question_by_question() -> None:
    keys = [unit.key for unit in plan(experiment(), SAMPLES, "h")]
    assert keys[:4] == ["control/gsm8k_0001", "calm/gsm8k_0001", "neutral/gsm8k_0001", "control/gsm8k_0002"]
    assert len(keys) == 12


def test_seeds_are_equal_in_all_variants_and_differ_between_samples_and_repeats() -> None:
    units = plan(experiment(generation={"repeats": 2}), SAMPLES, "h")
    by_sample: dict[tuple[str, int], set[int]] = {}
    for unit in units:
        by_sample.setdefault((unit.sample.sample_id, unit.repeat), set()).add(unit.seed)
    assert all(len(seeds) == 1 for seeds in by_sample.values())
    assert len({seed for seeds in by_sample.values() for seed in seeds}) == 8
    assert all(0 <= unit.seed < 2**31 for unit in units)


def test_request_ids_are_stable_and_name_one_answer_each() -> None:
    units = plan(experiment(generation={"repeats": 2}), SAMPLES, "h")
    ids = [unit.request_id for unit in units]
    assert len(set(ids)) == 24
    assert ids == [unit.request_id for unit in plan(experiment(generation={"repeats": 2}), SAMPLES, "h")]
    assert not set(ids) & {unit.request_id for unit in plan(experiment(generation={"repeats": 2}), SAMPLES, "i")}


def test_phrasings_are_paired_and_control_has_none() -> None:
    control, calm, neutral = plan(experiment(), SAMPLES, "h")[:3]
    assert (control.phrasing, control.prefix) == (None, None)
    assert calm.phrasing == neutral.phrasing is not None
    assert calm.prefix != neutral.prefix
    assert calm.prefix is not None
    assert calm.messages[0]["content"].startswith(calm.prefix)


def test_the_server_is_told_what_to_capture_and_where(tmp_path: Path) -> None:
    config = experiment(capture={"layers": [0, -1], "positions": "last"})
    unit = plan(config, SAMPLES, "h")[1]
    assert ndif_request(unit, config, Layout(tmp_path, "nano-12")) == {
        "request_id": unit.request_id,
        "capture": True,
        "layers": [0, -1],
        "hook_points": ["input_layernorm.output", "post_attention_layernorm.output"],
        "positions": "last",
        "dtype": "bfloat16",
        "save_dir": "nano-12/activations/calm/gsm8k_0001",
        "per_request_subdir": True,
        "config_hash": "h",
    }
    off = experiment(capture={"enabled": False})
    assert ndif_request(unit, off, Layout(tmp_path, "nano")) == {"request_id": unit.request_id, "capture": False}


def test_the_server_is_told_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "v.safetensors").touch()
    add = {"kind": "add", "layer": 1, "vector": "v.safetensors#calm", "scale": 4}
    config = experiment(variants=["control", {"name": "steer", "interventions": [add]}], capture={"enabled": False})
    control, steer = plan(config, SAMPLES, "h")[:2]
    layout = Layout(tmp_path, "nano-12")
    assert "interventions" not in ndif_request(control, config, layout)
    assert ndif_request(steer, config, layout)["interventions"] == [
        {**add, "hook_point": "output", "vector": "nano/v.safetensors#calm", "positions": "all"}
    ]
    assert steer.messages == control.messages
