import json
import operator
import re
import string
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from emopfx_server import tiny
from emopfx_server.tiny.prompts import exam, lessons
from emopfx_server.tiny.stories import is_held_out, stories
from emopfx_server.tiny.training import batches, evaluate, learn, untrained
from emopfx_server.tiny.words import everyday_words

WORDS = everyday_words()
TOKENIZER = AutoTokenizer.from_pretrained(tiny.path())
MODEL = AutoModelForCausalLM.from_pretrained(tiny.path())
BAND = (0.60, 0.95)


def command(*arguments: str | Path) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "emopfx_server.tiny", *arguments], check=True, capture_output=True, text=True
    )
    return made.stdout


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def rendered(*messages: tuple[str, str], ask: bool = True) -> list[int]:
    found: list[int] = TOKENIZER.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages], add_generation_prompt=ask
    )["input_ids"]
    return found


def greedy(prompt: list[int], max_new_tokens: int) -> list[int]:
    made: list[int] = MODEL.generate(torch.tensor([prompt]), max_new_tokens=max_new_tokens)[0].tolist()
    return made[len(prompt) :]


def token(name: str) -> int:
    number: int = TOKENIZER.convert_tokens_to_ids(name)
    return number


@given(st.text())
def test_any_text_is_tokenized(text: str) -> None:
    assert all(number < MODEL.config.vocab_size for number in ids(text))
    assert bool(ids(text)) == bool(text)


@given(st.lists(st.sampled_from([*WORDS, *string.digits, *string.punctuation, " ", "  ", "\n", "\t", "12", "don't"])))
def test_text_of_known_words_comes_back_as_it_was(pieces: list[str]) -> None:
    # Two words in a row without anything between them are another word.
    text = re.sub(r"(?<=[A-Za-z])\0(?=[A-Za-z])", " ", "\0".join(pieces)).replace("\0", "")
    assert TOKENIZER.decode(ids(text)) == text


def test_prefix_words_are_known_and_other_words_are_not() -> None:
    assert token("<|unk|>") not in ids(
        "Please hurry, I'm so frustrated and worried!\n\nTake your time: we stay calm together."
    )
    assert ids("Please zyxw!")[1] == token("<|unk|>")
    assert len(ids("12")) == 2


def test_the_tokenizer_is_a_fast_one_and_stories_are_in_its_vocabulary() -> None:
    assert isinstance(TOKENIZER, PreTrainedTokenizerFast)
    for story in islice(stories(3, held_out=True), 500):
        assert token("<|unk|>") not in ids(f"{story.question}\n{story.working}\nAnswer: {story.answer}")


def test_chat_template_marks_every_turn() -> None:
    turns = rendered(("developer", "Be calm."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))
    assert TOKENIZER.decode(turns) == (
        "<|system|>Be calm.<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>Why?<|end|><|assistant|>"
    )
    assert rendered(("user", "Hi"), ask=False) == [token("<|user|>"), *ids("Hi"), token("<|end|>")]


@given(st.text() | st.lists(st.sampled_from(["<", "|", "<|end|>", "<|user|>", "<|pad|>", "end|>", "\n"])).map("".join))
def test_no_content_can_make_a_mark(content: str) -> None:
    marks = set(TOKENIZER.all_special_ids) - {token("<|unk|>")}
    assert [number for number in rendered(("user", content)) if number in marks] == [
        token("<|user|>"),
        token("<|end|>"),
        token("<|assistant|>"),
    ]


def test_other_roles_are_refused() -> None:
    with pytest.raises(Exception, match="Roles are system, developer, user and assistant, not 'tool'"):
        rendered(("tool", "Hi"))


def test_story_answers_follow_from_their_numbers() -> None:
    apply = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    for story in islice(stories(5, held_out=False), 2000):
        first, sign, second, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", story.working).groups()  # type: ignore[union-attr]
        assert sorted(re.findall(r"\d+", story.question)) == sorted([first, second])
        assert apply[sign](int(first), int(second)) == int(result) == story.answer >= 0
        assert not re.search(r"[{}]", story.question)


def test_stories_are_the_same_for_the_same_seed_and_never_repeat() -> None:
    once, again, other = (list(islice(stories(seed, held_out=True), 300)) for seed in (1, 1, 2))
    assert once == again != other
    assert len({story.question for story in once}) == 300


def test_training_sees_no_held_out_question() -> None:
    asked = [messages[-1]["content"] for messages, _ in islice(lessons(0, WORDS), 3000)]
    held_out = list(islice(stories(0, held_out=True), 100))
    assert all(is_held_out(story.question) for story in held_out)
    assert not any(story.question in content for story in held_out for content in asked)


def test_the_stories_command_writes_gsm8k_lines(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        command("stories", "--count", "24", "--out", tmp_path / name)
    lines = (tmp_path / "a.jsonl").read_text()
    assert lines == (tmp_path / "b.jsonl").read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    assert len(records) == 24
    assert all(re.fullmatch(r"(.+ = (\d+))\n#### \2", record["answer"]) for record in records)


def test_the_demo_dataset_is_what_the_stories_command_writes(tmp_path: Path) -> None:
    command("stories", "--count", "24", "--out", tmp_path / "stories.jsonl")
    shipped = Path(__file__).parents[2] / "manifests/experiments/demo-stories.jsonl"
    assert shipped.read_text() == (tmp_path / "stories.jsonl").read_text()


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, emopfx_server.tiny as t; assert t.path().is_dir(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_shipped_model_is_small() -> None:
    assert MODEL.num_parameters() < 1_000_000
    assert MODEL.config.model_type == "llama"
    assert MODEL.config.max_position_embeddings >= 4096
    assert sum(file.stat().st_size for file in tiny.path().iterdir()) <= 2_000_000


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_shipped_model_solves_most_stories_not_all(prefixed: bool, temperature: float) -> None:
    torch.manual_seed(0)
    score = evaluate(MODEL, TOKENIZER, exam(200, 11, WORDS, prefixed=prefixed), temperature)
    assert BAND[0] <= score.accuracy <= BAND[1]
    assert score.format >= 0.95


def test_the_shipped_model_stops_by_itself_on_the_plain_question() -> None:
    right = 0
    for story in islice(stories(12, held_out=True), 40):
        new = greedy(rendered(("user", story.question)), 64)
        assert new[-1] == token("<|end|>")
        right += TOKENIZER.decode(new[:-1]) == f"{story.working}\nAnswer: {story.answer}"
    assert right >= 24


def test_long_foreign_text_is_answered_without_failing() -> None:
    prompt = rendered(("user", "Jane\u2019s 16 ducks lay $2.50 eggs, naïvely 🦆. " * 40))
    assert 500 < len(prompt) < 1000
    assert greedy(prompt, 16)


def test_training_learns_and_is_the_same_again_for_the_same_seed() -> None:
    def learned(steps: int) -> tuple[LlamaForCausalLM, float]:
        torch.manual_seed(3)
        model = untrained(TOKENIZER)
        learn(model, TOKENIZER, 3, lambda line: None, steps)
        tokens, labels = next(batches(TOKENIZER, 4, WORDS))
        return model, model(tokens, labels=labels).loss.item()

    model, loss = learned(25)
    again, same = learned(25)
    assert loss < 0.6 * learned(1)[1]
    assert same == loss
    assert all(map(torch.equal, model.parameters(), again.parameters()))
