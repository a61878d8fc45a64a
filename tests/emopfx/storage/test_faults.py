"""What a service that fails, is slow, or is away for a while does to push and pull."""

import re
import shutil
import threading
import time
from collections.abc import Callable

import pytest

from emopfx.errors import RunError
from emopfx.layout import Layout
from emopfx.storage import inventory, manifest, parallel, pull, push
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from tests.emopfx.storage.s3_service import Gate, content, give_up_after, make_requests

EVERYTHING = Selection()


def missing(call: Callable[[], None]) -> set[str]:
    """Return the keys that a failed push or pull lists."""
    with pytest.raises(RunError) as raised:
        call()
    first, *lines = str(raised.value).splitlines()
    assert first.split()[1] == str(len(lines))
    return {re.split(": ", line.strip())[0] for line in lines}


def test_a_fifth_of_all_requests_failing_is_no_failure(layout: Layout, bucket: Bucket, door: Gate) -> None:
    make_requests(layout, 60)
    before = content(layout.folder / "activations")
    door.failing, door.delay = 0.2, 0.01
    push.activations(layout, bucket)
    sent = door.asked["PUT"]
    assert sent > 120 * 1.1
    shutil.rmtree(layout.folder / "activations")
    pull.activations(layout, bucket, EVERYTHING)
    assert content(layout.folder / "activations") == before
    door.failing = door.delay = 0
    inventory.verify(layout, bucket, read=True)


def test_a_service_that_is_away_for_ten_seconds_is_waited_for(layout: Layout, bucket: Bucket, door: Gate) -> None:
    make_requests(layout, 40)

    def stop() -> None:
        ends = time.monotonic() + 60
        while door.asked["PUT"] < 20 and time.monotonic() < ends:
            time.sleep(0.001)
        door.closed = True
        time.sleep(10)
        door.closed = False

    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        push.activations(layout, bucket)
    finally:
        stopping.join()
    inventory.verify(layout, bucket)


def test_an_outage_ends_with_the_list_of_what_is_missing_and_the_next_run_goes_on(
    layout: Layout, uri: str, door: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_after(2, monkeypatch)
    monkeypatch.setattr(parallel, "PAUSES", (0.01,))
    make_requests(layout, 60)
    before = content(layout.folder / "activations")
    with Bucket(uri, door.url) as bucket:
        door.closing_after = {"PUT": 50}
        listed = missing(lambda: push.activations(layout, bucket))
        door.closing_after = {}
        door.closed = False
        # All but those whose both files are there, and which the local manifest says so of.
        there = {item.key for item in bucket.list("nano/activations/")}
        entries = manifest.read(layout)
        whole = {key for key, entry in entries.items() if all(path in there for path, _ in manifest.paths(entry))}
        assert listed == entries.keys() - whole
        assert {key for key, entry in entries.items() if entry["uri"]} == whole
        assert content(layout.folder / "activations") == before

        door.asked.clear()
        push.activations(layout, bucket)
        assert door.asked["PUT"] == 120 - len(there) + 1
        inventory.verify(layout, bucket)

        shutil.rmtree(layout.folder / "activations")
        door.closing_after = {"GET": 50}
        listed = missing(lambda: pull.activations(layout, bucket, EVERYTHING))
        door.closing_after = {}
        door.closed = False
        here = {
            key for key, entry in entries.items() if all((layout.root / p).exists() for p, _ in manifest.paths(entry))
        }
        assert listed == entries.keys() - here
        pull.activations(layout, bucket, EVERYTHING)
        assert content(layout.folder / "activations") == before
