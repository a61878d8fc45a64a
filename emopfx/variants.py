"""What the model is asked: the question, the instruction, and the text in front of them."""

from collections.abc import Sequence

from emopfx.hashing import digest

INSTRUCTION = 'Think step by step, then give the final answer on its own last line as "Answer: <number>".'

# Five phrasings each, in the user's own voice. Phrasing i is about equally long in every variant, and `neutral`
# has the mean length of the emotional ones, so that added text and added emotion can be told apart.
BUILT_IN: dict[str, tuple[str, ...]] = {
    "control": (),
    "frustration": (
        "I have been stuck on this for hours and nothing I try works. It is driving me up the wall!",
        "Honestly, I am fed up. Every answer I was given so far was wrong, and I am sick of starting over.",
        "This is so annoying! I keep making the same stupid mistake again and again, and I am about to throw my "
        "notebook out of the window.",
        "Ugh, not another one of these. I have had it with problems like this, they ruin my whole evening.",
        "I can't believe I am still fighting with this. I wasted my entire afternoon on it and I am really angry now.",
    ),
    "impatience": (
        "Hurry up please, I needed this ten minutes ago. I don't have time to sit around waiting for it!",
        "Come on, be quick about it. I have five more of these to get through and the clock is running out.",
        "I have no time at all, people are already waiting at the door for me, so get this done right now and "
        "don't keep me hanging.",
        "Can we please speed this up? I am tapping my fingers here, just get to the end of it already.",
        "Quickly now, I must leave in a minute. Every second that you take over this one is a second too long for me.",
    ),
    "anxiety": (
        "I am so nervous about this one. If it turns out wrong I don't know what I am going to do.",
        "My hands are shaking while I write this. I am terrified of failing, and everything seems to depend on it.",
        "I could not sleep last night because I kept worrying about this, and now my heart is pounding and I am "
        "afraid that something goes wrong.",
        "Please help me, I am starting to panic. I have a dreadful feeling that I will mess this up again.",
        "I am really scared of getting this wrong. What if it ruins everything? I can hardly breathe when I think "
        "of it.",
    ),
    "collaborative": (
        "Let's work on this one together, you and I. I am sure that as a team we will figure it out!",
        "I would love to think this through with you. Let's share our ideas and build on them step after step.",
        "You and I make a great team, so let's put our heads together on this one and help each other to get to "
        "the bottom of it.",
        "Shall we tackle this side by side? I bring the question, you bring your view, and together we get there.",
        "I am glad to have you as my partner in this. Let's join forces and solve it hand in hand, as we always do.",
    ),
    "patience": (
        "Take all the time you need for this one. I am in no hurry at all and happy to wait.",
        "There is no rush whatsoever. I would rather wait for as long as it takes than press you in any way.",
        "Please don't feel hurried by me, the whole day is still ahead of us, and I will gladly sit here and wait "
        "until you are ready.",
        "Go as slowly as you like with this. I have plenty of time, and I really don't mind waiting for you.",
        "Whenever you are ready is soon enough for me. Let it take an hour or a day, I will wait here quite happily.",
    ),
    "calm": (
        "I feel relaxed and at ease as I write this. All is quiet here, and nothing can disturb me now.",
        "It is a peaceful morning, I am sitting by the window with my tea, and my mind is clear and still.",
        "I just came back from a slow walk by the lake, my breath is even, and I feel a deep and pleasant quiet "
        "all around me.",
        "Everything is fine and there is nothing to worry about. I am breathing slowly and I feel at peace today.",
        "I am sitting here in perfect calm, with soft light in the room. Let's look at this in a serene and "
        "gentle mood.",
    ),
    "neutral": (
        "This question is from a set of exercises that I have on paper. It is printed on the second page.",
        "The following text is one of several questions in a list. It has a number, a title and a short text.",
        "I copied the question below from a booklet in which every page has two columns, a header with the date "
        "and a number at the bottom.",
        "Here is a question of the usual kind. It was typed on a keyboard and saved in a text file.",
        "The next paragraph holds a question. It comes from a collection that is sorted by number, and each entry "
        "has the same form.",
    ),
}


def phrasing_index(seed: int, sample_id: str, count: int) -> int:
    """Choose one of `count` phrasings for a sample.

    The draw depends on the seed and the sample only: variants with equally many phrasings use the same index.
    """
    return int(digest(["phrasing", seed, sample_id])[:12], 16) % count


def messages(question: str, prefix: str | None) -> list[dict[str, str]]:
    """Return the chat that asks a question, with a variant's prefix in front of the first user message."""
    content = f"{question}\n\n{INSTRUCTION}"
    return [{"role": "user", "content": content if prefix is None else f"{prefix}\n\n{content}"}]


def choose_prefix(prefixes: Sequence[str], seed: int, sample_id: str) -> tuple[int | None, str | None]:
    """Return the index and the text of a sample's prefix, or (None, None) for a variant without any."""
    if not prefixes:
        return None, None
    index = phrasing_index(seed, sample_id, len(prefixes))
    return index, prefixes[index]
