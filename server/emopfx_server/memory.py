"""The last answers of which nothing is on disk, so that a retry is answered alike."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from emopfx_server.engine.requests import Answer, Outcome

_ROOM = 1_000_000  # characters and log probabilities: at about a hundred bytes each, not more than 100 MB


@dataclass(frozen=True)
class Remembered:
    """What came of a request.

    Attributes:
        fingerprint: Tells it from another under the same id.
        outcomes: One for each choice.
        size: How much room it takes.
    """

    fingerprint: str
    outcomes: list[Outcome]
    size: int


class Memory:
    """The latest answers by their requests' ids, in bounded memory. It ends with the process."""

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._held: OrderedDict[str, Remembered] = OrderedDict()

    def recall(self, request_id: str) -> Remembered | None:
        """What came of the request of this id, while it is remembered."""
        if request_id in self._held:
            self._held.move_to_end(request_id)
        return self._held.get(request_id)

    def remember(self, request_id: str, fingerprint: str, outcomes: Sequence[Outcome]) -> None:
        """Note an answer, and forget those that were not asked for the longest."""
        size = sum(_size(outcome.answer) for outcome in outcomes)
        replayed = [replace(outcome, replayed=True) for outcome in outcomes]
        self._held[request_id] = Remembered(fingerprint, replayed, size)
        self._held.move_to_end(request_id)
        self._room -= size
        while self._room < 0:
            _, forgotten = self._held.popitem(last=False)
            self._room += forgotten.size


def _size(answer: Answer) -> int:
    told = [*answer.logprobs, *answer.prompt_logprobs]
    return 100 + len(answer.text) + sum(1 + len(one["top"]) for one in told)
