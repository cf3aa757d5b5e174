"""`make emulator`: the cloud shape on a laptop. State in the Firestore emulator, keys from the local file, answers from
a simulated Gemini, and one gateway (`pollux serve`) or, with --instances, several that share all of it."""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gemini_simulator import DEFAULTS, Simulator, demo_keys, running
from pollux.backends.keys.contract import KeySourceError, Secret
from pollux.backends.keys.keys_json import KeyFile
from pollux.cli.main import load_settings
from pollux.server.serve import listen, serve
from pollux.server.wiring import DEMO_KEYS, open_keyring
from pollux.settings import Settings, SettingsError
from tools.emulator import VARIABLE, EmulatorError, available
from tools.instances import InstanceError, run

STORE = "firestore://demo-pollux"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make emulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3145, help="of the first gateway; 0 takes free ones")
    parser.add_argument("--instances", type=int, default=1, metavar="N", help="gateways, on ports one after the other")
    arguments = parser.parse_args(argv)
    if arguments.instances < 1:
        parser.error("--instances: expected a whole number, 1 or more")
    if not 0 <= arguments.port <= 65536 - arguments.instances:
        parser.error("--port: expected one from 0 to 65535, for the last instance too")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            ports = _ports(arguments.host, arguments.port, arguments.instances)
            settings = replace(_settings(stack), max_instances=arguments.instances)
            _hint(settings, arguments.host, ports)
            if len(ports) > 1:
                return run(settings, arguments.host, ports)
            return serve(settings, arguments.host, ports[0], demo=False)
    except (EmulatorError, InstanceError, SettingsError, KeySourceError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


# Below the range that systems hand out for port 0: no other program takes one before the gateways listen.
FREE = range(20_000, 32_000)


def _ports(host: str, first: int, count: int) -> list[int]:
    """Free ones. Asked before Java starts, which takes seconds."""
    with contextlib.ExitStack() as stack:
        if first:
            return [_taken(stack, host, port) for port in range(first, first + count)]
        ports: list[int] = []
        for port in random.sample(FREE, 100 + count):
            if len(ports) < count:
                with contextlib.suppress(SettingsError):
                    ports.append(_taken(stack, host, port))
        return ports or [_taken(stack, host, 0)]


def _taken(stack: contextlib.ExitStack, host: str, port: int) -> int:
    return int(stack.enter_context(listen(host, port)).getsockname()[1])


def _settings(stack: contextlib.ExitStack) -> Settings:
    """Those of `pollux serve`, with the emulator as the store and the simulator as the upstream."""
    settings = replace(load_settings(), secrets="")
    keys = asyncio.run(_keys(settings))
    if not keys:
        keys = demo_keys(DEMO_KEYS)
        settings = replace(settings, keys_file=_written(keys, Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        _say("NO KEY IS CONFIGURED: these are demo keys, which only the simulator knows.")
    _say("SIMULATED GEMINI: answers are made up; no key leaves this machine.")
    host = stack.enter_context(available())
    os.environ[VARIABLE] = host
    store = settings.store if settings.store.startswith("firestore://") else STORE
    _say(f"State is in {store}, in the Firestore emulator at {host}: gone when it ends.")
    url = stack.enter_context(running(Simulator(keys, DEFAULTS, keep=0)))
    return replace(settings, store=store, upstream=url)


async def _keys(settings: Settings) -> list[tuple[str, str, str]]:
    keyring = open_keyring(settings)
    return [(key.id, key.project, (await keyring.value(key.id)).reveal()) for key in await keyring.keys()]


def _written(keys: Sequence[tuple[str, str, str]], folder: Path) -> str:
    file = KeyFile(folder / "keys.json")
    for key_id, project, value in keys:
        file.add(key_id, Secret(value), project=project, limits={"*": DEFAULTS})
    return str(file.path)


def _hint(settings: Settings, host: str, ports: Sequence[int]) -> None:
    token = "one of POLLUX_TOKEN" if settings.token else f'"client" in {Path(settings.data) / "tokens.json"}'
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{ports[-1]}"  # noqa: S104
    if len(ports) == 1:
        _say('One instance; `make emulator ARGS="--instances 2"` runs two on one store.')
    else:
        _say(
            f"{len(ports)} instances (`pollux serve`) on one store, with the same tokens and "
            f"POLLUX_MAX_INSTANCES={len(ports)}."
        )
    _say("Try, in another terminal:")
    print(f"  export TOKEN=…   # {token}", file=sys.stderr)
    print(
        f'  curl {url}/v1beta/models/gemini-3.8-flash:generateContent -H "x-goog-api-key: $TOKEN" '
        '-H \'content-type: application/json\' -d \'{"contents":[{"parts":[{"text":"Hello"}]}]}\'',
        file=sys.stderr,
    )
    command = Path(sys.executable).parent / "pollux"
    shown = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    print(f"  {shown} status --url {url}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(f"* {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
