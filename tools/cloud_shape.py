"""`make emulator`: the whole cloud shape on a laptop. State in the Firestore emulator, keys from the local file,
answers from a simulated Gemini; `--port` and `--host` as for `pollux serve`."""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pollux.app import open_keyring
from pollux.cli import load_settings
from pollux.keys import KeySourceError, Secret
from pollux.keys.keyfile import KeyFile
from pollux.serving import DEMO_KEYS, serve
from pollux.settings import Settings, SettingsError
from pollux.simulator import DEFAULTS, Simulator, demo_keys, running
from tools.emulator import VARIABLE, EmulatorError, available

STORE = "firestore://demo-pollux"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make emulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3145)
    arguments = parser.parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            settings = _settings(stack)
            return serve(settings, arguments.host, arguments.port, demo=False)
    except (EmulatorError, SettingsError, KeySourceError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


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


def _say(text: str) -> None:
    print(f"* {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
