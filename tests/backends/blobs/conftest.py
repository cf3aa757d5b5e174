"""Each test of the contract runs once for every blob store; faults of Cloud Storage on a server of the test's own."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.blobs.backends import EMULATED, PARALLEL, Place, emulator
from tests.backends.blobs.storage_server import BUCKET, Storage, storage


@pytest.fixture(scope="session")
def storage_emulator() -> Iterator[str]:
    with emulator() as host:
        yield host


@pytest.fixture(params=[*PARALLEL, EMULATED])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == EMULATED:
        host = request.getfixturevalue("storage_emulator")
        yield Place(f"gs://{BUCKET}/{secrets.token_hex(4)}", {"STORAGE_EMULATOR_HOST": host})
        return
    with PARALLEL[request.param](tmp_path) as place:
        yield place


@pytest.fixture(params=PARALLEL)
def parallel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Those that serve a call while another one has not ended."""
    with PARALLEL[request.param](tmp_path) as place:
        yield place


@pytest.fixture
def server() -> Iterator[Storage]:
    with storage() as state:
        yield state
