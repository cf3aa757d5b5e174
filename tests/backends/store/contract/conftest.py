"""Each test of the suite runs once for every store that it fits."""

from pathlib import Path

import pytest

from tests.backends.store.contract.backends import BACKENDS, SHARED, Backend


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return empty(request.param, request, tmp_path, monkeypatch)


@pytest.fixture(params=SHARED, ids=lambda backend: backend.name)
def shared_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return empty(request.param, request, tmp_path, monkeypatch)


def empty(backend: Backend, request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if backend.emulated:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", request.getfixturevalue("firestore_emulator"))
    return backend.url(folder)
