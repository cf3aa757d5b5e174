"""`python -m gemini_simulator`."""

import argparse
import sys

from gemini_simulator.command_line import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="gemini_simulator", description="Run a simulated Gemini API.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
