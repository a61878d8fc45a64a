"""Whether the statistics hold what they promise, on made-up experiments whose truth is known.

Every rate is the share of made-up experiments; the tests run few of them, this script many.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from emopfx.analysis import inference
from emopfx.analysis.schema import Estimate
from emopfx.analysis.statistics import ALPHA, POWER, compare

RESULTS = Path(__file__).parent / "results" / "calibration.json"
VARIANTS = ["control", "one", "two", "three", "four", "five", "six", "neutral"]


def answers(draw: np.random.Generator, questions: int, repeats: int, lift: float = 0.0) -> Any:
    """Return the table of an experiment in which questions differ in how hard they are, and variants do not.

    Args:
        draw: Where chance comes from.
        questions: How many.
        repeats: Answers to each in each variant.
        lift: By how much the first variant raises every question's chance of a right answer.
    """
    chance = draw.beta(0.7, 0.7, questions) * (1 - lift)
    index = pd.MultiIndex.from_product(
        [VARIANTS, range(questions), range(1, repeats + 1)], names=["variant", "question", "repeat"]
    )
    table = index.to_frame(index=False)
    own = chance[table["question"]] + lift * (table["variant"] == "one")
    table["correct"] = draw.random(len(table)) < own
    table["format"] = draw.random(len(table)) < 0.9
    table["completion_tokens"] = draw.poisson(40 + 60 * chance[table["question"]])
    table["question"] = table["question"].astype(str)
    return table


def false_alarms(experiments: int, questions: int, repeats: int, resamples: int) -> dict[str, float]:
    """Return, for each measure, how often any variant seems to differ from control where none does."""
    draw = np.random.default_rng(1)
    alarms = dict.fromkeys(("accuracy", "completion_tokens"), 0)
    for _ in range(experiments):
        found = [
            entry
            for entry in compare(answers(draw, questions, repeats), VARIANTS, resamples)
            if entry.baseline == "control"
        ]
        for measure in alarms:
            alarms[measure] += any(getattr(entry, measure).p_holm <= ALPHA for entry in found)
    return {measure: count / experiments for measure, count in alarms.items()}


def mcnemar_power(experiments: int, questions: int, changed: float) -> float:
    """Return how often the smallest detectable difference in accuracy is detected, with one answer a question."""
    draw = np.random.default_rng(2)
    difference = inference.detectable_share(questions, round(changed * questions), ALPHA, POWER)
    assert difference is not None
    shares = [(changed - difference) / 2, (changed + difference) / 2, 1 - changed]
    pairs = draw.multinomial(questions, shares, experiments)
    return float(np.mean([inference.mcnemar(int(lost), int(won)) <= ALPHA for lost, won, _ in pairs]))


def sign_flip_power(experiments: int, questions: int, repeats: int, resamples: int) -> float:
    """Return how often the smallest detectable difference in accuracy is detected, with several answers a question."""
    draw = np.random.default_rng(3)

    def differences(lift: float, count: int) -> inference.Floats:
        chance = draw.beta(0.7, 0.7, (count, questions)) * (1 - lift)
        return (draw.binomial(repeats, chance + lift) - draw.binomial(repeats, chance)) / repeats

    # The difference that is detectable by the spread that it gives rise to itself.
    lift = 0.0
    for _ in range(5):
        planned = [inference.detectable_mean(row, ALPHA, POWER) or 0.0 for row in differences(lift, 200)]
        lift = float(np.mean(planned))
    found = inference.sign_flip(differences(lift, experiments), resamples, 0)
    return float(np.mean(found <= ALPHA))


def coverage(experiments: int, questions: int, repeats: int) -> dict[str, float]:
    """Return how often intervals of accuracy and tokens hold the truth, clustered by question and naive."""
    draw = np.random.default_rng(4)
    clusters = np.repeat(np.arange(questions), repeats)
    covered = dict.fromkeys(("accuracy", "naive accuracy", "tokens", "naive tokens"), 0)
    for _ in range(experiments):
        chance = draw.beta(0.7, 0.7, questions)[clusters]
        hits = (draw.random(len(clusters)) < chance).astype(float)
        tokens = draw.poisson(40 + 60 * chance).astype(float)
        for name, method, values, truth in (
            ("accuracy", inference.clustered_share, hits, 0.5),
            ("tokens", inference.clustered_mean, tokens, 70.0),
        ):
            covered[name] += _holds(method, values, clusters, truth)
            covered[f"naive {name}"] += _holds(method, values, np.arange(len(values)), truth)
    return {name: count / experiments for name, count in covered.items()}


def _holds(method: Callable[[Any, Any], Estimate], values: inference.Floats, clusters: Any, truth: float) -> bool:
    found = method(values, clusters)
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def bootstrap_coverage(experiments: int, questions: int, lift: float, resamples: int) -> float:
    """Return how often the interval of a paired difference holds the true one."""
    draw = np.random.default_rng(5)
    held = 0
    for number in range(experiments):
        chance = draw.beta(0.7, 0.7, questions) * (1 - lift)
        row = (draw.random(questions) < chance + lift).astype(float) - (draw.random(questions) < chance)
        low, high = inference.bootstrap(row[None], resamples, number)
        held += low[0] <= lift <= high[0]
    return held / experiments


def main() -> None:
    """Run them all at length, and print and write the rates."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--experiments", type=int, default=2000)
    n = parser.parse_args().experiments
    rates = {
        "experiments": n,
        "false alarms after Holm, 1 answer a question (at most 0.05)": false_alarms(n, 100, 1, 1000),
        "false alarms after Holm, 3 answers a question (at most 0.05)": false_alarms(n, 60, 3, 1000),
        "power at the detectable difference, McNemar (0.80)": mcnemar_power(n, 300, 0.2),
        "power at the detectable difference, sign flips (0.80)": sign_flip_power(n, 100, 3, 1000),
        "coverage, 40 questions x 5 answers (0.95)": coverage(n, 40, 5),
        "coverage of the bootstrap, 60 questions (0.95)": bootstrap_coverage(n, 60, 0.1, 1000),
        "coverage of the bootstrap, 24 questions (0.95)": bootstrap_coverage(n, 24, 0.1, 1000),
    }
    text = json.dumps(rates, indent=1)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text + "\n")
    Console().print(text, highlight=False)


if __name__ == "__main__":
    main()
