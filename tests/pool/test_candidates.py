"""A request looks at a few projects of a large pool, and finds one as good as if it had looked at all."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from pollux.backends.keys.contract import Key
from pollux.pool import health, quota
from pollux.pool.health import Health
from pollux.pool.strategy import STRATEGIES
from pollux.pool.windows import Want
from pollux.settings import Settings, SettingsError
from tests.pools import MODEL, Choice, Full, House, Keys, Reservation, Tried, house, keys_of, play

MANY = 40


def looks(h: House) -> Counter[str]:
    """How often each project is looked at from now on."""
    counts: Counter[str] = Counter()
    look = h.pool.booking.look

    def counted(owned, *rest):  # type: ignore[no-untyped-def]
        counts[owned.project] += 1
        return look(owned, *rest)

    h.pool.booking.look = counted  # type: ignore[method-assign]
    return counts


def test_the_strategies_are_the_words_of_the_setting() -> None:
    with pytest.raises(SettingsError, match=f"expected one of {', '.join(STRATEGIES)}$"):
        Settings.from_env({"POLLUX_STRATEGY": "none of them"})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("limits", [{}, {"rpm": 5}, {"rpm": 1000, "tpm": 10**6}])
def test_a_request_looks_at_a_few_projects_however_many_there_are(strategy: str, limits: dict[str, int]) -> None:
    async def scene() -> None:
        h = await house(keys_of(300, **limits), strategy=strategy)
        await h.send()
        counts = looks(h)
        for _ in range(100):
            await h.send(tokens=100)
            await asyncio.sleep(0.05)
        assert sum(counts.values()) <= 100 * 12

    play(scene())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_all_are_full_a_request_looks_at_a_few_too(strategy: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(100, rpm=1), strategy=strategy)
        first = [await h.send() for _ in range(100)]
        assert h.clock == 0
        assert len({found.quota.project for found in first}) == 100
        counts = looks(h)
        for _ in range(20):
            assert isinstance(await h.reserve(wait=5), Full)
        assert sum(counts.values()) <= 20 * 12
        counts.clear()
        await asyncio.sleep(60)
        waited = await asyncio.gather(*(h.send(wait=10) for _ in range(100)))
        assert len({found.quota.project for found in waited}) == 100

    play(scene())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("limits", [{}, {"rpm": 10}])
def test_a_large_pool_is_spread_evenly(strategy: str, limits: dict[str, int]) -> None:
    async def scene() -> None:
        h = await house(keys_of(MANY, **limits), strategy=strategy)
        counts: Counter[str] = Counter()
        for _ in range(4 * MANY):
            counts[(await h.send()).quota.project] += 1
        assert set(counts.values()) == {4}

    play(scene())


@pytest.mark.parametrize("strategy", [name for name, strategy in STRATEGIES.items() if strategy.in_turn])
def test_in_a_large_pool_the_project_that_was_used_longest_ago_comes_next(strategy: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(MANY, rpm=50), strategy=strategy)
        found = [(await h.send()).quota.project for _ in range(2 * MANY)]
        assert found == [f"p{n}" for n in range(MANY)] * 2
        assert (await h.send(prefer_key="k20")).key.id == "k20"
        assert [(await h.send()).key.id for _ in range(MANY)] == [f"k{n}" for n in (*range(20), *range(21, MANY), 20)]

    play(scene())


@pytest.mark.parametrize("seed", range(60))
def test_looking_at_a_few_candidates_finds_as_good_a_project_as_looking_at_all(seed: int) -> None:
    rng = random.Random(seed)
    limits = rng.choice([{}, {"rpm": 4}, {"rpm": 6, "tpm": 900}, {"rpm": 100}, {"rpd": 9}])

    async def scene() -> None:
        keys = keys_of(MANY, **limits)
        if rng.random() < 0.5:  # some differ
            more = [Key(f"x{n}", f"x{n}", limits={"*": {"rpm": rng.randrange(1, 9)}}) for n in range(10)]
            keys = Keys(*keys.now, *more)
        h = await house(keys, strategy=rng.choice(list(STRATEGIES)))
        h.pool.candidates.look_at = 4
        for _ in range(150):
            await _something_happens(h, rng)
            ask = h.ask(rng.choice([0, 5, 30, 65]), tokens=rng.choice([0, 0, 10, 300]))
            found = await h.pool._choose(MODEL, ask, Tried(), 0.0, {})
            h.pool.candidates.look_at, few = 1000, h.pool.candidates.look_at
            best = await h.pool._choose(MODEL, ask, Tried(), 0.0, {})
            h.pool.candidates.look_at = few
            assert isinstance(found, Full) == isinstance(best, Full)
            if isinstance(found, Choice) and isinstance(best, Choice) and best.slot.start <= h.pool.now():
                assert found.slot.start <= h.pool.now(), "there is room at once"
            if isinstance(found, Full) and isinstance(best, Full):
                assert set(found.refusals) == set(best.refusals)
            await h.reserve(rng.choice([0, 5, 30]), tokens=rng.choice([0, 10, 300]))

    play(scene())


async def _something_happens(h: House, rng: random.Random) -> None:
    project = rng.choice(list(h.projects.by_name) or ["p0"])
    match rng.randrange(14):
        case 0:
            await asyncio.sleep(rng.choice([0.3, 2, 20, 70]))
        case 1:
            seconds = rng.choice([5, 40, 4000])
            await h.quota(project).apply(lambda state, now: (quota.cool(state, now, "rpm", seconds), None))
        case 2:
            limit = rng.randrange(1, 5)
            await h.quota(project).apply(lambda state, now: (quota.learn(state, now, {"rpm": limit}, None), None))
        case 3:
            kind, name = rng.choice(
                [("keys", f"k{project[1:]}"), ("projects", project), ("models", f"{project}/{MODEL}")]
            )
            h.projects.health.add_to_next_commit(
                lambda value, now: health.set_aside(value, now, kind, name, "spend", 30.0)  # type: ignore[arg-type]
            )
        case 4:
            entry = next(iter(h.projects.health.value.projects), "")
            h.projects.health.add_to_next_commit(lambda value, _: health.clear(value, "projects", entry))
        case 5:
            keys = list(h.keys.now)
            at = rng.randrange(len(keys))
            keys[at] = replace(keys[at], enabled=not keys[at].enabled)
            h.keys.now = tuple(keys)
        case 6:
            found = await h.reserve(30)
            if not isinstance(found, Full):
                found.let_go()


def test_a_large_want_is_not_looked_for_again_where_it_found_nothing_in_time() -> None:
    async def scene() -> None:
        h = await house(keys_of(MANY, rpm=50, tpm=1000))
        for _ in range(MANY):
            await h.send(tokens=900)
        assert isinstance(await h.reserve(wait=5, tokens=200), Full)
        counts = looks(h)
        for _ in range(10):
            assert isinstance(await h.reserve(wait=5, tokens=200), Full)
        assert sum(counts.values()) <= 10 * 12
        assert (await h.send(wait=5, tokens=50)).want == Want(1, 50)  # a smaller one fits

    play(scene())


def test_an_invented_model_pushes_out_no_order_that_is_used() -> None:
    async def scene() -> None:
        h = await house(keys_of(MANY, rpm=50))
        await h.send()
        for n in range(100):
            await h.reserve(model=f"invented-{n}")
            await h.send()
        counts = looks(h)
        await h.send()
        assert sum(counts.values()) <= 12

    play(scene())


def test_invented_models_fill_no_memory_in_a_large_pool() -> None:
    async def scene() -> None:
        h = await house(keys_of(300))
        for n in range(30):
            await h.reserve(model=f"invented-{n:03}")  # all of these are counted together
        assert len(h.projects.quotas) <= 3000
        assert len(h.projects._declared) <= 3000

    play(scene())


def test_three_models_of_a_thousand_projects_are_remembered() -> None:
    async def scene() -> None:
        h = await house(keys_of(1000, rpm=50))
        await h.projects.ready()
        quotas = [h.projects.quota(f"p{n}", model) for model in ("a", "b", "c") for n in range(1000)]
        assert all(h.projects.quota(owned.project, owned.bucket) is owned for owned in quotas)

    play(scene())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_project_that_is_removed_while_its_counters_are_read_is_not_chosen(strategy: str) -> None:
    async def scene() -> None:
        h = await house(keys_of(3), delay=lambda: 0.5, strategy=strategy)
        await h.projects.ready()
        asked = asyncio.ensure_future(h.reserve())
        await asyncio.sleep(0.7)
        h.keys.now = h.keys.now[2:]
        await h.projects.ready()
        found = await asked
        assert isinstance(found, Reservation)
        assert found.key.id == "k2"

    play(scene())


def test_limits_that_were_learned_before_a_pool_changed_are_looked_through_once() -> None:
    async def scene() -> None:
        h = await house(keys_of(200))
        await h.projects.ready()
        for n in range(200):
            h.quota(f"p{n}").add_to_next_commit(lambda state, now: quota.learn(state, now, {"rpm": 10}, None))
        await h.send()
        h.keys.now = tuple(replace(key) for key in h.keys.now)
        await h.send()
        counts = looks(h)
        for _ in range(20):
            await h.send()
        assert sum(counts.values()) <= 20 * 12

    play(scene())


@pytest.mark.parametrize("kind", ["projects", "keys", "models"])
def test_what_is_set_aside_once_more_is_not_looked_at_by_each_request(kind: health.Kind) -> None:
    async def scene() -> None:
        h = await house(keys_of(200, rpm=1000))
        await h.send()
        names = {"projects": "p{}", "keys": "k{}", "models": "p{}/" + MODEL}

        def aside(value: Health, now: float, name: str) -> Health:
            return health.set_aside(value, now, kind, name, "spend", 100.0)

        def set_aside() -> None:
            for n in range(200):
                h.projects.health.add_to_next_commit(partial(aside, name=names[kind].format(n)))

        set_aside()
        assert isinstance(await h.reserve(wait=1), Full)
        await asyncio.sleep(101)
        await h.send()
        set_aside()
        assert isinstance(await h.reserve(wait=1), Full)
        counts: Counter[str] = Counter()
        usable = h.projects.usable_key

        def counted(project, *rest, **more):  # type: ignore[no-untyped-def]
            counts[project.name] += 1
            return usable(project, *rest, **more)

        h.projects.usable_key = counted  # type: ignore[method-assign]
        for _ in range(10):
            assert isinstance(await h.reserve(wait=1), Full)
        assert sum(counts.values()) <= 10 * 12

    play(scene())
