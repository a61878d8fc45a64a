"""Loading a causal language model, and finding its layers and hook points."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnsight import NNsight
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from emopfx_server import tiny

PREFERRED_HOOK_POINTS = ("input_layernorm.output", "post_attention_layernorm.output")
_RANDOM = "random:"
_PROBE_TOKENS = 13  # as many as no model has heads, so that heads in place of tokens are not taken for them


class ModelError(Exception):
    """The model can't be loaded or served; one sentence says why."""


@dataclass(frozen=True)
class Site:
    """One place where activations are read: a hook point in one layer.

    Attributes:
        layer: The layer's index.
        hook_point: The module's path inside the layer plus ``.input`` or ``.output``.
        width: How many numbers it holds for a token, those of all heads together.
        order: When the forward pass reaches it, counted over the whole model; reads must follow this order.
    """

    layer: int
    hook_point: str
    width: int
    order: int

    @property
    def name(self) -> str:
        """The tensor's name in an activation file."""
        return f"layers.{self.layer}.{self.hook_point}"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to serve.

    Attributes:
        name: The model as the server was asked for it.
        model: The transformers model, on its device.
        envoy: nnsight's view of ``model``.
        layers_path: Where the list of layers is in ``model``, such as ``model.layers``.
        sites: Every place that can be read, by layer and then hook point.
        unreadable: The hook points that don't hold one row per token, or run more than once in a layer.
    """

    name: str
    revision: str | None
    model: PreTrainedModel
    envoy: NNsight
    tokenizer: PreTrainedTokenizerBase
    layers_path: str
    sites: list[dict[str, Site]]
    unreadable: list[str]

    @property
    def dtype(self) -> str:
        """The weights' data type, such as ``bfloat16``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return len(self.sites)

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2048)

    @property
    def stop_tokens(self) -> list[int]:
        """The token ids that end an answer."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            ids = self.tokenizer.eos_token_id
        return [ids] if isinstance(ids, int) else list(ids or [])

    def hook_points(self) -> dict[str, list[int]]:
        """Every hook point's name, in execution order, with the layers that have it."""
        found: dict[str, list[int]] = {}
        for layer, sites in enumerate(self.sites):
            for name in sites:
                found.setdefault(name, []).append(layer)
        return found

    def default_hook_points(self) -> list[str]:
        """The two norms' outputs, whose names differ between architectures; the layer's own where there is one norm."""
        everywhere = [name for name, layers in self.hook_points().items() if len(layers) == self.num_layers]
        if all(name in everywhere for name in PREFERRED_HOOK_POINTS):
            return list(PREFERRED_HOOK_POINTS)
        norms = [name for name in everywhere if name.endswith(".output") and _is_norm(name)]
        return [*norms, *(name for name in ("output", "input") if name in everywhere)][:2]


def _is_norm(hook_point: str) -> bool:
    module = hook_point.removesuffix(".output")
    return "." not in module and ("norm" in module or module.startswith("ln"))


def load(name: str, *, revision: str | None = None, dtype: str = "auto") -> LoadedModel:
    """Load a model and its tokenizer and find its hook points.

    Args:
        name: A Hugging Face id or folder, ``tiny``, or ``random:`` plus the id, folder or JSON file of a config.
        revision: The revision on the hub.
        dtype: ``auto``, ``float32`` or ``bfloat16``.

    Raises:
        ModelError: When there is no such model, or it can't be served.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name.startswith(_RANDOM):
            model, tokenizer = _random(name.removeprefix(_RANDOM), revision, dtype, device)
        else:
            source = str(tiny.path()) if name == "tiny" else name
            model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model = model.to(device).eval().requires_grad_(False)
        path, sites, unreadable = find_sites(model)
    except ModelError:
        raise
    except Exception as error:  # of any kind: what a config or a file holds is taken as it is, and stumbled on
        raise ModelError(f"cannot load model {name!r}: {_reason(error)}") from error
    return LoadedModel(name, revision, model, NNsight(model), tokenizer, path, sites, unreadable)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(" Model type should be one of")[0]  # hundreds of names follow
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


def _random(
    source: str, revision: str | None, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of a real shape with random weights, the same on every start."""
    config = _read_config(source, revision)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=_torch_dtype(dtype, config))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError):  # a bare config has no tokenizer: the built-in one serves any text
        tokenizer = AutoTokenizer.from_pretrained(tiny.path())
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise ValueError(
            f"the config's vocab_size is {config.get_text_config().vocab_size}, "
            f"but its tokenizer has {len(tokenizer)} tokens"
        )
    return model, tokenizer


