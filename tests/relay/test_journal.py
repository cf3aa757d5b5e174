"""What the journal keeps of a request, for how long, and what it counts."""

import json

from pollux.pool.store_health import StoreUse
from pollux.relay.journal import KEPT, Attempt, Journal, Record

COMPLETE = Record(
    id="0123456789abcdef",
    at=1_790_000_000.12345,
    client="alice",
    what="generateContent",
    asked="research",
    wanted="model-a",
    used="model-b",
    key="k2",
    project="p2",
    attempts=[Attempt("model-a", "p1", "k1", "rpm", 429, "used up"), Attempt("model-b", "p2", "k2", "ok", 200)],
    sent=2,
    waited=1.2346,
    store=StoreUse(commits=2, conflicts=1, seconds=0.0125),
    first_byte=0.0123456,
    estimated=100,
    tokens=97,
    status=200,
    ended="truncated",
    total=2.5,
)


def test_a_record_tells_where_a_request_went_and_why() -> None:
    assert COMPLETE.as_json() == {
        "id": "0123456789abcdef",
        "at": 1_790_000_000.123,
        "client": "alice",
        "call": "generateContent",
        "model": "research",
        "model_used": "model-b",
        "fallback_from": "research",
        "key": "k2",
        "project": "p2",
        "attempts": [
            {"model": "model-a", "project": "p1", "key": "k1", "cause": "rpm", "status": "429", "detail": "used up"},
            {"model": "model-b", "project": "p2", "key": "k2", "cause": "ok", "status": "200"},
        ],
        "waited_ms": 1235,
        "store_ms": 12.5,
        "commits": 2,
        "conflicts": 1,
        "first_byte_ms": 12.3,
        "total_ms": 2500.0,
        "tokens_estimated": 100,
        "tokens": 97,
        "status": 200,
        "reason": "",
        "ended": "truncated",
    }


def test_only_another_model_than_the_one_that_was_meant_is_a_fallback() -> None:
    assert Record(asked="research", wanted="model-a", used="model-a").fallback_from == "", "an alias is none"
    assert Record(asked="model-a", wanted="model-a", used="").fallback_from == ""
    assert Record(asked="model-a", used="model-b").fallback_from == ""
    assert Record(asked="model-a", wanted="model-a", used="model-b").fallback_from == "model-a"


def test_of_many_attempts_the_first_and_the_last_are_kept_and_all_are_counted() -> None:
    record = Record(status=200)
    for number in range(1000):
        cause = "ok" if number == 999 else "network" if number == 500 else "rpm"
        record.note(Attempt("m", f"p{number}", f"k{number}", cause, 429))
    shown = record.as_json()
    assert [attempt["key"] for attempt in shown["attempts"]] == [f"k{n}" for n in (*range(10), *range(990, 1000))]
    assert shown["attempts_left_out"] == {"rpm": 979, "network": 1}
    journal = Journal()
    journal.close(record)
    assert journal.totals()["causes"] == {"rpm": 998, "network": 1, "ok": 1}


def test_what_is_not_known_is_null_or_absent() -> None:
    shown = Record(attempts=[Attempt("m", "", "", "full", None)]).as_json()
    assert (shown["first_byte_ms"], shown["tokens"]) == (None, None)
    assert shown["attempts"] == [{"model": "m", "project": "", "key": "", "cause": "full"}]
    json.dumps(shown)


def test_ids_are_random_and_of_one_form() -> None:
    ids = {Record().id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in ids)


def test_totals_count_requests_statuses_causes_and_bad_endings() -> None:
    journal = Journal()
    journal.under_way = 3
    journal.close(COMPLETE)
    journal.close(Record(status=503, attempts=[Attempt("m", "p", "k", "rpm", 429)]))
    journal.close(Record(status=200))
    assert journal.totals() == {
        "requests": 3,
        "under_way": 3,
        "statuses": {"200": 2, "503": 1},
        "causes": {"rpm": 2, "ok": 1},
        "endings": {"truncated": 1},
    }


def test_the_last_thousand_are_found_and_memory_does_not_grow() -> None:
    journal = Journal()
    records = [Record() for _ in range(KEPT + 5)]
    for record in records:
        journal.close(record)
    assert [journal.find(record.id) for record in records[:5]] == [None] * 5
    assert all(journal.find(record.id) is record for record in records[5:])
    assert journal.requests == KEPT + 5


def test_strangers_do_not_push_requests_out_of_the_recent_ones() -> None:
    journal = Journal()
    known, stranger = Record(status=200), Record(status=401, reason="NO_TOKEN")
    journal.close(known)
    journal.close(stranger)
    assert journal.find(known.id) is known
    assert journal.find(stranger.id) is None
    assert journal.totals()["statuses"] == {"200": 1, "401": 1}
