import pytest
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchingManager,
    OutputRouter,
)
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from emopfx_server.engine.batching import check_foundations


def test_what_the_adapter_stands_on_is_there() -> None:
    check_foundations()


def test_a_moved_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRunner, "_forward_process_and_sample", lambda self, model: None)
    with pytest.raises(RuntimeError, match=r"_forward_process_and_sample now takes \['self', 'model'\]"):
        check_foundations()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (FutureRequestState, "query_length"),
        (RequestState, "position_offset"),
        (BackgroundThreadStatus, "can_accept_new_requests"),
    ],
)
def test_a_lost_field_is_named(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(RuntimeError, match=rf"{owner.__name__} no longer has {name}"):
        check_foundations()


@pytest.mark.parametrize(("owner", "name"), [(OutputRouter, "_lock"), (ContinuousBatchingManager, "output_router")])
def test_an_attribute_that_is_no_longer_made_is_named(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    monkeypatch.setattr(owner, "__init__", lambda self: None)
    with pytest.raises(RuntimeError, match=rf"{owner.__name__} no longer has .*{name}"):
        check_foundations()
