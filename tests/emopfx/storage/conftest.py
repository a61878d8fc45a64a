import itertools
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from emopfx.layout import Layout
from emopfx.storage import s3
from emopfx.storage.parts import PART_BYTES
from emopfx.storage.s3 import Bucket
from tests.emopfx.storage.s3_service import CREDENTIALS, Gate, gate, moto

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def door(service: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    with gate(service) as control:
        yield control


@pytest.fixture
def uri(service: str, door: Gate) -> str:
    name = f"bucket-{next(NUMBERS)}"
    client = boto3.client("s3", endpoint_url=service)
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}/some/prefix"


@pytest.fixture
def bucket(uri: str, door: Gate) -> Iterator[Bucket]:
    with Bucket(uri, door.url) as opened:
        yield opened


@pytest.fixture
def soon_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go in parts as soon as there are two of them."""
    monkeypatch.setattr(s3, "WHOLE_BYTES", PART_BYTES)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "results", "nano")
