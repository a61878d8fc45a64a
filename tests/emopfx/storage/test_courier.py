"""Requests that are sent while others are being made."""

import threading
import time
from typing import Any

import pytest

from emopfx.config import S3
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, write_json
from emopfx.storage import courier, manifest, push
from emopfx.storage.s3 import Bucket
from tests.emopfx.storage.s3_service import Gate, give_up_after, make_requests


@pytest.fixture
def s3(bucket: Bucket) -> S3:
    return S3(uri=bucket.root, endpoint_url=bucket.endpoint_url, push="continuous")


def until(true: Any) -> None:
    """Wait for something that takes a moment."""
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_the_bucket_names_what_it_has_while_the_rest_is_made(
    layout: Layout, bucket: Bucket, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "PUBLISH_SECONDS", 0.0)
    make_requests(layout, 4)
    entries = manifest.read(layout)
    with push.continuous(layout, s3) as saved:
        for key, entry in entries.items():
            saved(dict(entry))
            until(lambda key=key: key in (manifest.read_remote(bucket, "nano") or {}))
    assert manifest.read_remote(bucket, "nano") == {
        key: manifest.in_bucket(entry, bucket) for key, entry in entries.items()
    }


def test_what_a_server_says_can_lead_nowhere_else(layout: Layout, bucket: Bucket, s3: S3) -> None:
    make_requests(layout, 1)
    victim = layout.root.parent / "victim"
    victim.mkdir()
    (victim / "metadata.json").write_text("precious")
    entry = dict(manifest.read(layout)["control/a_0001"])
    with push.continuous(layout, s3) as saved:
        saved({**entry, "save_dir": "../victim"})
    assert list(bucket.list("")) == []


def test_who_stops_does_not_wait_for_what_is_being_sent(layout: Layout, s3: S3, door: Gate) -> None:
    make_requests(layout, 1)
    (entry,) = manifest.read(layout).values()

    def stop_while_it_is_sent() -> None:
        with push.continuous(layout, s3) as saved:
            door.delay = 2
            saved(dict(entry))
            until(lambda: door.asked["PUT"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_while_it_is_sent()
    (still_sending,) = (thread for thread in threading.enumerate() if thread.name.startswith("s3-push"))
    still_sending.join()


def test_what_could_not_be_pushed_is_refused_before_it_is_made(layout: Layout, bucket: Bucket, s3: S3) -> None:
    make_requests(layout, 2)
    push.check(layout, s3, {"calm/a_0001": "r00001"})
    push.activations(layout, bucket)
    push.check(layout, s3, {"calm/a_0001": "r00001"})
    with pytest.raises(InputError, match=r"calm/a_0001 under another config \(request r00001, here other\)"):
        push.check(layout, s3, {"calm/a_0001": "other"})
    write_json(layout.record, {"hash": "one"})
    push.results(layout, bucket)
    write_json(layout.record, {"hash": "two"})
    with pytest.raises(InputError, match="has results of another config"):
        push.check(layout, s3, {})
    with pytest.raises(RunError, match="does not exist"):
        push.check(layout, S3(uri="s3://no-such-bucket", endpoint_url=s3.endpoint_url), {})


def test_a_service_that_is_away_stops_nobody_from_beginning(
    layout: Layout, s3: S3, door: Gate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_up_after(1, monkeypatch)
    door.closed = True
    push.check(layout, s3, {})
    assert "what is made now stays here until it can be pushed" in capsys.readouterr().err
