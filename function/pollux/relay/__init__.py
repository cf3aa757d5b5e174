"""Carries one request: sends it, judges the answer, tries again, passes the answer on. Knows no resources."""
