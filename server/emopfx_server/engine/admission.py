"""Who may run: requests wait for a place and for room for what they capture, first come first served."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


class QueueFull(Exception):
    """As many requests wait as may."""


@dataclass(eq=False)
class Admitted:
    """A request that was let in. It gives its place back when it is generated, its bytes when they are written."""

    size: int
    has_place: bool = True


class Admission:
    """Lets requests in, in the order they came. Letting in is all or nothing, so none of them waits twice.

    Args:
        places: How many requests may run at once.
        limit: The bound on captured bytes held in memory.
        queue: How many requests may wait.
    """

    def __init__(self, places: int, limit: int, queue: int) -> None:
        self.limit = limit
        self.held = 0
        self.running = 0
        self._places = places
        self._queue = queue
        self._waiting: deque[tuple[int, asyncio.Future[Admitted]]] = deque()

    @property
    def most(self) -> int:
        """How many requests can be here at once, running or waiting."""
        return self._places + self._queue

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def enter(self, size: int) -> AsyncIterator[Admitted]:
        """Wait for a place and ``size`` bytes, which must not be over the limit, and hold them.

        Raises:
            QueueFull: When too many wait already.
        """
        admitted = await self._wait(size) if self._waiting or not self._fits(size) else self._admit(size)
        try:
            yield admitted
        finally:
            self.held -= size
            self.leave_place(admitted)

    def leave_place(self, admitted: Admitted) -> None:
        """Give a request's place to the next one, once."""
        if admitted.has_place:
            admitted.has_place = False
            self.running -= 1
        self._let_in()

    def turn_away(self, error: Exception) -> None:
        """Fail every request that still waits."""
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    async def _wait(self, size: int) -> Admitted:
        if len(self._waiting) >= self._queue:
            raise QueueFull
        turn: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()
        entry = size, turn
        self._waiting.append(entry)
        try:
            return await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._let_in()
            elif turn.done() and not turn.cancelled() and turn.exception() is None:  # let in at the same moment
                self.held -= size
                self.leave_place(turn.result())
            raise

    def _fits(self, size: int) -> bool:
        return self.running < self._places and self.held + size <= self.limit

    def _admit(self, size: int) -> Admitted:
        self.running += 1
        self.held += size
        return Admitted(size)

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._admit(size))
