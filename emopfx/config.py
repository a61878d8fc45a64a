"""The experiment's config."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from emopfx import variants
from emopfx.config_values import (
    ChangedPositions,
    Layers,
    Positions,
    read_changed_positions,
    read_endpoint,
    read_layers,
    read_positions,
    read_s3_uri,
)

Stage = Literal["deploy", "configure", "generate", "analyze"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FILE_SUFFIXES = (".jsonl", ".parquet")
# Files of questions as others keep them: none of these is meant as a dataset of the hub.
OTHER_SUFFIXES = (
    *(".csv", ".tsv", ".json", ".txt", ".md", ".yaml", ".yml", ".xml", ".xlsx", ".arrow", ".feather", ".pkl", ".db"),
    *(".gz", ".zip", ".tar", ".bz2", ".xz", ".zst"),
)
DATASETS_ALLOWED = "allowed are a .jsonl or .parquet file, and a dataset on the Hugging Face hub (owner/name)"
HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
# Names of folders and, in a cluster, of objects: 40 characters leave room for "-generate-" and a hash in 63.
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
RESERVED_NAMES = ("activations", "artifacts")
_NONEMPTY = Field(min_length=1)


# What the JSON Schema says of a variant's name.
BuiltIn = Annotated[str, WithJsonSchema({"enum": list(variants.BUILT_IN)})]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(Section):
    """The language model that is asked."""

    name: str = Field("Qwen/Qwen3-0.6B", description="Hugging Face id, path, tiny, or random:CONFIG", min_length=1)
    revision: str | None = Field(None, description="Commit, branch or tag of a Hugging Face model")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("bfloat16", description="What the model computes in")


class Dataset(Section):
    """The questions, and which of them are asked."""

    path: str = Field("openai/gsm8k", description="Hugging Face id, or a .jsonl or .parquet file", min_length=1)
    config: str | None = Field("main", description="Configuration of a Hugging Face dataset; null if it has none")
    split: str = Field("test", description="Split of a Hugging Face dataset")
    revision: str | None = Field(None, description="Commit, branch or tag of a Hugging Face dataset")
    samples: int | None = Field(8, ge=1, description="How many questions; null takes all")
    seed: int = Field(42, description="Chooses the questions; more samples keep the ones that fewer had")

    @property
    def is_file(self) -> bool:
        """Whether the path names a local file and not a dataset on the Hugging Face hub."""
        return self.path.lower().endswith(FILE_SUFFIXES)

    @field_validator("path")
    @classmethod
    def _file_or_hub_id(cls, value: str) -> str:
        lower = value.lower()
        hub_id = HUB_ID_PATTERN.fullmatch(value) and not lower.endswith(OTHER_SUFFIXES)
        if hub_id or lower.endswith(FILE_SUFFIXES):
            return value
        raise ValueError(f"{DATASETS_ALLOWED}, got {value!r}")


class Generation(Section):
    """How answers are sampled."""

    max_tokens: int = Field(2048, ge=1, description="Most tokens of one answer")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, description="Every sample and repeat has its own seed from it, the same in all variants")
    repeats: int = Field(1, ge=1, description="Answers to each question in each variant")
    concurrency: int = Field(32, ge=1, description="Requests in flight at once")
    max_failures: int = Field(0, ge=0, description="With more failed samples than this, generate fails")


class Intervention(Section):
    """A change to the model's activations at one hook point, while it answers."""

    kind: Literal["add", "scale", "zero", "replace"] = Field(
        description="Add scale × vector, multiply by scale, set to zero, or put scale × vector in place"
    )
    layer: int = Field(description="Number of the layer, negative from the end")
    hook_point: str = Field("output", description="Place inside the layer; output is the residual stream behind it")
    vector: str | None = Field(
        None,
        pattern=r"^[^#]+(#[^#]+)?$",
        description="file.safetensors#tensor, in the experiment's results folder (such as artifacts/…) or relative to "
        "the folder of all results (another-experiment/artifacts/…); a file's only tensor need not be named",
    )
    scale: float | None = Field(None, allow_inf_nan=False, description="1 if left out")
    positions: Annotated[
        str | list[str], BeforeValidator(read_changed_positions, json_schema_input_type=ChangedPositions)
    ] = Field(
        "all", description="Tokens concerned: all, prompt, generated, last_prompt, or a list of ranges of positions"
    )

    @property
    def file(self) -> str | None:
        """The vector's file, without the tensor's name."""
        return self.vector and self.vector.partition("#")[0]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        takes_vector = self.kind in ("add", "replace")
        if takes_vector != (self.vector is not None):
            raise ValueError(f"an intervention of kind {self.kind} {'needs a' if takes_vector else 'takes no'} vector")
        if self.kind == "scale" and self.scale is None:
            raise ValueError("an intervention of kind scale needs a scale")
        if self.kind == "zero" and self.scale is not None:
            raise ValueError("an intervention of kind zero takes no scale")
        return self


class Variant(Section):
    """A way of asking: one of the prefixes is put in front of the first user message, activations are changed."""

    name: str = Field(pattern=NAME_PATTERN)
    prefixes: list[Annotated[str, Field(min_length=1)]] = Field(
        description="Phrasings, one chosen per sample by seed; an empty list changes nothing"
    )
    interventions: list[Intervention] = Field([], description="Changes to activations, made in this order")


