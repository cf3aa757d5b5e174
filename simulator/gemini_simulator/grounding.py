"""What Google's own tools add to an answer: sources from search and maps, pages that were read. PURE."""

import re
from collections.abc import Mapping
from typing import Any

from gemini_simulator.references import field as read

_URL = re.compile(r"https?://[^\s\"'<>)\]]+")
PAGE_TOKENS = 100
"""What a page that was read counts."""


def pages(served: Mapping[str, Any], asked: str) -> list[str]:
    """The addresses in the last text, for urlContext."""
    if "urlContext" not in served:
        return []
    return list(dict.fromkeys(url.rstrip(".,;:!?") for url in _URL.findall(asked)))[:20]


def url_metadata(urls: list[str]) -> dict[str, Any]:
    status = "URL_RETRIEVAL_STATUS_SUCCESS"
    return {"urlMetadata": [{"retrievedUrl": url, "urlRetrievalStatus": status} for url in urls]}


def grounding(served: Mapping[str, Any], asked: str, said: str, urls: list[str]) -> dict[str, Any] | None:
    """The metadata that cite what was said. None: no tool that has any was asked for."""
    searched = "googleSearch" in served or "googleSearchRetrieval" in served
    chunks: list[dict[str, Any]] = []
    if searched:
        chunks.append({"web": {"uri": "https://example.com/simulated-source", "title": "example.com"}})
    if "googleMaps" in served:
        place = {
            "uri": "https://maps.google.com/?cid=1",
            "title": "A simulated place",
            "placeId": "places/simulated",
            "text": "A place that the simulator made up.",
        }
        chunks.append({"maps": place})
    chunks += [{"web": {"uri": url, "title": url.split("/")[2]}} for url in urls]
    if not chunks:
        return None
    segment = {"endIndex": len(said.encode("utf-8", "replace")), "text": said}
    found: dict[str, Any] = {
        "groundingChunks": chunks,
        "groundingSupports": [{"segment": segment, "groundingChunkIndices": list(range(len(chunks)))}],
    }
    if searched:
        found["webSearchQueries"] = [asked[:80]]
        found["searchEntryPoint"] = {"renderedContent": "<div>Simulated search suggestions</div>"}
    if read(served.get("googleMaps"), "enableWidget") is True:
        found["googleMapsWidgetContextToken"] = "widgetcontent/simulated"
    return found
