"""The tokens of a running request, for those who read them while they come."""

import asyncio
import time

from emopfx_server.engine.sampling import TokenLogprob


class Progress:
    """What a request has generated so far. The engine's thread appends; readers on the event loop wait for more.

    Attributes:
        tokens: The token ids.
        logprobs: Their log probabilities, if they are asked for.
        prompt_logprobs: Those of the prompt's tokens from the second on, if they are asked for.
        generated: Whether nothing more will come.
        first_token: When the first token came, on the clock ``time.monotonic``.
        readers: How many want to be told of tokens; without any, the event loop is left alone.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.generated = False
        self.first_token: float | None = None
        self.readers = 0
        self._changed = asyncio.Event()

    def append(self, token: int) -> None:
        """Add a token."""
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.tokens.append(token)

    def tell(self) -> None:
        """Wake the readers; on the event loop only."""
        self._changed.set()
        self._changed = asyncio.Event()

    def finish(self) -> None:
        """Say that nothing more will come; on the event loop only."""
        self.generated = True
        self.tell()

    async def beyond(self, seen: int) -> None:
        """Wait until there are more than ``seen`` tokens, or nothing more will come."""
        while len(self.tokens) <= seen and not self.generated:
            await self._changed.wait()
