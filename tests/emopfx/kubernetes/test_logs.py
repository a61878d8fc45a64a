import pytest

from emopfx.kubernetes import logs
from emopfx.progress import Progress


def test_times_sort_as_text() -> None:
    times = [
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.05Z",
        "2026-01-01T00:00:00.5Z",
        "2026-01-01T00:00:01.123456789Z",
    ]
    found = [logs.split(f"{time} a line") for time in times]
    assert found == sorted(found, key=lambda item: item or ("", ""))
    assert {item and item[1] for item in found} == {"a line"}


def test_lines_without_a_time_are_the_node_s() -> None:
    log = "2026-01-01T00:00:00Z first\n2026-01-01T00:00:01Z\nunable to retrieve container logs for containerd://1"
    assert [text for _, text in logs.timed(log)] == ["first", ""]


def test_reads_the_progress_that_a_pod_prints() -> None:
    progress = Progress("generate", 9233, 12)
    progress.done = 412
    assert logs.progress(progress.line(60.0)) == (412, 9233)


@pytest.mark.parametrize("line", ["generate: 0 of 64 already done, 64 to do", "nano: 64 of 64 samples", ""])
def test_other_lines_are_no_progress(line: str) -> None:
    assert logs.progress(line) is None
