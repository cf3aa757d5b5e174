"""PURE. What an upstream answer means: `rules.judge` finds the cause, `causes` says what follows from it."""
