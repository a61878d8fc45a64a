"""What report.json holds: `emopfx schema --report` prints it as JSON Schema."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Raised when a field changes its meaning or goes away, not when one is added.
VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]


class Piece(BaseModel):
    """A piece of the report."""

    # Building the validators takes a while, and most commands need none.
    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        defer_build=True,
        json_schema_serialization_defaults_required=True,
    )


class Estimate(Piece):
    """A mean with its 95 % interval; low and high are null where too few questions say nothing about it."""

    value: float
    low: float | None
    high: float | None


class Summary(Piece):
    """One variant by itself."""

    variant: str
    n: int
    """Finished answers."""
    expected: int
    """Answers that a complete experiment has."""
    questions: int
    """Questions with at least one finished answer."""
    truncated: int
    """Answers cut at max_tokens."""
    correct: int
    """Right answers."""
    accuracy: Estimate | None
    """Share of right answers; null without any answer, as the two below."""
    format: Estimate | None
    """Share of answers that end in the asked-for form."""
    completion_tokens: Estimate | None
    """Mean length of an answer in tokens."""


class Effect(Piece):
    """A variant's mean minus its baseline's, over the questions that both answered."""

    difference: float
    low: float | None
    """Ends of the 95 % bootstrap interval over questions. Where all questions differ alike, it is that of Clopper and
    Pearson for shares, from how many questions could differ otherwise, and null for tokens; null for one question."""
    high: float | None
    test: Literal["mcnemar", "sign-flip"]
    """Exact McNemar's test, or a sign-flip permutation test over questions."""
    p: Share
    """Two-sided, of this comparison alone."""
    p_holm: Share
    """Adjusted by Holm's method over the variants that are compared with this baseline in this measure."""
    detectable: float | None
    """The smallest difference that would be found with 80 % power at the strictest level of Holm's method; null where
    none would be."""


class Comparison(Piece):
    """A variant against a baseline, paired by question and repeat."""

    variant: str
    baseline: str
    pairs: int
    questions: int
    accuracy: Effect
    format: Effect
    completion_tokens: Effect
    right_to_wrong: list[str]
    """Pairs that the baseline got right and the variant wrong: sample ids, with /r2 … where there are repeats."""
    wrong_to_right: list[str]


class Statistics(Piece):
    """Everything that is counted and tested."""

    seed: int
    """Of the bootstrap and the permutations."""
    resamples: int
    """How many of each."""
    confidence: Share
    alpha: Share
    power: Share
    variants: list[Summary]
    comparisons: list[Comparison]
    without_truncated: list[Comparison] | None
    """The same without pairs in which an answer was truncated; null where none was."""


class ActivationFiles(Piece):
    """What became of the answers' activations: only those that can be read are analyzed."""

    answers: int
    """Answers that should have activations."""
    unreadable: dict[str, str]
    """What is wrong with those that are missing or corrupt, by sample."""


class Probe(Piece):
    """A linear probe at one place, scored on held-out questions."""

    layer: int
    hook_point: str
    accuracy: Estimate
    auc: Estimate
    """Area under the ROC curve within folds; of more than two classes, the mean of each against the rest."""
    shuffled: Estimate
    """Accuracy of the same probe after its labels were shuffled."""
    selectivity: float
    """Accuracy minus shuffled accuracy."""


class ProbeTask(Piece):
    """What probes were asked to tell apart, from which feature, and how well they do at every place."""

    name: str
    """variant, "calm vs control", …, or correct."""
    feature: Literal["last_prompt", "mean_generated", "last"]
    classes: list[str]
    """Of two, the second is the positive one."""
    samples: int
    """Answers to questions in which the classes differ; only these are used."""
    questions: int
    majority: Share
    """Accuracy of always naming the most frequent class."""
    probes: list[Probe]


class Skipped(Piece):
    """A task that could not be probed."""

    name: str
    feature: str
    reason: str


class Probes(Piece):
    """Where in the network a task's answer can be read off."""

    folds: int
    c: float
    """Inverse of the penalty's strength."""
    tasks: list[ProbeTask]
    skipped: list[Skipped]
    projections: list[str]
    """Names of the probes in artifacts/probes/projections.jsonl, which has each token's projection."""


class SaeFeature(Piece):
    """An SAE feature whose mean activation differs between a variant and the baseline, paired by question."""

    feature: int
    variant: str
    difference: Estimate
    q: Share
    """p adjusted by Benjamini and Hochberg's method over all features and variants of this SAE."""
    active: Share
    """Share of tokens on which the feature is active."""


class Sae(Piece):
    """A sparse autoencoder of one place."""

    layer: int
    hook_point: str
    width: int
    """Features."""
    k: int
    """Features active at once."""
    tokens: int
    """Tokens it was trained on."""
    explained_variance: float
    dead: int
    """Features that were never active on held-out tokens."""
    features: list[SaeFeature]


class Saes(Piece):
    """The sparse autoencoders, and what differs most between variants in each."""

    baseline: str
    """The variant that the others are compared with."""
    saes: list[Sae]
    skipped: list[str]
    """Places without one, each with the reason."""


class Sections(Piece):
    """What the parts of the analysis found; null is what was not asked for."""

    statistics: Statistics | None = None
    activations: ActivationFiles | None = None
    probes: Probes | None = None
    sae: Saes | None = None


class Provenance(Piece):
    """What a report is about."""

    version: Literal[1]
    experiment: str
    hash: str
    """The config hash."""
    created: str
    emopfx: str
    """Version of the code that made the report."""
    config: dict[str, Any]
    model: dict[str, Any]
    """What the server said about the model."""
    server: dict[str, Any]
    run: dict[str, Any]
    """The last run: when, which stages, with which versions."""
    dataset: dict[str, Any]
    """Where the questions come from, without the list of them."""
    expected: int
    found: int
    missing: list[str]


class Report(Sections, Provenance):
    """report.json: every figure of report.md and report.html, and all that their plots are drawn from."""
