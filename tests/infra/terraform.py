"""Terraform as the tests run it: the module in a copy of its own, with the CLI that TERRAFORM names."""

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.parts import MissingPartError

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "infra/terraform"
BESIDE = ROOT.parent / "shared/terraform-offline/tf"
"""A stand-in that needs no registry, if the checkout has one beside it."""
PROVIDERS = ROOT / "build/terraform-providers"
"""Downloaded once; `make clean` removes them."""
LEFT_OUT = shutil.ignore_patterns(".terraform", ".terraform.lock.hcl", "*.tfstate*", "__pycache__", "*.egg-info")
UNREACHABLE = r"could not connect to [\w.-]+|failed to request discovery document|could not query provider registry"
_unreachable: list[str] = []
"""Why no provider can be had, once that is known: each try can take a minute."""


@functools.cache
def command() -> str:
    """The CLI. MissingPartError without one."""
    wanted = os.environ.get("TERRAFORM") or (str(BESIDE) if BESIDE.exists() else "terraform")
    found = shutil.which(wanted)
    if found is None:
        raise MissingPartError(f"{wanted} is not installed; install Terraform 1.9 or newer, or set TERRAFORM to it")
    return found


def _cached_providers() -> dict[str, str]:
    """They are some hundred MB, and each workspace would download them again."""
    if "TF_PLUGIN_CACHE_DIR" in os.environ:
        return {}
    PROVIDERS.mkdir(parents=True, exist_ok=True)
    return {"TF_PLUGIN_CACHE_DIR": str(PROVIDERS), "TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE": "1"}


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Terraform does not promise that two can fill the cache at once, and tests run in several processes."""
    PROVIDERS.mkdir(parents=True, exist_ok=True)
    with (PROVIDERS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Workspace:
    """One folder in which Terraform works, with a local state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.init()

    def init(self) -> None:
        """MissingPartError if no registry hands out the providers."""
        if _unreachable:
            raise MissingPartError(_unreachable[0])
        with _one_at_a_time():
            done = self.run("init", "-backend=false", "-input=false", "-no-color", codes=(0, 1))
        if found := re.search(UNREACHABLE, " ".join(done.stderr.split())):
            _unreachable.append(
                f"Terraform's registry hands out no providers ({found[0]}); its tests need it to answer"
            )
            raise MissingPartError(_unreachable[0])
        assert done.returncode == 0, f"terraform init:\n{done.stdout}\n{done.stderr}"

    def run(self, *words: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"} | _cached_providers()
        done = subprocess.run(
            [command(), f"-chdir={self.folder}", *words], capture_output=True, text=True, env=environ, check=False
        )
        assert done.returncode in codes, f"terraform {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done

    def plan(self, *words: str) -> "Plan":
        self.run("plan", "-input=false", "-no-color", "-out=test.tfplan", *words)
        return Plan(json.loads(self.run("show", "-json", "test.tfplan").stdout))


class Plan:
    def __init__(self, shown: Mapping[str, Any]) -> None:
        self.shown = shown
        self.text = json.dumps(shown)

    def resources(self, *types: str) -> Iterator[Mapping[str, Any]]:
        """What would be there, as {address, type, name, values}."""
        modules = [self.shown["planned_values"]["root_module"]]
        while modules:
            module = modules.pop()
            modules += module.get("child_modules", [])
            yield from (found for found in module.get("resources", []) if not types or found["type"] in types)

    def one(self, kind: str) -> Mapping[str, Any]:
        [found] = self.resources(kind)
        values: Mapping[str, Any] = found["values"]
        return values


def copied(folder: Path) -> Path:
    """The module and the source that it packs, as a checkout has them."""
    shutil.copytree(ROOT / "function", folder / "function", ignore=LEFT_OUT)
    shutil.copytree(MODULE, folder / "infra/terraform", ignore=LEFT_OUT)
    return folder / "infra/terraform"


def calling(folder: Path, module: Path, **variables: Any) -> Workspace:
    """A caller of the module, as the examples are."""
    folder.mkdir()
    calls = {"source": os.path.relpath(module, folder), "project": "my-project", **variables}
    root = {"provider": {"google": {"project": "my-project"}}, "module": {"pollux": calls}}
    (folder / "main.tf.json").write_text(json.dumps(root))
    return Workspace(folder)
