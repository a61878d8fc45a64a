import socket
import threading
from collections.abc import Iterator

import kubernetes
import pytest

from emopfx.errors import RunError
from emopfx.kubernetes import api
from emopfx.kubernetes.api import Cluster


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an API server behind a gateway that takes every call and hangs up."""
    monkeypatch.setattr(api, "FIRST_PATIENCE", 0.5)
    monkeypatch.setattr(api, "PAUSE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_lost_connection_is_no_refusal(hung_up: str) -> None:
    configuration = kubernetes.client.Configuration(host=hung_up)
    configuration.retries = False
    cluster = Cluster(kubernetes.client.ApiClient(configuration), "default", inside=False)
    with pytest.raises(RunError) as caught:
        cluster.get("Job", "nano")
    assert str(caught.value).startswith(f"the cluster at {hung_up} does not answer: ")
    assert "\n" not in str(caught.value)