def _read_config(source: str, revision: str | None) -> PretrainedConfig:
    if Path(source).is_file():
        content = json.loads(Path(source).read_text())
        if not isinstance(content, dict) or "model_type" not in content:
            raise ValueError("the config is no JSON object with a model_type")
        return AutoConfig.for_model(**content)
    return AutoConfig.from_pretrained(source, revision=revision)


def _torch_dtype(dtype: str, config: PretrainedConfig) -> torch.dtype:
    if dtype == "auto":
        return config.dtype or torch.float32
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found


def find_sites(model: PreTrainedModel) -> tuple[str, list[dict[str, Site]], list[str]]:
    """Find the list of layers and every place inside them that holds one row per token.

    A short forward pass tells which modules run, in which order, and what shapes they take and give. A module that runs
    more than once in a layer is no one place, and is left out. Rows that are parted by heads count as one.

    Returns:
        The path of the list of layers; each layer's sites by hook point, in execution order; and the hook points that
        are left out in every layer.

    Raises:
        ModelError: When no list of modules is as long as the config's number of layers.
    """
    config = model.config.get_text_config()
    path = _layers_path(model, config.num_hidden_layers)
    sites: list[dict[str, Site]] = [{} for _ in range(config.num_hidden_layers)]
    repeated: set[tuple[int, str]] = set()
    others: dict[str, None] = {}
    order = 0

    def record(layer: int, hook_point: str, value: Any) -> None:
        nonlocal order
        tensor = first_tensor(value)
        if tensor is None or tensor.dim() < 3 or tensor.shape[:2] != (1, _PROBE_TOKENS):
            others[hook_point] = None
            return
        if hook_point in sites[layer]:
            repeated.add((layer, hook_point))
        sites[layer][hook_point] = Site(layer, hook_point, tensor.shape[2:].numel(), order)
        order += 1

    handles = []
    for index, layer in enumerate(model.get_submodule(path)):
        for inner, module in layer.named_modules():
            prefix = f"{inner}." if inner else ""
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, i=index, p=prefix: record(i, f"{p}input", (*args, *kwargs.values())),
                    with_kwargs=True,
                )
            )
            handles.append(
                module.register_forward_hook(lambda _, __, out, i=index, p=prefix: record(i, f"{p}output", out))
            )
    try:
        with torch.no_grad():
            model(torch.zeros(1, _PROBE_TOKENS, dtype=torch.long, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    for layer, hook_point in repeated:
        del sites[layer][hook_point]
        others[hook_point] = None
    return path, sites, [name for name in others if not any(name in found for found in sites)]


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a site's tensor, ``[tokens, width]``, those of all heads side by side."""
    return tensor[0].flatten(1)


def first_tensor(value: Any) -> torch.Tensor | None:
    """The tensor that stands for a module's input or output: itself, or the first of a tuple."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return value if isinstance(value, torch.Tensor) else None


def _layers_path(model: PreTrainedModel, num_layers: int) -> str:
    """The outermost list of modules that is as long as the model is deep."""
    paths = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    ]
    if not paths:
        raise ModelError(f"no list of {num_layers} layers was found in {type(model).__name__}")
    return str(min(paths, key=lambda name: name.count(".")))
