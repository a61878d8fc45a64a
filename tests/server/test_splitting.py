import threading

import pytest
import torch

from emopfx_server.engine.capture import Capture, CaptureSpec, Layout, Slab, layout_of
from emopfx_server.engine.model import Site
from emopfx_server.engine.splitting import Share, Splitter

LAYOUT = layout_of(frozenset({Site(0, "mlp.output", 4, 0)}))


def slab_of(layout: Layout, first: int, rows: int) -> Slab:
    slab = layout.allocate(rows, torch.float32, "cpu")
    slab[4].copy_(torch.arange(first, first + rows)[None, :, None].expand(1, rows, 4))
    return slab


def test_steps_are_split_in_order() -> None:
    splitter = Splitter(torch.device("cpu"))
    spec = CaptureSpec(LAYOUT, torch.float32, "all")
    captures = [Capture(spec, 2, 50) for _ in range(3)]
    for step in range(20):
        shares = [Share(capture, row, step, [row]) for row, capture in enumerate(captures)]
        splitter.split(slab_of(LAYOUT, 100 * step, 3), LAYOUT, shares)
    assert splitter.last is not None
    splitter.last.result()
    splitter.stop()
    for row, capture in enumerate(captures):
        assert capture.tensors()["layers.0.mlp.output"][:, 0].tolist() == [100 * step + row for step in range(20)]
    assert "splitter" not in {thread.name.split("_")[0] for thread in threading.enumerate()}


def test_a_split_that_failed_fails_the_next_step() -> None:
    splitter = Splitter(torch.device("cpu"))
    elsewhere = layout_of(frozenset({Site(1, "mlp.output", 4, 1)}))
    capture = Capture(CaptureSpec(elsewhere, torch.float32, "all"), 2, 1)
    splitter.split(slab_of(LAYOUT, 0, 1), LAYOUT, [Share(capture, 0, 0, [7])])
    with pytest.raises(KeyError):
        splitter.split(slab_of(LAYOUT, 1, 1), LAYOUT, [])
    splitter.stop()
