"""Keys that change while a gateway runs."""

import json
from pathlib import Path

from gemini_simulator import Fault
from tests.e2e.processes import Gateway, environment, eventually, gateway, key_value, pollux, simulated, write_keys


def ids(started: Gateway) -> list[str]:
    return [key["id"] for key in started.status()["keys"]]


def test_keys_come_and_go(tmp_path: Path) -> None:
    with simulated() as (simulator, url), gateway(tmp_path, url, keys=[1]) as started:
        simulator.faults.append(Fault(kind="invalid-key", key="key-1"))
        assert (answer := started.generate()).status == 503
        assert answer.reason == "NO_USABLE_KEY"
        write_keys(tmp_path, [1, 2])
        assert eventually(3, lambda: (a := started.generate()).status == 200 and a.headers["x-pollux-key"] == "key-2")
        assert {key["id"]: key["state"] for key in started.status()["keys"]} == {"key-1": "aside", "key-2": "healthy"}
        write_keys(tmp_path, [])
        assert eventually(3, lambda: (a := started.generate()).status == 503 and a.reason == "NO_USABLE_KEY")
        assert ids(started) == []
        write_keys(tmp_path, [3])
        assert eventually(3, lambda: started.generate().status == 200)
        assert ids(started) == ["key-3"]


def test_a_key_that_was_mended_is_used_at_once(tmp_path: Path) -> None:
    with simulated(2) as (simulator, url), gateway(tmp_path, url, keys=[1]) as started:
        simulator.faults.append(Fault(kind="invalid-key", key="key-1"))
        assert started.generate().status == 503
        path = tmp_path / "keys.json"
        path.write_text(path.read_text().replace(key_value(1), key_value(2)))
        assert eventually(3, lambda: started.generate().status == 200)
        assert simulator.calls[-1].key == "key-2"  # by its value; to the gateway it is key-1 with another value


def test_a_file_that_breaks_costs_no_key(tmp_path: Path) -> None:
    with simulated() as (_, url), gateway(tmp_path, url, keys=[1, 2]) as started:
        (tmp_path / "keys.json").write_text('{"providers": {')
        problems = eventually(3, lambda: started.status()["pool"]["problems"])
        assert "keys.json" in problems[0]
        assert ids(started) == ["key-1", "key-2"]
        assert started.generate().status == 200


def test_one_entry_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = write_keys(tmp_path, [1, 2])
    document = json.loads(path.read_text())
    document["providers"]["gemini"]["keys"][1]["api_key"] = "your-api-key-here"
    path.write_text(json.dumps(document, indent=1))
    with simulated() as (_, url), gateway(tmp_path, url, keys_file=str(path)) as started:
        assert ids(started) == ["key-1"]
        assert any("placeholder" in problem for problem in started.status()["pool"]["problems"])
        assert "placeholder" in started.said()


def test_the_command_line_changes_a_running_gateway(tmp_path: Path) -> None:
    with simulated() as (_, url), gateway(tmp_path, url, keys=[1, 2]) as started:
        environ = environment(data=str(tmp_path / "data"), keys_file=str(tmp_path / "keys.json"))
        assert pollux(tmp_path, environ, "keys", "disable", "key-1").returncode == 0
        states = {"key-1": "disabled", "key-2": "unchecked"}
        assert eventually(3, lambda: {key["id"]: key["state"] for key in started.status()["keys"]} == states)
        assert {started.generate(text=str(n)).headers["x-pollux-key"] for n in range(4)} == {"key-2"}
        for key in ("key-1", "key-2"):
            removed = pollux(tmp_path, environ, "keys", "remove", key, "--yes")
            assert removed.returncode == 0, removed.stderr
        assert eventually(3, lambda: started.generate().status == 503)
