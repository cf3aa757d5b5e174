"""Plans that several tests look at; each is made once."""

from pathlib import Path

import pytest

from tests.infra.terraform import Plan, Workspace, calling, command, copied


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    command()
    return copied(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def minimal(module: Path) -> Workspace:
    return Workspace(module / "examples/minimal")


@pytest.fixture(scope="session")
def function_plan(minimal: Workspace) -> Plan:
    return minimal.plan("-var=project=my-project")


@pytest.fixture(scope="session")
def full_plan(module: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """An image with everything that is off by default."""
    caller = calling(
        tmp_path_factory.mktemp("callers") / "full",
        module,
        region="europe-west1",
        image="europe-west1-docker.pkg.dev/my-project/pollux/pollux:1",
        private=True,
        invokers=["group:users@example.com"],
        keys={"alice": {"project": "team-a"}},
        kms_key="projects/my-project/locations/europe-west1/keyRings/ring/cryptoKeys/key",
        domain={"names": ["gemini.example.com"]},
        database={"backup_days": 7},
        pooled_files=True,
        budget={"amount": 20, "billing_account": "012345-6789AB-CDEF01"},
    )
    return caller.plan()
