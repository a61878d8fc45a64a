import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emopfx_server.engine.capture import Capture, CaptureSpec, layout_of, parse_range, union_of
from emopfx_server.engine.model import Site
from emopfx_server.schemas import Positions

NARROW = Site(0, "attn.output", 3, 0)
WIDE = Site(0, "mlp.up.output", 5, 1)
LAST = Site(1, "attn.output", 3, 2)


def spec(*sites: Site, positions: Positions = "all", dtype: torch.dtype = torch.float32) -> CaptureSpec:
    return CaptureSpec(layout_of(frozenset(sites)), dtype, positions)


def fill(capture: Capture, start: int, stop: int) -> None:
    """One step in which this request's rows stand between those of two others; a row holds its position."""
    layout = union_of(frozenset({layout_of(frozenset({NARROW, WIDE, LAST}))}))
    slab = layout.allocate(stop - start + 4, torch.float32, "cpu")
    for rows in slab.values():
        rows.fill_(-1)
        rows[:, 2 : 2 + stop - start] = torch.arange(start, stop)[None, :, None]
    capture.take(slab, layout, range(2, 2 + stop - start), start, [100 + position for position in range(start, stop)])


@pytest.mark.parametrize(
    ("positions", "kept"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("prompt", [0, 1, 2, 3]),
        ("generated", [4, 5, 6]),
        ("last_prompt", [3]),
        ("last", [6]),
        (["1:2", "5:"], [1, 5, 6]),
        (["2:5", "4:6", "90:99"], [2, 3, 4, 5]),
        (["3:3"], []),
    ],
)
@pytest.mark.parametrize("steps", [[4, 1, 1, 1], [2, 2, 1, 1, 1], [7]])
def test_positions(positions: Positions, kept: list[int], steps: list[int]) -> None:
    capture = Capture(spec(NARROW, WIDE, positions=positions), 4, 4)
    at = 0
    for step in steps:
        if capture.wants(at, step):
            fill(capture, at, at + step)
        at += step
    tensors = capture.tensors()
    assert tensors["positions"].tolist() == kept
    assert tensors["token_ids"].tolist() == [100 + position for position in kept]
    for site in (NARROW, WIDE):
        assert tensors[site.name].shape == (len(kept), site.width)
        assert tensors[site.name][:, 0].tolist() == kept
    assert LAST.name not in tensors


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.data())
def test_a_second_prefill_adds_nothing(steps: list[int], data: st.DataObject) -> None:
    """A request that lost its cache passes through the model again, from the start."""
    total = sum(steps)
    capture = Capture(spec(NARROW), total, 1)
    at = 0
    for step in steps:
        if at and data.draw(st.booleans()):
            fill(capture, 0, at)
        fill(capture, at, at + step)
        at += step
    assert capture.tensors()["positions"].tolist() == list(range(total))
    assert capture.tensors()[NARROW.name][:, 0].tolist() == list(range(total))


def test_capacity_is_what_the_longest_answer_needs() -> None:
    assert spec(NARROW).capacity(10, 5) == 14
    assert spec(NARROW, positions="generated").capacity(10, 5) == 4
    assert spec(NARROW, positions="generated").capacity(10, 1) == 0
    assert spec(NARROW, positions="last").capacity(10, 5) == 1
    assert spec(NARROW, WIDE, dtype=torch.bfloat16).bytes(10, 5) == 14 * 8 * 2


def test_rows_are_stored_in_the_dtype_asked_for() -> None:
    capture = Capture(spec(NARROW, dtype=torch.bfloat16), 2, 1)
    fill(capture, 0, 2)
    assert capture.tensors()[NARROW.name].dtype is torch.bfloat16


def test_layouts_are_in_execution_order_and_one_object_for_the_same_sites() -> None:
    assert layout_of(frozenset({LAST, WIDE, NARROW})).sites == (NARROW, WIDE, LAST)
    one, other = layout_of(frozenset({NARROW})), layout_of(frozenset({LAST, NARROW}))
    assert union_of(frozenset({one, other})) is other


@pytest.mark.parametrize(("text", "range_"), [("0:4", (0, 4)), ("3:", (3, 1 << 62)), (":2", (0, 2))])
def test_parse_range(text: str, range_: tuple[int, int]) -> None:
    assert parse_range(text) == range_


@pytest.mark.parametrize("text", ["", "3", "-1:2", "1:2:3", "a:b", "1-2"])
def test_parse_range_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="range of positions"):
        parse_range(text)
