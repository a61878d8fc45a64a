"""Reads objects by range, again where an answer breaks off, and long ranges by several requests at once."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from botocore.exceptions import HTTPClientError, IncompleteReadError

from emopfx.storage.client import ATTEMPTS, Wire
from emopfx.storage.objects import Stored
from emopfx.storage.s3_errors import BrokenOff, OtherContent, Taken
from emopfx.storage.traffic import CHUNK_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

# What one request asks for at most; `WORKERS` of them are in memory.
RANGE_BYTES = 16 << 20


class Ranges:
    """Reads the objects of a bucket.

    Args:
        wire: The bucket's.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get(
        self,
        key: str,
        place: dict[str, Any],
        start: int,
        length: int | None,
        *,
        of: Stored | None = None,
        size: int | None = None,
    ) -> tuple[Sequence[bytes], Stored]:
        """Return a range of an object's bytes, in pieces, and what it is.

        Args:
            key: Its key, for messages.
            place: Bucket and key as boto3 takes them.
            start: Where the range begins.
            length: How long it is; None takes the rest of the object.
            of: The object that is meant.
            size: How many bytes the whole object must have.

        Raises:
            EOFError: If the object ends before the range begins.
            FileNotFoundError: If there is no such object.
            OtherContent: If it is another object, or has another size; then nothing of it is read.
            Refused: If S3 does not give it.
            Unavailable: If S3 can't be used.
        """
        wanted = place | ({"IfMatch": of.etag} if of else {})
        if length is not None:
            wanted["Range"] = f"bytes={start}-{start + length - 1}"
        # botocore repeats a request that fails, but not one whose answer breaks off.
        for attempt in range(1, ATTEMPTS):
            try:
                return self._get(key, wanted, size)
            except BrokenOff:
                time.sleep(min(10.0, 0.1 * 2**attempt))
        return self._get(key, wanted, size)

    def _get(self, key: str, wanted: dict[str, Any], size: int | None) -> tuple[Sequence[bytes], Stored]:
        try:
            with self._wire.asking(key):
                answer = self._wire.client.get_object(**wanted)
        except Taken:
            raise OtherContent(f"{self._wire.root}/{key} was changed while it was read") from None
        total = int(answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"])
        if size is not None and total != size:
            answer["Body"].close()
            raise OtherContent(f"{self._wire.root}/{key} has {total} bytes, not {size}")
        return tuple(self._received(answer)), Stored.of(answer, total)

    def _received(self, answer: "GetObjectOutputTypeDef") -> Iterator[bytes]:
        left = answer["ContentLength"]
        try:
            while left:
                self._wire.traffic.spend(min(CHUNK_BYTES, left))
                chunk = answer["Body"].read(min(CHUNK_BYTES, left))
                left -= len(chunk)
                yield chunk
        except (HTTPClientError, IncompleteReadError) as error:
            raise BrokenOff(f"{self._wire.root}: {error}") from None
        finally:
            if left:
                answer["Body"].close()

    def stream(
        self, key: str, place: dict[str, Any], start: int, end: int, of: Stored | None, size: int
    ) -> Generator[bytes]:
        """Yield the bytes of a range in order, while what follows is read (see `get`).

        Raises:
            OtherContent: If the object ends before, too.
        """

        def read(begin: int) -> Sequence[bytes]:
            length = min(RANGE_BYTES, end - begin)
            chunks: Sequence[bytes] = ()
            with suppress(EOFError):
                chunks, _ = self.get(key, place, begin, length, of=of, size=size)
            if (found := sum(map(len, chunks))) != length:
                raise OtherContent(f"{self._wire.root}/{key} gave {found} of {length} bytes from {begin} on")
            return chunks

        todo, ahead = deque(range(start, end, RANGE_BYTES)), deque[Future[Sequence[bytes]]]()
        try:
            while todo or ahead:
                # Waits only as long as nothing is ahead: who holds a part must be free to let go of it.
                while todo and self._wire.slots.acquire(blocking=not ahead):
                    ahead.append(self._wire.pool.submit(read, todo.popleft()))
                yield from ahead[0].result()
                ahead.popleft()
                self._wire.slots.release()
        finally:
            for part in ahead:
                part.cancel()
            wait(ahead)
            for _ in ahead:
                self._wire.slots.release()
