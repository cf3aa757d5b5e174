import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.pool.quota import Cooldown, Slot, State, give_back, reserve, settle
from pollux.pool.quota_document import SCHEMA, SchemaError, pack, unpack
from pollux.pool.windows import WINDOW, Slots, Want

NOW = 1_800_043_200.25
moments = st.floats(0, 4e9)
numbers = st.integers(0, 10**9)
names = st.text("abcdefgh0123456789", min_size=1, max_size=8)
states = st.builds(
    State,
    slots=st.dictionaries(st.integers(3_600_000_000, 3_600_000_400), st.builds(Want, numbers, numbers, numbers)).map(
        Slots
    ),
    days=st.dictionaries(st.sampled_from(["2026-11-01", "2026-11-01Z", "2026-11-02"]), st.tuples(numbers, numbers)),
    # Without anything learned, the tier for which it was learned means nothing and is not kept.
    learned=st.dictionaries(st.sampled_from(["rpm", "tpm", "rpd"]), st.tuples(numbers, moments), min_size=1),
    tier=st.none() | names,
    cooldown=st.none() | st.builds(Cooldown, moments, names, st.integers(1, 40)),
    probe_until=moments,
    sliding_until=moments,
    zone=st.sampled_from(["pacific", "utc"]),
    spent_at=moments,
    utc_probe_at=moments,
    granted=st.integers(0, 2**40),
)


@given(states)
def test_a_state_comes_back_as_it_was_also_through_json(state: State) -> None:
    document = pack(state)
    assert unpack(document) == state
    assert unpack(json.loads(json.dumps(document))) == state
    assert pack(unpack(document)) == document


def test_an_empty_state_is_small() -> None:
    assert pack(State()) == {"schema": SCHEMA, "slots": "", "days": {}}
    assert unpack({"schema": SCHEMA, "slots": "", "days": {}}) == State()


def test_slots_are_packed_by_their_distances() -> None:
    state = State(Slots({3_600_000_007: Want(3), 3_600_000_000: Want(1, 20), 3_600_000_001: Want(0, 0, 2)}))
    assert pack(state)["slots"] == "3600000000,1,20;1,0,0,2;6,3"
    assert list(unpack(pack(state)).slots) == [3_600_000_000, 3_600_000_001, 3_600_000_007]


def test_what_is_unpacked_goes_on_as_before() -> None:
    limits, want = {"rpm": 3, "tpm": 500}, Want(1, 100)
    state = State()
    for _ in range(7):
        after, found = reserve(state, NOW, want, limits, NOW + 300)
        assert reserve(unpack(pack(state)), NOW, want, limits, NOW + 300) == (after, found)
        assert isinstance(found, Slot)
        state = unpack(pack(after))
        assert settle(state, found, want, 7) == settle(after, found, want, 7)
        assert give_back(state, found, want) == give_back(after, found, want)


def test_a_full_document_is_under_four_kilobytes() -> None:
    """2,000 requests and four million tokens a minute, every slot of the window and a minute ahead, ten instances."""
    rng, first = random.Random(1), int(NOW * 2) - WINDOW
    document = pack(
        State(
            slots=Slots({first + i: Want(rng.randint(10, 20), rng.randint(25_000, 40_000)) for i in range(2 * WINDOW)}),
            days={"2026-11-01": (98_765, 1_234_567_890), "2026-11-02": (12_345, 987_654_321)},
            learned=dict.fromkeys(("rpm", "tpm", "rpd", "tpd"), (4000000, NOW + 0.123456)),
            tier="paid-tier-3",
            cooldown=Cooldown(NOW + 0.123456, "unknown-429", 12),
            probe_until=NOW + 0.123456,
            sliding_until=NOW + 0.123456,
            spent_at=NOW + 0.123456,
            utc_probe_at=NOW + 0.123456,
            granted=first,
        )
    )
    signed = document | {"writers": {f"{i:08x}": [100_000, NOW + 0.123456] for i in range(10)}, "expires": int(NOW)}
    assert len(json.dumps(signed)) < 4096


@pytest.mark.parametrize("schema", [None, SCHEMA + 1, "1"])
def test_an_unknown_schema_is_an_error_that_says_what_to_do(schema: object) -> None:
    with pytest.raises(SchemaError, match="upgrade Pollux"):
        unpack({"schema": schema, "slots": "", "days": {}})
