"""Pollux: a gateway that spreads Gemini API calls over a pool of projects, within each one's quota."""

__version__ = "0.1.0"
