"""What `helm.HelmSdk` runs in a process of its own: reads one call (JSON) from standard input, prints what it returns.

Called as `python -m emopfx.kubernetes.helm_sdk NAMESPACE`.
"""

import json
import sys
from typing import Any

import helm_python


def call(config: helm_python.Config, action: str, release: str, *arguments: Any) -> Any:
    """Return a release's state and values (None if there is no such release), or upgrade it to a chart and values."""
    if action == "read":
        return _read(config, release)
    chart, values = arguments
    if _read(config, release) is None:
        config.install(chart, release, values)
    else:
        config.upgrade(chart, release, values, reset_values=True)
    return None


def _read(config: helm_python.Config, release: str) -> tuple[str, dict[str, Any]] | None:
    try:
        return str(config.status(release)["status"]), dict(config.get_values(release) or {})
    except helm_python.HelmNotFoundError:
        return None


def main() -> None:
    """Do what standard input asks for; errors end on standard error, like those of the helm binary."""
    namespace = sys.argv[1]
    try:
        result = call(helm_python.Config(namespace=namespace), *json.load(sys.stdin))
    except helm_python.HelmError as error:
        sys.exit(f"Error: {error}")
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
