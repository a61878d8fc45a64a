from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emopfx_server.files import resolve_under
from emopfx_server.schemas import ApiError


def test_paths_inside_are_given_back(tmp_path: Path) -> None:
    assert resolve_under(tmp_path, "a/./b/../c", param="p") == tmp_path.resolve() / "a" / "c"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert resolve_under(tmp_path, "link/x", param="p") == tmp_path.resolve() / "real" / "x"


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/etc", "out/x", "loop/x", "a\0b", "x" * 300])
def test_paths_that_leave_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "out").symlink_to("/")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ApiError) as caught:
        resolve_under(tmp_path, path, param="p")
    assert (caught.value.status, caught.value.param) == (400, "p")


@given(st.text(alphabet="./a\\~\0 é", max_size=12))
def test_whatever_is_given_back_is_inside(path: str) -> None:
    root = Path(__file__).parent
    try:
        found = resolve_under(root, path, param="p")
    except ApiError:
        return
    assert found.is_relative_to(root)
