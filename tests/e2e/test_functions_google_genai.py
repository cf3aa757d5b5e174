"""All of test_google_genai again: two processes under the Functions Framework, which share one Firestore."""

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.test_google_genai import *  # noqa: F403


@pytest.fixture(scope="module", params=[0, 1], ids=["one process", "the other"])
def shared_pair(functions_pairs: list[Pair], request: pytest.FixtureRequest) -> Pair:
    pair: Pair = functions_pairs[request.param]
    return pair
