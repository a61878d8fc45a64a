import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emopfx_server.engine.sampling import Sampler, SamplingParams, logprobs_of, sample


def sampler(temperature: float, top_p: float = 1.0, seed: int = 0) -> Sampler:
    return Sampler(SamplingParams(temperature, top_p, seed, max_tokens=1))


def test_greedy_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert sample(logits, [sampler(0), sampler(0)]).tolist() == [1, 0]


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    one, draws = sampler(0.7, seed=5), 4000
    counts = torch.zeros(4)
    for _ in range(draws):
        counts[sample(logits, [one])] += 1
    expected = (logits[0] / 0.7).softmax(0) * draws
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, size in ((0.4, 1), (0.5, 1), (0.51, 2), (0.79, 2), (0.94, 3), (0.99, 4)):
        one = sampler(1.0, top_p, seed=1)
        assert {int(sample(logits, [one])) for _ in range(300)} == set(range(size))


def test_penalties_follow_the_formula_and_touch_one_request_only() -> None:
    logits = torch.tensor([[0.0, 1.5, 1.0], [0.0, 1.5, 1.0]])
    penalized = Sampler(SamplingParams(0, 1, 0, 9, frequency_penalty=0.4, presence_penalty=0.2))
    chosen = []
    for _ in range(5):
        token, other = sample(logits, [penalized, sampler(0)]).tolist()
        penalized.chose(token)
        chosen.append(token)
        assert other == 1
    # 1.5, then 1.0 > 1.5 - 0.6, then 0.9 > 1.0 - 0.6, then 0.5 > 0.4, then 0.4 > 1.5 - 1.4
    assert chosen == [1, 2, 1, 1, 2]
    assert logits[0].tolist() == [0.0, 1.5, 1.0]


def test_logprobs_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    one, other = logprobs_of(logits, [0, 2], 2)
    expected = logits.log_softmax(-1)
    assert one["logprob"] == pytest.approx(expected[0, 0].item())
    assert [token for token, _ in one["top"]] == [1, 0]
    assert other["top"][0][0] == 2
    assert other["top"][0][1] == other["logprob"]


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.5, 0.9, 1.0]))
@settings(max_examples=40)
def test_company_changes_no_choice(seed: int, temperature: float, top_p: float) -> None:
    rows = torch.randn(5, 50, generator=torch.Generator().manual_seed(seed))
    alone, beside = sampler(temperature, top_p, seed), sampler(temperature, top_p, seed)
    others = [sampler(0), sampler(1.3, 0.7, 3), sampler(0.2, 1.0, 4)]
    for row in rows:
        logits = torch.stack([rows[0], row, rows[1], rows[2]])
        assert sample(row[None], [alone]).item() == sample(logits, [others[0], beside, *others[1:]])[1].item()


@given(st.floats(1e-300, 1e-3), st.floats(1e-6, 1.0))
@settings(max_examples=40)
def test_tiny_temperatures_and_nuclei_are_greedy(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[0.0, 40.0, 39.0, -1e4]])
    assert sample(logits, [sampler(temperature, top_p)]).item() == 1


def test_every_seed_has_its_own_draws() -> None:
    seeds = [0, 1, -1, 7, -7, 2**63 - 1, -(2**63), 1 - 2**63]
    assert len({sampler(1, seed=seed).draw() for seed in seeds}) == len(seeds)
    assert sampler(1, seed=7).draw() == random.Random(7).random()


def test_a_masked_token_is_never_chosen() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    one = sampler(1.0)
    assert {int(sample(logits, [one])) for _ in range(200)} == {1, 2}
