"""A simulated Gemini API that enforces quotas and fails on demand, for the demo, the tests and the benches.

`Simulator` is the ASGI app, `running` serves it in a thread, `serve` in this loop; `python -m gemini_simulator` is its
command line. docs/simulator.md says what it answers. It imports nothing of the gateway and is not deployed with it.
"""

from gemini_simulator.api import Simulator
from gemini_simulator.command_line import add_arguments, run
from gemini_simulator.faults import Fault, FaultError
from gemini_simulator.models import MODELS
from gemini_simulator.quota import Enforcer, Refusal, Use
from gemini_simulator.service import Owning
from gemini_simulator.serving import DEFAULTS, demo_keys, running, serve

__all__ = [
    "DEFAULTS",
    "MODELS",
    "Enforcer",
    "Fault",
    "FaultError",
    "Owning",
    "Refusal",
    "Simulator",
    "Use",
    "add_arguments",
    "demo_keys",
    "run",
    "running",
    "serve",
]
