"""The pod of `helm test`; tests/server/test_check_capture.py runs what it runs."""

from tests.chart.rendering import CHART, find, names, render


def test_is_a_hook_that_asks_the_server() -> None:
    objects = render(release="calm")
    pod = find(objects, "Pod", "calm-emopfx-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    [container] = pod["spec"]["containers"]
    [host] = names(objects, "Service")
    script = (CHART / "files" / "check_capture.py").read_text()
    assert container["command"] == ["python", "-c"]
    assert [argument.strip() for argument in container["args"]] == [script.strip(), f"http://{host}:8000"]