class CustomVariant(Section):
    """A variant of the user's own, with one phrasing or several, or with interventions (as JSON Schema only)."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {"required": ["prefix", "prefixes"]},
            "anyOf": [
                {"required": ["prefix"]},
                {"required": ["prefixes"]},
                {"required": ["interventions"], "properties": {"interventions": {"minItems": 1}}},
            ],
        }
    )

    name: str = Field(pattern=NAME_PATTERN)
    prefix: str = Field("", min_length=1)
    prefixes: list[Annotated[str, _NONEMPTY]] = []
    interventions: list[Intervention] = []


def _read_variant(value: object) -> object:
    if isinstance(value, str):
        if value not in variants.BUILT_IN:
            raise ValueError(f"unknown variant {value!r}; built in are {', '.join(variants.BUILT_IN)}")
        return Variant(name=value, prefixes=list(variants.BUILT_IN[value]))
    if isinstance(value, Mapping):
        texts = [key for key in ("prefix", "prefixes") if key in value]
        if len(texts) == 2 or (not texts and not value.get("interventions")):
            raise ValueError(
                "a variant of your own needs either prefix or prefixes, or interventions, beside its name, "
                f"got {dict(value)}"
            )
        rest = {key: item for key, item in value.items() if key != "prefix"}
        return {**rest, "prefixes": [value["prefix"]]} if "prefix" in value else {"prefixes": [], **rest}
    return value


GivenVariant = Annotated[Variant, BeforeValidator(_read_variant, json_schema_input_type=BuiltIn | CustomVariant)]


class Capture(Section):
    """Which hidden activations the server keeps while it generates."""

    enabled: bool = True
    layers: Annotated[str | list[int], BeforeValidator(read_layers, json_schema_input_type=Layers)] = Field(
        "all", description="all, a list of layer numbers (negative from the end) or a slice start:stop:step"
    )
    hook_points: list[str] = Field(
        ["input_layernorm.output", "post_attention_layernorm.output"],
        min_length=1,
        description="Places inside a layer; the server's /v1/model/structure lists those of its model",
    )
    positions: Annotated[str | list[str], BeforeValidator(read_positions, json_schema_input_type=Positions)] = Field(
        "all",
        description="all, prompt, generated, last_prompt, last, or a list of ranges start:stop of token positions",
    )
    dtype: Literal["bfloat16", "float16", "float32", "model"] = "bfloat16"


class S3(Section):
    """A bucket that keeps what the experiment made; boto3 finds the credentials by itself."""

    uri: Annotated[str, AfterValidator(read_s3_uri)] = Field(description="s3://bucket or s3://bucket/prefix")
    endpoint_url: Annotated[str | None, AfterValidator(read_endpoint)] = Field(
        None, description="Address of a service other than AWS; else AWS_ENDPOINT_URL_S3"
    )
    push: bool | Literal["continuous"] = Field(
        False, description="Whether generate and analyze push what they made; continuous: each answer when it is there"
    )


class Storage(Section):
    """Where results are kept besides the results folder."""

    s3: S3 | None = None


class Probes(Section):
    """Linear probes of every captured layer and hook point."""

    features: list[Literal["last_prompt", "mean_generated", "last"]] = Field(
        ["last_prompt", "mean_generated", "last"],
        min_length=1,
        description="What is probed: the last token of the prompt, the mean over generated tokens, the last token",
    )
    folds: int = Field(5, ge=2, description="Of the cross-validation; a question is in one of them")
    c: float = Field(0.01, gt=0, description="Inverse of the penalty's strength, as in scikit-learn")


class Sae(Section):
    """Sparse autoencoders, one for each of these layers and hook points."""

    layers: list[int] = Field(min_length=1, description="Numbers of captured layers")
    hook_points: list[str] | None = Field(None, min_length=1, description="Captured hook points; null takes all")
    expansion: int = Field(8, ge=1, description="Features for each dimension of the activations")
    k: int = Field(32, ge=1, description="Features that are active at once")
    tokens: int = Field(2_000_000, ge=1, description="Tokens to train on; those there are come round again")


class Analysis(Section):
    """What is done with the activations, beyond the statistics of the answers."""

    probes: Probes | None = Field(None, description="null for none, {} for the defaults")
    sae: Sae | None = Field(None, description="null for none")


class Experiment(Section):
    """One experiment."""

    name: str = Field(pattern=NAME_PATTERN, description="Names the results folder: a-z, 0-9 and -, at most 40 long")
    model: Model = Model()
    dataset: Dataset = Dataset()
    generation: Generation = Generation()
    variants: list[GivenVariant] = Field(
        [Variant(name=name, prefixes=list(prefixes)) for name, prefixes in variants.BUILT_IN.items()],
        min_length=1,
        description="Names from the built-in set, or {name, prefix}, {name, prefixes}, {name, interventions}",
    )
    capture: Capture = Capture()
    analysis: Analysis = Analysis()
    storage: Storage = Storage()
    stages: list[Stage] = Field(list(STAGES), min_length=1)

    @field_validator("variants")
    @classmethod
    def _distinct(cls, value: list[Variant]) -> list[Variant]:
        names = [variant.name for variant in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the variant {name!r} is there twice")
            if name in RESERVED_NAMES:
                raise ValueError(f"a variant can't be named {name!r}: that folder is used otherwise")
        return value
