import threading

import pytest
import torch

from emopfx_server.engine.capture import Capture, CaptureSpec, Reading, layout_of
from emopfx_server.engine.model import Site
from emopfx_server.engine.splitting import SLAB_ROWS, Share, Splitter

SITE, OTHER = Site(0, "mlp.output", 4, 0), Site(1, "mlp.output", 4, 1)
SPEC = CaptureSpec(layout_of(frozenset({SITE})), torch.float32, "all")
READING = Reading.of([SPEC], torch.float32)


def step(splitter: Splitter, value: int, shares: list[Share], reading: Reading = READING, rows: int = 3) -> None:
    """One step, whose rows hold ``value`` and their number."""
    for read in splitter.room(reading, rows).values():
        read.copy_(value + torch.arange(rows)[:, None].expand(rows, 4))
    splitter.note(rows, shares)


def rows_of(capture: Capture, site: Site = SITE) -> list[int]:
    return [int(value) for value in capture.tensors()[site.name][:, 0]]


@pytest.mark.parametrize("steps", [20, SLAB_ROWS])
def test_rows_go_to_their_requests_in_order(steps: int) -> None:
    splitter = Splitter(torch.device("cpu"))
    captures = [Capture(SPEC, 2, SLAB_ROWS) for _ in range(3)]
    for number in range(steps):
        shares = [Share(capture, row, number, [row]) for row, capture in enumerate(captures)]
        step(splitter, 10 * number, shares)
    for row, capture in enumerate(captures):
        splitter.finish(capture).result()
        assert rows_of(capture) == [10 * number + row for number in range(steps)]
        assert capture.tensors()["token_ids"].tolist() == [row] * steps
        assert capture.tensors()["positions"].tolist() == list(range(steps))
    splitter.stop()
    assert "splitter" not in {thread.name.split("_")[0] for thread in threading.enumerate()}


def test_one_request_finishes_while_another_goes_on() -> None:
    splitter = Splitter(torch.device("cpu"))
    short, long = Capture(SPEC, 2, 50), Capture(SPEC, 2, 50)
    step(splitter, 0, [Share(short, 0, 0, [1, 1]), Share(long, 2, 0, [2])])
    splitter.finish(short).result()
    step(splitter, 10, [Share(long, 0, 1, [2, 2, 2])])
    splitter.finish(long).result()
    assert (rows_of(short), rows_of(long)) == ([0, 1], [2, 10, 11, 12])
    splitter.stop()


def test_a_second_prefill_adds_nothing() -> None:
    splitter = Splitter(torch.device("cpu"))
    capture = Capture(SPEC, 2, 50)
    step(splitter, 0, [Share(capture, 0, 0, [1, 1])])
    step(splitter, 10, [Share(capture, 0, 0, [1, 1])])
    step(splitter, 20, [Share(capture, 1, 2, [1])])
    splitter.finish(capture).result()
    assert rows_of(capture) == [0, 1, 21]
    splitter.stop()


def test_a_step_larger_than_a_slab_and_one_that_reads_elsewhere() -> None:
    splitter = Splitter(torch.device("cpu"))
    both = CaptureSpec(layout_of(frozenset({SITE, OTHER})), torch.float32, "all")
    large, wide = Capture(SPEC, SLAB_ROWS + 5, 50), Capture(both, 2, 50)
    step(splitter, 0, [Share(large, 0, 0, range(SLAB_ROWS + 5))], rows=SLAB_ROWS + 5)
    shares = [Share(large, 0, SLAB_ROWS + 5, [1]), Share(wide, 1, 0, [2, 2])]
    step(splitter, 1000, shares, Reading.of([SPEC, both], torch.float32))
    for capture in (large, wide):
        splitter.finish(capture).result()
    assert rows_of(large) == [*range(SLAB_ROWS + 5), 1000]
    assert rows_of(wide) == rows_of(wide, OTHER) == [1001, 1002]
    splitter.stop()


def test_what_was_given_up_is_not_kept() -> None:
    splitter = Splitter(torch.device("cpu"))
    capture = Capture(SPEC, 2, 50)
    step(splitter, 0, [Share(capture, 0, 0, [1, 1])])
    splitter.drop(capture)
    splitter.finish(capture).result()
    assert rows_of(capture) == []
    splitter.stop()


def test_what_is_given_up_in_the_middle_of_a_step_is_not_kept() -> None:
    splitter = Splitter(torch.device("cpu"))
    capture = Capture(SPEC, 2, 50)
    splitter.room(READING, 3)
    splitter.drop(capture)
    splitter.note(3, [Share(capture, 0, 0, [1, 1])])
    assert not splitter._runs
    splitter.stop()


def test_a_slab_that_is_full_goes_once_its_rows_are_handed_over() -> None:
    splitter = Splitter(torch.device("cpu"))
    capture = Capture(SPEC, SLAB_ROWS + 5, 50)
    step(splitter, 0, [Share(capture, 0, 0, range(SLAB_ROWS + 5))], rows=SLAB_ROWS + 5)
    assert splitter._window is None
    step(splitter, 1000, [Share(capture, 0, SLAB_ROWS + 5, [1])])
    splitter.finish(capture).result()
    assert rows_of(capture) == [*range(SLAB_ROWS + 5), 1000]
    splitter.stop()


def test_a_failure_is_told_to_all_who_wait_for_rows() -> None:
    splitter = Splitter(torch.device("cpu"))
    elsewhere = Capture(CaptureSpec(layout_of(frozenset({OTHER})), torch.float32, "all"), 2, 1)
    fine = Capture(SPEC, 2, 50)
    step(splitter, 0, [Share(elsewhere, 0, 0, [7]), Share(fine, 1, 0, [7])])
    for capture in (elsewhere, fine):
        with pytest.raises(KeyError):
            splitter.finish(capture).result()
    with pytest.raises(KeyError):
        splitter.room(READING, 1)  # though the slab has room for it
    splitter.stop()


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ([torch.bfloat16, torch.bfloat16], torch.bfloat16),
        ([torch.bfloat16, torch.float32], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float64], torch.float32),
    ],
)
def test_rows_are_read_in_the_smallest_type_that_loses_nothing(stored: list[torch.dtype], read: torch.dtype) -> None:
    specs = [CaptureSpec(SPEC.layout, dtype, "all") for dtype in stored]
    assert Reading.of(specs, torch.float32).dtype is read
