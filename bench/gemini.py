"""The simulated Gemini of `pollux simulate`, but it remembers every call: python -m bench.gemini PORT KEYS LIMITS"""

import asyncio
import json
import sys

import uvloop

from gemini_simulator import Simulator, demo_keys, serve

KEPT = 200_000


def main() -> None:
    port, keys, limits = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    simulated = Simulator(demo_keys(keys), limits, "sliding", keep=KEPT, keep_bodies=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # asyncio's own delays small answers by 40 ms
        runner.run(serve(simulated, port=port))


if __name__ == "__main__":
    main()
