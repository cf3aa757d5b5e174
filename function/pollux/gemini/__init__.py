"""PURE. What the Gemini API says: calls, bodies, names, errors, verdicts, streams, tokens, the catalog of models."""
