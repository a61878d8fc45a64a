from pathlib import Path
from typing import Any

import pytest
import yaml

from emopfx.errors import InputError
from emopfx.kubernetes import kubeconfig


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, server: str = "https://10.0.0.1", **context: Any) -> None:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", **context}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))


@pytest.mark.parametrize(
    "content", [b"", b"text", b"[1]", b"\xff\x00\xfe", b"a: [\n- b", b"clusters: 3\ncontexts: 5\ncurrent-context: x"]
)
def test_a_file_that_is_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / "kubeconfig").write_bytes(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(InputError, match="kubeconfig") as caught:
        kubeconfig.connect(None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("server", ["10.0.0.1:6443", "ftp://10.0.0.1", "https://", "https://a:b", "no url"])
def test_an_address_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    write(tmp_path, monkeypatch, server)
    with pytest.raises(InputError, match="server must be an address such as"):
        kubeconfig.connect(None)


@pytest.mark.parametrize(
    ("context", "asked", "namespace"),
    [
        ({}, None, "default"),
        ({"namespace": ""}, None, "default"),
        ({"namespace": None}, None, "default"),
        ({"namespace": "research"}, None, "research"),
        ({"namespace": "research"}, "other", "other"),
    ],
)
def test_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: dict[str, Any], asked: str | None, namespace: str
) -> None:
    write(tmp_path, monkeypatch, **context)
    assert kubeconfig.connect(asked).namespace == namespace


@pytest.mark.parametrize("name", ["a/b", "A", "-a", "a" * 64, "../kube-system", "a\n"])
def test_a_namespace_that_can_t_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="a namespace's name has 1 to 63 of a-z"):
        kubeconfig.connect(name)


def test_an_empty_variable_names_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, monkeypatch, namespace="at-home")
    (tmp_path / ".kube").mkdir()
    (tmp_path / "kubeconfig").rename(tmp_path / ".kube" / "config")
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kubeconfig.connect(None).namespace == "at-home"
