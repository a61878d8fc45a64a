"""The official `openai` client, unmodified, against a real server."""

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from emopfx_server import tiny
from emopfx_server.tiny.tokenizer import build as tokenizer_of_tiny
from tests.server.serving import RunningServer
from tests.server.test_api import QUESTION

MESSAGES: Any = [{"role": "developer", "content": "Be calm."}, {"role": "user", "content": QUESTION}]


@pytest.fixture
def client(tiny_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    """The built-in model, run by nothing but transformers."""
    return AutoModelForCausalLM.from_pretrained(tiny.path(), dtype=torch.float32).eval()


def logprobs_by_hand(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """``[tokens - 1, vocabulary]``: how likely every token is in place of each but the first."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits
    return logits[0, :-1].log_softmax(-1)


def test_chat_and_models(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_completion_tokens=40)
    assert "Answer:" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.model_extra is not None
    assert answer.model_extra["ndif"]["request_id"] in answer.id
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "emopfx"


def test_streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert "ndif" in (chunks[-1].model_extra or {})


def test_the_clients_own_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, temperature=0, logprobs=True) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].logprobs is not None
    assert len(final.choices[0].logprobs.content or []) > 5


def test_choices_are_those_of_single_requests_with_their_seeds(client: openai.OpenAI) -> None:
    def texts(seed: int, n: int) -> list[str | None]:
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=1.5, seed=seed, n=n)
        return [choice.message.content for choice in answer.choices]

    assert texts(7, 4) == [texts(7 + index, 1)[0] for index in range(4)]
    assert len(set(texts(7, 4))) > 1


def test_usage_of_several_choices_counts_the_prompt_once(client: openai.OpenAI, tiny_server: RunningServer) -> None:
    ndif = {"request_id": "counted", "save_dir": "choices"}
    create: Any = client.chat.completions.create
    arguments = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5, "seed": 1}
    one = create(**arguments)
    three = create(**arguments, n=3, extra_body={"ndif": ndif})
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens > one.usage.completion_tokens
    crumbs = three.ndif["choices"]
    assert [crumb["request_id"] for crumb in crumbs] == ["counted/0", "counted/1", "counted/2"]
    assert all((tiny_server.data / crumb["save_dir"] / "metadata.json").exists() for crumb in crumbs)
    again = create(**arguments, n=3, extra_body={"ndif": ndif})
    assert all(crumb["replayed"] for crumb in again.ndif["choices"])
    assert again.choices == three.choices


def test_chat_logprobs_are_the_models(client: openai.OpenAI, reference: PreTrainedModel) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3, logit_bias={"5": 1}
    )
    tokenizer = tokenizer_of_tiny()
    messages = [{"role": "system", "content": "Be calm."}, MESSAGES[1]]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    ids = [tokenizer.convert_tokens_to_ids(one.token) for one in content]
    expected = logprobs_by_hand(reference, prompt + ids)[len(prompt) - 1 :]
    assert answer.usage is not None
    assert len(content) == answer.usage.completion_tokens - 1, "the token that ends the answer is no part of it"
    assert "".join(one.token for one in content) == answer.choices[0].message.content
    for one, token, row in zip(content, ids, expected, strict=True):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert bytes(one.bytes or []).decode() == one.token
        values, tops = row.topk(3)
        assert [tokenizer.convert_tokens_to_ids(likely.token) for likely in one.top_logprobs] == tops.tolist()
        assert [likely.logprob for likely in one.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)


def test_penalties_and_bias(client: openai.OpenAI) -> None:
    def text(**fields: Any) -> str:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=30, **fields
        )
        return answer.choices[0].message.content or ""

    tokenizer = tokenizer_of_tiny()
    plain = text()
    tokens = tokenizer.encode(plain, add_special_tokens=False)
    assert len(set(tokens)) < len(tokens), "the plain answer must repeat a token"
    repeated = next(token for token in tokens if tokens.count(token) > 1)
    assert tokenizer.decode([repeated]) not in text(logit_bias={str(repeated): -100})
    forced = text(logit_bias={str(repeated): 100}, seed=3)
    assert forced == tokenizer.decode([repeated]) * 30
    # The same token over and over is what a penalty is for.
    varied = text(logit_bias={str(repeated): 20}, frequency_penalty=2)
    assert varied.count(tokenizer.decode([repeated])) < 30


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.BadRequestError, match="calls no tools") as refused:
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "add"}}]
        )
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, response_format={"type": "json_object"})
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, response_format={"type": "text"})
    assert answer.choices[0].message.content


def test_completions_write_on_from_text_and_tokens(client: openai.OpenAI) -> None:
    prompt = "Tom has 12 apples."
    ids = tokenizer_of_tiny().encode(prompt)
    one = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)
    several = client.completions.create(
        model="tiny", prompt=[ids, [*ids, ids[0]]], max_tokens=8, temperature=0, n=2, echo=True
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == prompt + one.choices[0].text
    assert several.choices[2].text.startswith(f"{prompt}Tom")
    assert one.usage is not None
    assert several.usage is not None
    assert several.usage.prompt_tokens == 2 * len(ids) + 1
    stream = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == one.choices[0].text


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_how_likely_prompts_are_as_evaluation_harnesses_ask(
    client: openai.OpenAI, reference: PreTrainedModel, max_tokens: int
) -> None:
    """Several prompts of tokens, one longer than a step of the engine, beside each other and beside a chat."""
    ids = tokenizer_of_tiny().encode(QUESTION, add_special_tokens=False)
    prompts = [ids, ids[:1], ids * 30]
    answer = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=max_tokens, temperature=0, logprobs=1, echo=True, seed=1234
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * max_tokens
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        told = choice.logprobs
        assert told is not None
        assert told.token_logprobs is not None
        assert told.tokens is not None
        assert told.top_logprobs is not None
        assert "".join(told.tokens) == choice.text
        assert len(told.token_logprobs) == len(prompt) + max_tokens == len(told.text_offset or [])
        assert told.token_logprobs[0] is None
        expected = logprobs_by_hand(reference, prompt)
        for token, value, top, row in zip(
            prompt[1:], told.token_logprobs[1:], told.top_logprobs[1:], expected, strict=False
        ):
            assert value == pytest.approx(row[token].item(), abs=1e-4)
            assert max(top.values()) == pytest.approx(row.max().item(), abs=1e-4)
            assert math.isfinite(value)


def test_a_prompt_is_echoed_as_it_was_given(client: openai.OpenAI) -> None:
    prompts = ["☃ Tom has  😀 héllo\u2028x", "Tom has 3 apples."]
    answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=3, n=2, logprobs=0, echo=True)
    for choice in answer.choices:
        prompt = prompts[choice.index // 2]
        assert choice.text.startswith(prompt)
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        offsets = choice.logprobs.text_offset
        assert offsets is not None
        assert offsets[-3] == len(prompt)
        assert offsets == sorted(offsets)
        assert len(offsets) == len(choice.logprobs.tokens)


def test_completions_refuse_what_they_cannot_do(client: openai.OpenAI) -> None:
    create: Any = client.completions.create
    for fields, words in (
        ({"prompt": [10**6]}, "token ids go from 0"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 1025}, "at most 1,024 prompts"),
        ({"prompt": [[1]] * 1025}, "at most 1,024 prompts"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "needs echo"),
        ({"prompt": "a", "stream": True, "echo": True, "logprobs": 1}, "streamed"),
        ({"prompt": "a", "max_tokens": 10**6}, "context"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            create(model="tiny", **fields)
