"""One server of the built-in model for all API tests."""

from collections.abc import Iterator

import pytest

from tests.server.serving import RunningServer, serve


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serve("tiny", tmp_path_factory.mktemp("tiny") / "data") as server:
        yield server
