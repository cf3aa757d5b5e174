"""What all tests may use: the Firestore emulator. It starts with the first test that needs it; none is a failure."""

from collections.abc import Iterator

import pytest

from tools.emulator import available


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[str]:
    """host:port. For what stops, pauses or kills it: `tools.emulator.started()`, an emulator of the test's own."""
    with available() as host:
        yield host
