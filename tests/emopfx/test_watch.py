import pytest

from emopfx.kubernetes.configmap import RunRecord
from emopfx.watch import wanted

ALL = ["deploy", "configure", "generate", "analyze"]


def record(**states: str) -> RunRecord:
    made = RunRecord("nano", "emopfx", "0123456789", "", "")
    made.stages = {stage: {"state": state} for stage, state in states.items()}
    return made


def test_a_new_config_is_run_but_not_deployed() -> None:
    assert wanted(None, ALL) == ["configure", "generate", "analyze"]
    assert wanted(None, ["analyze"]) == ["analyze"]


@pytest.mark.parametrize(
    ("states", "stages"),
    [
        ({"deploy": "running", "configure": "pending", "generate": "pending"}, ["configure", "generate"]),
        ({"configure": "succeeded", "generate": "running", "analyze": "pending"}, ["generate", "analyze"]),
        ({"configure": "succeeded", "generate": "succeeded"}, []),
        ({"configure": "succeeded", "generate": "failed", "analyze": "pending"}, []),
    ],
)
def test_a_run_is_brought_to_the_end_that_was_asked_for(states: dict[str, str], stages: list[str]) -> None:
    assert wanted(record(**states), ALL) == stages
