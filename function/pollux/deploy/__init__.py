"""What `pollux deploy check` finds: one line for each thing that it tries. How it is tried is in the modules below."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pollux.redaction import without

Verdict = Literal["ok", "warn", "FAIL", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    verdict: Verdict
    detail: str
    hint: str = ""
    """What to do; "" if all is well."""
    took: float | None = None
    """Seconds; None: nothing was asked."""
    figures: dict[str, float] = field(default_factory=dict)

    def safe(self, secrets: tuple[str, ...]) -> "Finding":
        """Without the tokens, which an answer may have echoed."""
        return replace(self, detail=without(self.detail, secrets), hint=without(self.hint, secrets))

    def as_json(self) -> dict[str, Any]:
        took = None if self.took is None else round(self.took * 1000, 1)
        return {
            "name": self.name,
            "verdict": self.verdict,
            "detail": self.detail,
            "hint": self.hint,
            "ms": took,
            **self.figures,
        }
