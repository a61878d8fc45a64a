"""The key that the server asks for reaches the server and everyone who asks it, and nobody else."""

from tests.chart.rendering import Object, pods, render


def keys(values: Object) -> dict[str, object]:
    """Where each pod has the key from, by component."""
    return {
        component: variable["valueFrom"]
        for component, pod in pods(render(values)).items()
        for container in pod["spec"]["containers"]
        for variable in container["env"]
        if variable["name"] == "EMOPFX_API_KEY"
    }


def test_who_has_the_key() -> None:
    reference = {"secretKeyRef": {"name": "door", "key": "it"}}
    values = {"apiKey": {"existingSecret": "door", "secretKey": "it"}, "operator": {"enabled": True}}
    assert keys(values) == dict.fromkeys(("server", "generate", "operator", "test"), reference)


def test_without_a_secret_there_is_no_key() -> None:
    assert keys({"operator": {"enabled": True}}) == {}
