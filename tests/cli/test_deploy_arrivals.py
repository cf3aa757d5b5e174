"""`pollux deploy check`: which arrival times show that something buffers a stream."""

from hypothesis import given
from hypothesis import strategies as st

from pollux.cli.deploy_check import FEWEST, TOGETHER, event_times, judge


def verdict(*times: float, total: float = 0.0, length_known: bool = False) -> str:
    return judge(times, total or times[-1], length_known=length_known).verdict


def test_events_that_come_apart_pass_one_by_one() -> None:
    assert verdict(0.4, 0.6, 0.8, 1.0) == "ok"
    assert verdict(0.05, 0.08, 0.11, 0.14) == "ok", "a quick model's too"


def test_events_that_come_together_late_were_held_back() -> None:
    assert verdict(2.0, 2.0, 2.0) == "FAIL"
    assert verdict(2.0, 2.004, 2.015, 2.019, total=2.02) == "FAIL", "a burst takes a moment too"


def test_how_long_a_model_thinks_before_it_begins_says_nothing() -> None:
    assert verdict(30.0, 30.1, 30.2, 30.3) == "ok"


def test_an_answer_that_was_there_at_once_shows_nothing() -> None:
    assert verdict(0.004, 0.004, 0.005, 0.005) == "skipped"
    assert verdict(3.0, 6.0) == "skipped", "two events are too few"
    assert judge([], 1.0, length_known=False).verdict == "skipped"


def test_events_in_a_few_bursts_are_worth_a_look() -> None:
    assert verdict(*([1.0] * 5), *([2.0] * 5)) == "warn"
    assert verdict(0.5, 0.5, 1.0, 1.5, 2.0) == "ok", "two of them in one packet are no bursts"


def test_a_stream_with_its_length_was_collected_whatever_its_pace() -> None:
    assert verdict(0.4, 0.6, 0.8, 1.0, length_known=True) == "FAIL"


@given(st.lists(st.floats(0, TOGETHER * 0.99), min_size=FEWEST - 1, max_size=50), st.floats(0.5, 60))
def test_nothing_but_pauses_of_a_moment_is_never_taken_for_a_stream(pauses: list[float], began: float) -> None:
    times = [began]
    for pause in pauses:
        times.append(times[-1] + min(pause, TOGETHER * 0.99 - 1e-9))
    assert verdict(*times) == "FAIL"


@given(st.data())
def test_an_event_arrives_with_its_last_byte_wherever_reads_cut_it(data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n\n", "\r\n\r\n"]))
    text = "".join(f"data: {{{n}}}{end}" for n in range(5)).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    times = event_times([(float(n), piece) for n, piece in enumerate(pieces)])
    ends = [len("".join(f"data: {{{n}}}{end}" for n in range(k + 1)).encode()) for k in range(5)]
    cumulated = [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
    for at, due in zip(times, ends, strict=True):
        # At the latest with its last byte; with "\r\n\r\n" the last line feed decides.
        assert cumulated[int(at)] >= due
        assert at == 0 or cumulated[int(at) - 1] < due
