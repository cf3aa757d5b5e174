"""Terraform as the tests run it: the module in a copy of its own, with the CLI that TERRAFORM names."""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "infra/terraform"
BESIDE = ROOT.parent / "shared/terraform-offline/tf"
"""A stand-in that needs no registry, if the checkout has one beside it."""
LEFT_OUT = shutil.ignore_patterns(".terraform", ".terraform.lock.hcl", "*.tfstate*", "__pycache__", "*.egg-info")


@functools.cache
def command() -> str:
    """The CLI. Without one, tests are skipped; in CI that is a failure."""
    wanted = os.environ.get("TERRAFORM") or (str(BESIDE) if BESIDE.exists() else "terraform")
    found = shutil.which(wanted)
    if found is None:
        reason = f"{wanted} is not installed; set TERRAFORM to a Terraform CLI of 1.9 or newer"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Workspace:
    """One folder in which Terraform works, with a local state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run("init", "-backend=false", "-input=false")

    def run(self, *words: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
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
