"""Which of the tools that Google counts separately a request asks for, and which a quota's name means."""

from typing import Any

import pytest

from pollux.gemini.tools import GROUNDING, MAPS, NAME_MOST, NAMES_MOST, SEARCH, URLS, named_in, used_by


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([{"googleSearch": {}}], {SEARCH}),
        ([{"google_search": {"timeRangeFilter": {}}}], {SEARCH}),
        ([{"googleSearchRetrieval": {}}], {SEARCH}),
        ([{"google_search_retrieval": {}}], {SEARCH}),
        ([{"enterpriseWebSearch": {}}], {SEARCH}),
        ([{"googleMaps": {"enableWidget": True}}], {MAPS}),
        ([{"google_maps": {}}], {MAPS}),
        ([{"urlContext": {}}, {"google_search": {}}], {URLS, SEARCH}),
        ([{"url_context": {}, "googleSearch": {}}], {URLS, SEARCH}),
        ([{"type": "google_search"}, {"type": "url_context"}], {SEARCH, URLS}),  # an interaction
        ([{"type": "web_search"}], {SEARCH}),  # OpenAI's way
        ([{"type": "web_search_preview", "search_context_size": "low"}], {SEARCH}),
        ({"googleSearch": {}}, {SEARCH}),
        ([{"googleSearch": None}], set()),
        ([{"functionDeclarations": [{"name": "google_search"}]}], set()),
        ([{"type": "function", "function": {"name": "web_search"}}], set()),
        ([{"codeExecution": {}}, {"fileSearch": {"fileSearchStoreNames": []}}, {"computerUse": {}}], set()),
        ([{"type": "file_search"}, {"type": 5}, {"type": ["google_search"]}], set()),
        ([{"x" * NAME_MOST + "google_search": {}}], set()),
        (["googleSearch", None, 5, []], set()),
        ("googleSearch", set()),
        (None, set()),
        ([], set()),
    ],
)
def test_a_request_asks_for_tools_in_any_spelling(tools: Any, expected: set[str]) -> None:
    assert used_by({"contents": [], "tools": tools}) == expected


def test_tools_are_found_where_openais_sdk_puts_what_it_does_not_know() -> None:
    assert used_by({"extra_body": {"google": {"tools": [{"google_search": {}}]}}}) == {SEARCH}
    odd: Any
    for odd in ({"extra_body": 5}, {"extra_body": {"google": []}}, {}):
        assert used_by(odd) == frozenset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GroundingWithGoogleSearchRequestsPerDayPerProject-FreeTier", SEARCH),
        ("x.googleapis.com/search_grounding_requests", SEARCH),
        ("generate_content_google_search_queries", SEARCH),
        ("Quota exceeded for search requests", SEARCH),
        ("GoogleMapsGroundingPerDay", MAPS),
        ("maps_grounding_requests", MAPS),
        ("url_context_requests_per_minute", URLS),
        ("UrlContextRequestsPerDay", URLS),
        ("grounded_generate_content_requests", GROUNDING),
        ("GroundingRequestsPerDay", GROUNDING),
        ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", None),
        ("FileSearchRequestsPerMinute", None),
        ("file_search_requests", None),
        ("file search queries", None),
        ("see https://ai.google.dev/gemini-api/docs/google-search or https://support.google.com/websearch/1", None),
        ("Resource has been exhausted (e.g. check quota).", None),
        ("", None),
    ],
)
def test_the_name_of_a_quota_speaks_of_a_tool(text: str, expected: str | None) -> None:
    assert named_in(text) == expected


def test_of_a_request_with_endless_tools_only_so_many_are_looked_at() -> None:
    many: list[dict[str, Any]] = [{f"x{n}": {}} for n in range(NAMES_MOST - 1)]
    assert used_by({"tools": [*many, {"googleSearch": {}}, {"urlContext": {}}]}) == {SEARCH}
