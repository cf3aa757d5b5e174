"""Benchmarks: each prints a table and compares its figures with what is asked of them. They talk to 127.0.0.1 only."""
