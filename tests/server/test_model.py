from pathlib import Path

import pytest

from emopfx_server.engine.model import ModelError, load
from tests.server.serving import save_random_model

NORMS = {
    "llama": ("model.layers", ["input_layernorm.output", "post_attention_layernorm.output"]),
    "gpt2": ("transformer.h", ["ln_1.output", "ln_2.output"]),
    "gpt_neox": ("gpt_neox.layers", ["input_layernorm.output", "post_attention_layernorm.output"]),
}


@pytest.mark.parametrize("architecture", NORMS)
def test_layers_and_hook_points_are_found_from_the_model(architecture: str, tmp_path: Path) -> None:
    loaded = load(str(save_random_model(architecture, tmp_path)))
    path, norms = NORMS[architecture]
    assert loaded.layers_path == path
    assert loaded.num_layers == 3
    assert loaded.default_hook_points() == norms
    points = loaded.hook_points()
    assert {"input", "output", "mlp.output", *norms} <= set(points)
    assert all(layers == [0, 1, 2] for layers in points.values())
    orders = [site.order for sites in loaded.sites for site in sites.values()]
    assert orders == sorted(set(orders))
    assert loaded.sites[0]["output"].width == 64
    assert loaded.stop_tokens == []


def test_a_module_that_runs_twice_in_a_layer_is_no_hook_point(tmp_path: Path) -> None:
    points = load(str(save_random_model("phi", tmp_path))).hook_points()
    assert "resid_dropout.output" not in points
    assert {"mlp.output", "output"} <= set(points)


def test_rows_of_heads_are_one_row(tmp_path: Path) -> None:
    loaded = load(str(save_random_model("qwen3", tmp_path)))
    widths = {side: loaded.sites[1][f"self_attn.{side}_norm.output"].width for side in "qk"}
    assert widths == {"q": 4 * 16, "k": 2 * 16}
    assert loaded.unreadable == []


def test_heads_in_place_of_tokens_are_no_rows(tmp_path: Path) -> None:
    loaded = load(str(save_random_model("gemma3_text", tmp_path)))
    assert "self_attn.q_norm.output" in loaded.unreadable
    assert not set(loaded.unreadable) & set(loaded.hook_points())


def test_random_shapes_are_the_same_on_every_start(tmp_path: Path) -> None:
    folder = save_random_model("llama", tmp_path)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    one, other = load(f"random:{folder}"), load(f"random:{folder / 'config.json'}")
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(mine.equal(yours) for mine, yours in pairs)


def test_a_missing_model_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"^cannot load model '/no/such/folder': [^\n]*$"):
        load("/no/such/folder")
