"""Trains the model `tiny` and measures it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emopfx_server.tiny.prompts import Message, exam, lessons
from emopfx_server.tiny.stories import Story
from emopfx_server.tiny.tokenizer import CONTEXT, build
from emopfx_server.tiny.words import everyday_words

STEPS = 840
STEPS_PER_REPORT = 140
BATCH = 48
LEARNING_RATE = 4e-3
LONGEST_ANSWER = 24
NOT_LEARNED = -100  # the label that cross_entropy leaves out


@dataclass(frozen=True)
class Score:
    """Shares, of all answers, that give the right number and that end in a line `Answer: <number>`."""

    accuracy: float
    format: float


def train(out: Path, seed: int, report: Callable[[str], None]) -> None:
    """Train the model from nothing and write it, with its tokenizer, to the folder `out`.

    The same seed gives the same bytes on the same machine. `report` is called with a few lines of progress.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    tokenizer = build()
    tokenizer.save_pretrained(out)
    model = untrained(tokenizer)
    report(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens, {STEPS:,} steps")
    learn(model, tokenizer, seed, report)
    words = everyday_words()
    for prefixed in (False, True):
        held_out = exam(400, seed, words, prefixed=prefixed)
        for temperature in (0.0, 0.7):
            score = evaluate(model, tokenizer, held_out, temperature)
            where = "with prefix" if prefixed else "without prefix"
            report(
                f"held out, {where}, temperature {temperature}: "
                f"accuracy {score.accuracy:.3f}, format {score.format:.3f}"
            )
    model.save_pretrained(out)


def untrained(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the model with random float32 weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def learn(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    report: Callable[[str], None],
    steps: int = STEPS,
) -> None:
    """Train `model` in place, on the answers only."""
    words = everyday_words()
    held_out = exam(100, seed, words, prefixed=True)
    optimizers = _optimizers(model)
    schedules = [OneCycleLR(each, LEARNING_RATE, steps, cycle_momentum=False) for each in optimizers]
    stream = batches(tokenizer, seed, words)
    for step, (tokens, labels) in enumerate(islice(stream, steps), start=1):
        hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
        learned = labels[:, 1:] != NOT_LEARNED
        loss = cross_entropy(model.lm_head(hidden[learned]), labels[:, 1:][learned])
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % STEPS_PER_REPORT == 0:
            accuracy = evaluate(model, tokenizer, held_out).accuracy
            report(f"step {step}: loss {loss.item():.3f}, held-out accuracy {accuracy:.2f}")


def _optimizers(model: LlamaForCausalLM) -> list[Optimizer]:
    # Muon learns the arithmetic in a third of the steps that AdamW needs, but is for inner matrices only.
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, words: list[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids and labels, both `[BATCH, longest]`, padded on the right; prompts have no labels.

    Rows of similar length share a batch, so that little is padding.
    """
    rng = Random(seed)
    stream = lessons(seed, words)
    while True:
        prompts, targets = zip(*islice(stream, 16 * BATCH), strict=True)
        asked = tokenizer(_rendered(tokenizer, prompts))["input_ids"]
        answered = tokenizer([each + tokenizer.eos_token for each in targets])["input_ids"]
        rows = sorted(zip(asked, answered, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        for start in rng.sample(range(0, len(rows), BATCH), 16):
            yield _padded(rows[start : start + BATCH], tokenizer.pad_token_id)


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(asked) + len(answered) for asked, answered in rows)
    tokens = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), NOT_LEARNED)
    for row, (asked, answered) in enumerate(rows):
        end = len(asked) + len(answered)
        tokens[row, :end] = torch.tensor(asked + answered)
        labels[row, len(asked) : end] = torch.tensor(answered)
    return tokens, labels


def _rendered(tokenizer: PreTrainedTokenizerFast, prompts: tuple[list[Message], ...]) -> list[str]:
    texts: list[str] = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    return texts


def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: tuple[list[Message], ...],
    temperature: float = 0.0,
) -> list[str]:
    """Answer prompts in one padded batch, greedily at temperature 0."""
    batch = tokenizer(_rendered(tokenizer, prompts), padding=True, return_tensors="pt")
    sampling = {"temperature": temperature, "top_k": 0} if temperature else {}
    made = model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=LONGEST_ANSWER,
        do_sample=temperature > 0,
        **sampling,
    )
    new = made[:, batch["input_ids"].shape[1] :]
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[tuple[list[Message], Story]],
    temperature: float = 0.0,
) -> Score:
    """Score the model's answers to stories."""
    prompts, stories = zip(*questions, strict=True)
    texts = answers(model, tokenizer, prompts, temperature)
    found = [re.search(r"^Answer: (\d+)\Z", text, re.MULTILINE) for text in texts]
    right = [match and int(match[1]) == story.answer for match, story in zip(found, stories, strict=True)]
    return Score(right.count(True) / len(right), 1 - found.count(None) / len(found))
