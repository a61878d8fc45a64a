"""Stands in for the helm command: takes what Helm 4's `status` and `upgrade` take, and answers as they do.

Flags, JSON and messages are those of pkg/cmd/status.go, pkg/cmd/upgrade.go and their recorded output in Helm's
repository, and are the same in Helm 3. Releases are kept in a file named by RELEASES.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import yaml


def main() -> None:
    parser = argparse.ArgumentParser(prog="helm", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", allow_abbrev=False)
    status.add_argument("--output", choices=("table", "json", "yaml"), default="table")
    upgrade = commands.add_parser("upgrade", allow_abbrev=False)
    for flag in ("--install", "--reset-values"):
        upgrade.add_argument(flag, action="store_true")
    upgrade.add_argument("--values", type=Path, action="append", default=[])
    for command in (status, upgrade):
        command.add_argument("--namespace", default="default")
        command.add_argument("release")
    upgrade.add_argument("chart", type=Path)
    asked = parser.parse_args()

    file = Path(os.environ["RELEASES"])
    releases = json.loads(file.read_text()) if file.exists() else {}
    key = f"{asked.namespace}/{asked.release}"
    if asked.command == "upgrade":
        if key not in releases and not asked.install:
            sys.exit(f'Error: UPGRADE FAILED: "{asked.release}" has no deployed releases')
        if not (asked.chart / "Chart.yaml").exists():
            sys.exit(f'Error: path "{asked.chart}" not found')
        before = {} if asked.reset_values else releases.get(key, {})
        releases[key] = before | {k: v for given in asked.values for k, v in yaml.safe_load(given.read_text()).items()}
        file.write_text(json.dumps(releases))
        sys.stdout.write(f'Release "{asked.release}" has been upgraded. Happy Helming!\n')
    elif key not in releases:
        sys.exit("Error: release: not found")
    elif asked.output == "json":
        found = {"name": asked.release, "info": {"status": "deployed"}, "version": 1, "namespace": asked.namespace}
        # Without values, there is no key for them.
        sys.stdout.write(json.dumps(found | ({"config": releases[key]} if releases[key] else {})))


main()
