"""`python -m emopfx_server.tiny train` makes the weights; `… stories` writes stories that it never saw."""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

from emopfx_server import tiny
from emopfx_server.tiny.stories import stories


def main() -> None:
    """Run the command that the arguments ask for."""
    parser = argparse.ArgumentParser("python -m emopfx_server.tiny", description="The built-in model `tiny`.")
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train the model (about two minutes on one core)")
    train.add_argument("--out", type=Path, default=tiny.path(), help="folder to write (default: the package's)")
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train)
    write = commands.add_parser("stories", help="write stories that training leaves out, as JSON lines")
    write.add_argument("--count", type=_positive, required=True, help="how many")
    write.add_argument("--seed", type=int, default=0)
    write.add_argument("--out", type=Path, required=True, help="file to write")
    write.set_defaults(run=_stories)
    arguments = parser.parse_args()
    arguments.run(arguments)


def _train(arguments: argparse.Namespace) -> None:
    # Imported here, since writing stories needs no torch.
    from emopfx_server.tiny.training import train

    began = time.monotonic()
    train(arguments.out, arguments.seed, _say)
    _say(f"wrote {arguments.out} in {time.monotonic() - began:.0f} s")


def _stories(arguments: argparse.Namespace) -> None:
    drawn = islice(stories(arguments.seed, held_out=True), arguments.count)
    lines = [json.dumps(story.record(), ensure_ascii=False) + "\n" for story in drawn]
    arguments.out.write_text("".join(lines), encoding="utf-8")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
