"""The word-level tokenizer of the model `tiny`.

A token is a literal piece of text: a word, a digit or a mark, with or without the one space before it; a line
break or another blank. So tokens joined are the text again, but for unknown words: each is `<|unk|>`.
"""

import string

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from emopfx_server.tiny.prompts import INSTRUCTIONS
from emopfx_server.tiny.stories import TEMPLATES
from emopfx_server.tiny.words import everyday_words

PAD, UNKNOWN, END = "<|pad|>", "<|unk|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CONTRACTIONS = ("'s", "'t", "'m", "'d", "'re", "'ve", "'ll")
CONTEXT = 4096

# Marks written out in a message are broken up, so that no text can end its turn or take another's role.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
{%- if role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception("Roles are system, developer, user and assistant, not '" ~ role ~ "'.") -}}
{%- endif -%}
{{- '<|' ~ role ~ '|>' ~ (message['content'] | replace('<|', '< |')) ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def vocabulary() -> list[str]:
    """Return every token in the order of its id."""
    blank = dict.fromkeys(("a", "b", "x", "y", "things"), "")
    templates = (template.format(**blank) for group in TEMPLATES.values() for template in group)
    pieces = (piece for text in (*INSTRUCTIONS, *templates) for piece, _ in _splitter().pre_tokenize_str(text))
    words = {"Answer", *CONTRACTIONS, *string.digits, *string.punctuation, *everyday_words()}
    words |= {piece.strip(" ") for piece in pieces} - {"", "\n"}
    spaced = [space + word for word in sorted(words) for space in ("", " ")]
    return [PAD, UNKNOWN, END, *ROLES, " ", "\n", "\t", *spaced]


def _splitter() -> Split:
    endings = "|".join(CONTRACTIONS)
    return Split(Regex(rf"(?:{endings})(?!\p{{L}})| ?\p{{L}}+| ?[^\s\p{{L}}]|\s"), behavior="isolated")


def build() -> PreTrainedTokenizerFast:
    """Build the tokenizer, with its chat template."""
    tokens = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(tokens, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        padding_side="left",
    )
