"""A namespace for each file of tests, on the cluster that KUBECONFIG names."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import kubernetes
import pytest

from tests.e2e.namespace import Namespace, chart_values, new_namespace


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def client() -> kubernetes.client.ApiClient:
    if os.environ.get("EMOPFX_E2E") != "1":
        pytest.skip("needs a cluster: KUBECONFIG=… make e2e")
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(client_configuration=configuration)
    client = kubernetes.client.ApiClient(configuration)
    kubernetes.client.VersionApi(client).get_code()
    return client


@pytest.fixture(scope="module")
def namespace(client: kubernetes.client.ApiClient) -> Iterator[Namespace]:
    with new_namespace(client) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def release(namespace: Namespace) -> Namespace:
    """A namespace in which the chart is installed and its server, of the built-in model, is ready."""
    namespace.install(chart_values("cpu"))
    namespace.wait_server()
    return namespace


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    namespace = getattr(item, "funcargs", {}).get("namespace")
    if report.failed and isinstance(namespace, Namespace):
        report.sections.append((f"namespace {namespace.name}", namespace.account()))
    return report
