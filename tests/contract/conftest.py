"""Each test of the suite runs once for every store that it fits."""

from pathlib import Path

import pytest

from tests.contract.backends import BACKENDS, SHARED


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    address: str = request.param.url(tmp_path)
    return address


@pytest.fixture(params=SHARED, ids=lambda backend: backend.name)
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    address: str = request.param.url(tmp_path)
    return address
