"""PURE. What can be read from an error that is not JSON: a page, prose, or JSON that was cut."""

import re
from collections.abc import Container
from typing import Any


def is_html(text: str) -> bool:
    return bool(re.match(r"\s*<(?:!doctype|html|head|body|p|title)\b", text, re.I))


def without_tags(text: str) -> str:
    text = re.sub(r"<(style|script)\b[^<>]*>.*?</\1>", " ", text[:8192], flags=re.I | re.S)
    return " ".join(re.sub(r"<[^<>]*>", " ", text).split())


def scraped(text: str, names: Container[str]) -> dict[str, Any]:
    """An error's fields from JSON that was cut, from Python's repr of it, or from prose. `names`: known statuses."""
    text = text[:65536]
    flat = re.sub(r"\\{1,16}(?=[\"'])", "", text)

    def all_of(pattern: str) -> list[str]:
        return re.findall(pattern, flat, re.I)[:50]

    message = re.search(r"""["']message\\?["']\s*:\s*\\?(["'])((?:(?!\\?\1\s*[,}])(?:\\.|[^\\]))*)""", text, re.S)
    said = re.sub(r"\\{1,16}n", "\n", message[2]) if message else text
    if message and message.end() == len(text):
        said = re.sub(r"\S+\Z", "", said)  # cut within it: "limit: 2" may have been 250000
    ids, values = all_of(r"quota_?id\W{1,8}([\w-]+)"), all_of(r"quota_?value\W{1,8}(\d{1,18})(?=\W)")
    metrics, models = all_of(r"quota_?metric\W{1,8}([\w./-]+)"), all_of(r"[\"']model[\"']\W{1,4}([\w.-]+)(?=[\"'])")
    limits = [*values] if len(values) == max(len(ids), len(metrics)) else []
    violations = [
        {
            "scraped": True,
            "quotaId": ids[n] if n < len(ids) else "",
            "quotaMetric": metrics[n] if n < len(metrics) else "",
            "quotaValue": limits[n] if n < len(limits) else None,
            "quotaDimensions": {"model": models[0]} if models else {},
        }
        for n in range(max(len(ids), len(metrics)))
    ]
    reasons = all_of(r"[\"']reason[\"']\s*:\s*[\"'](\w+)") + re.findall(r"\bAPI_KEY_[A-Z_]+", text)[:5]
    delays = all_of(r"retry_?delay\W{1,8}([\d.]+m?s)\b")
    fields: dict[str, Any] = {
        "message": said,
        "details": [
            {"violations": violations},
            *({"reason": r} for r in reasons),
            *({"retryDelay": d} for d in delays),
        ],
    }
    if codes := all_of(r"[\"']code[\"']\s*:\s*[\"']?(\d{3})\b"):
        fields["code"] = codes[0]
    known = [name for name in re.findall(r"\b[A-Z]{4,}(?:_[A-Z]+)*\b", text)[:200] if name in names]
    if known:
        fields["status"] = known[0]
    return fields
