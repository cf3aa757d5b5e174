"""Texts, media and counts of real-shaped bodies; no JSON makes the estimate fail or run away."""

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.estimate import CACHED, TURN, Estimate, estimate, text_tokens
from pollux.gemini.media import PAGES, REMOTE, WHOLE

PROSE = (
    "The committee met on Tuesday afternoon to consider whether the proposal, which had been delayed twice since the "
    "spring, could still be funded before the end of the year. Nobody was surprised that it could not."
)


def of(body: Any, *, verb: str | None = "generateContent", generation: int = 3, size: int = 0) -> Estimate:
    return estimate(body, size=size, verb=verb, generation=generation)


def one(part: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [part]}], "generationConfig": config}


def inline(mime: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}, **more}


def media(part: dict[str, Any], *, generation: int = 3, **config: Any) -> int:
    """What the medium alone costs."""
    return of(one(part, **config), generation=generation).tokens - TURN


# Texts


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (PROSE, 3.5, 4.5),
        ("def area(self, r: float) -> float:\n    return PI * r ** 2  # 3.14\n" * 9, 2.0, 3.5),
        (json.dumps([{"id": i, "mail": f"u{i}@example.com", "ok": True} for i in range(50)]), 2.0, 3.0),
        ("1234567890" * 20, 1.0, 2.0),
        (base64.b64encode(bytes(range(256)) * 4).decode(), 1.4, 2.5),
        ("Все счастливые семьи похожи друг на друга. " * 5, 1.8, 3.5),
        ("道可道，非常道。名可名，非常名。" * 9, 1.0, 1.6),
        ("吾輩は猫である。名前はまだ無い。" * 9, 1.0, 1.6),
        ("Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch.", 3.0, 4.2),
        ("😀🎉🚀" * 20, 0.8, 1.3),
    ],
)
def test_characters_per_token_are_plausible(text: str, least: float, most: float) -> None:
    assert least <= len(text) / text_tokens(text) <= most


@given(st.text())
def test_text_never_costs_more_than_its_bytes(text: str) -> None:
    assert 0 <= text_tokens(text) <= len(text.encode("utf-8", "surrogatepass"))
    assert bool(text_tokens(text)) is bool(text)


def test_lone_surrogates_of_bad_clients_are_borne() -> None:
    assert of(json.loads(r'{"contents":[{"parts":[{"text":"\ud83d"}]}]}')).tokens > 0


@given(st.lists(st.tuples(st.sampled_from(["user", "model"]), st.text(max_size=50)), max_size=8))
def test_a_chat_never_costs_more_than_the_bytes_of_its_body(turns: list[tuple[str, str]]) -> None:
    body = {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in turns]}
    assert of(body).tokens <= len(json.dumps(body, ensure_ascii=True))
    openai = {"messages": [{"role": role, "content": text} for role, text in turns]}
    assert of(openai).tokens == of(body).tokens


def test_all_that_the_model_reads_counts() -> None:
    plain = of({"contents": [{"parts": [{"text": PROSE}]}]}).tokens
    tools = [{"functionDeclarations": [{"name": "find", "description": PROSE, "parameters": {"type": "OBJECT"}}]}]
    call = {"functionCall": {"name": "find", "args": {"where": PROSE}}}
    answer = {"functionResponse": {"name": "find", "response": {"found": [PROSE, 12345]}}}
    bodies: list[dict[str, Any]] = [
        {"systemInstruction": {"parts": [{"text": PROSE}]}},
        {"system_instruction": {"parts": [{"text": PROSE}]}},
        {"tools": tools},
        {"contents": [{"parts": [call]}]},
        {"contents": [{"parts": [answer]}]},
        {"generationConfig": {"responseSchema": {"type": "OBJECT", "description": PROSE}}},
        {"generation_config": {"response_json_schema": {"description": PROSE}}},
        {"contents": [{"parts": [{"thoughtSignature": "c2ln" * 50, "text": ""}]}]},
        {"messages": [{"role": "system", "content": PROSE}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": PROSE}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": PROSE}}]}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": PROSE}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"description": PROSE}}}},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": PROSE}]}]},
    ]
    for body in bodies:
        assert 0.8 * plain <= of(body).tokens <= 1.5 * plain, body
        assert of(body) == Estimate(of(body).tokens, 1, 0)


def test_settings_that_the_model_does_not_read_are_free() -> None:
    config = {"temperature": 0.5, "stopSequences": ["one", "two"], "maxOutputTokens": 100_000}
    assert of({"contents": [], "generationConfig": config, "safetySettings": [{"category": PROSE}]}).tokens == 0


def test_names_of_tool_fields_are_not_taken_for_media() -> None:
    arguments = {"uri": "https://example.com/", "file": "main.py", "file_data": "x", "image_url": "y", "data": "z"}
    schema = {"properties": {name: {"type": "STRING"} for name in arguments}}
    body = {"tools": [{"functionDeclarations": [{"name": "f", "parameters": schema}]}], "contents": []}
    assert of(body).tokens < 100
    assert of(one({"functionCall": {"name": "f", "args": arguments}})).tokens < 100


def test_a_cache_is_of_unknown_length() -> None:
    assert of({"contents": [], "cachedContent": "cachedContents/abc"}) == Estimate(CACHED, 1, 0)


# Pictures


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes(40)


def jpeg(width: int, height: int, before: int = 0) -> bytes:
    profile = b""
    while before > 0:
        length = min(before, 60_000)
        profile += b"\xff\xe2" + struct.pack(">H", length + 2) + bytes(length)
        before -= length
    return b"\xff\xd8" + profile + b"\xff\xff\xc0\0\x11\x08" + struct.pack(">HH", height, width) + bytes(20)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(40)


def webp(form: bytes, width: int, height: int) -> bytes:
    head = b"RIFF\0\0\0\0WEBP" + form + bytes(4)
    if form == b"VP8X":
        return head + bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + bytes(40)
    if form == b"VP8L":
        return head + b"\x2f" + (width - 1 | height - 1 << 14).to_bytes(4, "little") + bytes(40)
    return head + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(40)


@pytest.mark.parametrize(
    "picture",
    [
        png,
        jpeg,
        gif,
        lambda w, h: jpeg(w, h, before=30_000),
        lambda w, h: webp(b"VP8X", w, h),
        lambda w, h: webp(b"VP8L", w, h),
        lambda w, h: webp(b"VP8 ", w, h),
    ],
)
def test_gemini_2_prices_pictures_by_tiles(picture: Any) -> None:
    assert media(inline("image/x", picture(384, 384)), generation=2) == 258
    assert media(inline("image/x", picture(385, 100)), generation=2) == 258
    assert media(inline("image/x", picture(1000, 700)), generation=2) == 2 * 258
    assert media(inline("image/x", picture(1537, 769)), generation=2) == 6 * 258


def test_a_header_can_claim_anything() -> None:
    assert media(inline("image/png", png(2**31, 2**31)), generation=2) == 16 * 258


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", b"\xff\xd8\xff\xe0", png(0, 0), b"BM" + bytes(99), jpeg(9, 9, 70_000)]
)
def test_pictures_that_cannot_be_read_have_a_default(data: bytes) -> None:
    assert of(one(inline("image/x", data)), generation=2) == Estimate(TURN + 4 * 258, 1, 0)
    assert media(inline("image/x", data), generation=3) == 1120


@pytest.mark.parametrize(
    ("level", "tokens"), [("LOW", 280), ("MEDIUM", 560), ("HIGH", 1120), ("ULTRA_HIGH", 2240), ("UNSPECIFIED", 1120)]
)
def test_gemini_3_prices_pictures_by_resolution(level: str, tokens: int) -> None:
    name = f"MEDIA_RESOLUTION_{level}"
    part = inline("image/png", png(10, 10))
    assert media(part) == 1120
    assert media(part, mediaResolution=name) == tokens
    assert media({**part, "mediaResolution": {"level": name}}, mediaResolution="MEDIA_RESOLUTION_LOW") == (
        tokens if level != "UNSPECIFIED" else 280
    )
    snake = {"inline_data": {"mime_type": "image/png", "data": ""}, "media_resolution": name}
    assert media(snake | {"inline_data": {"mime_type": "image/png", "data": "AAAA"}}) == tokens


def test_the_url_safe_alphabet_and_line_breaks_are_read() -> None:
    data = png(1000, 700)[:32] + b"\xfb\xff\xfe" * 40
    for text in (base64.urlsafe_b64encode(data).decode(), base64.encodebytes(data).decode()):
        part = {"inlineData": {"mimeType": "image/png", "data": text}}
        assert media(part, generation=2) == 2 * 258


def test_pictures_in_the_openai_form() -> None:
    url = "data:image/png;base64," + base64.b64encode(png(1000, 700)).decode()
    for part in ({"image_url": {"url": url}}, {"image_url": url}, {"type": "file", "file": {"file_data": url}}):
        found = of({"messages": [{"role": "user", "content": [part]}]}, generation=2, verb=None)
        assert found == Estimate(TURN + 2 * 258, 1, 0)
    remote = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "high"}}
    assert of({"messages": [{"role": "user", "content": [remote]}]}) == Estimate(TURN + 1120, 1, 0)


def test_a_tool_can_answer_with_a_picture() -> None:
    answer = {"name": "look", "response": {"ok": True}, "parts": [inline("image/png", png(9, 9))]}
    assert 1120 < of(one({"functionResponse": answer})).tokens < 1160


# Sound, film, documents


def wav(seconds: float, rate: int = 32_000, size: int | None = None) -> bytes:
    body = bytes(int(seconds * rate))
    form = struct.pack("<HHIIHH", 1, 1, rate // 2, rate, 2, 16)
    head = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0fmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", len(body) if size is None else size) + body


def box(name: bytes, body: bytes, wide: bool = False) -> bytes:
    if wide:
        return struct.pack(">I4sQ", 1, name, len(body) + 16) + body
    return struct.pack(">I4s", len(body) + 8, name) + body


def mp4(seconds: int, version: int = 0, wide: bool = False) -> bytes:
    if version:
        header = b"\1\0\0\0" + struct.pack(">QQIQ", 0, 0, 600, seconds * 600)
    else:
        header = b"\0\0\0\0" + struct.pack(">IIII", 0, 0, 600, seconds * 600)
    moov = box(b"moov", box(b"free", bytes(5)) + box(b"mvhd", header + bytes(80)))
    return box(b"ftyp", b"isom0000") + box(b"mdat", bytes(5000), wide) + moov


def test_sound_by_its_header() -> None:
    assert media(inline("audio/wav", wav(10))) == 320
    for unknown in (0, 0xFFFFFFFF):
        assert abs(media(inline("audio/wav", wav(10, size=unknown))) - 320) <= 1
    assert media(inline("audio/mp4", mp4(60))) == 60 * 32
    assert media(inline("audio/L16;codec=pcm;rate=16000", bytes(320_000))) == 320


def test_sound_by_its_size() -> None:
    assert of(one(inline("audio/mp3", bytes(160_000)))) == Estimate(TURN + 320, 1, 0)
    data = base64.b64encode(bytes(160_000)).decode()
    body = {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}]}]}
    assert of(body) == Estimate(TURN + 320, 1, 0)


@pytest.mark.parametrize("film", [mp4(100), mp4(100, version=1), mp4(100, wide=True)])
def test_film_by_its_header(film: bytes) -> None:
    part = inline("video/mp4", film)
    assert media(part, generation=2) == 26_300
    assert media(part, generation=2, mediaResolution="MEDIA_RESOLUTION_LOW") == 9_800
    assert media(part) == 10_200
    assert media(part, mediaResolution="MEDIA_RESOLUTION_HIGH") == 31_200


def test_a_clip_of_a_film() -> None:
    part = inline("video/mp4", mp4(100))
    assert media({**part, "videoMetadata": {"startOffset": "10s", "endOffset": "30.5s"}}) == 2091
    assert media({**part, "video_metadata": {"fps": 2, "end_offset": "50s"}}) == 50 * (140 + 32)
    assert media({**part, "videoMetadata": {"startOffset": "999s", "fps": float("nan")}}) == 0


@pytest.mark.parametrize("data", [bytes(1_250_000), mp4(100)[:40], box(b"ftyp", b"") * 99, mp4(10**6), b"junk" * 9])
def test_film_that_cannot_be_read_goes_by_size(data: bytes) -> None:
    found = of(one(inline("video/mp4", data)))
    assert found.tokens - TURN <= len(data) / 125_000 * 102 + 1


def pdf(pages: int, *, hidden: bool = False, size: int = 0, count: bool = True) -> bytes:
    tree = b"<</Type /Pages /Count %d>>" % pages if count else b""
    objects = b"" if hidden else b"<</Type/Page /Parent 1 0 R>>" * pages
    return b"%PDF-1.7\n" + bytes(size) + objects + tree


def test_documents_by_their_pages() -> None:
    for data in (pdf(12), pdf(12, hidden=True), pdf(12, size=WHOLE), pdf(12, count=False)):
        assert media(inline("application/pdf", data), generation=2) == 12 * 258
        assert media(inline("application/pdf", data)) == 12 * 560
        assert media(inline("application/pdf", data), mediaResolution="MEDIA_RESOLUTION_LOW") == 12 * 280
        assert media(inline("application/pdf", data), media_resolution="MEDIA_RESOLUTION_HIGH") == 12 * 1120
    linear = b"%PDF-1.7\n1 0 obj<</Linearized 1 /L 9 /N 7 /T 5>>" + bytes(99)
    assert media(inline("application/pdf", linear)) == 7 * 560
    assert media(inline("application/pdf", pdf(99_999, hidden=True))) == PAGES * 560


def test_documents_by_their_size() -> None:
    data = pdf(0, count=False, size=499_000)
    assert of(one(inline("application/pdf", data))) == Estimate(TURN + 10 * 560, 1, 0)


def test_other_files() -> None:
    assert media(inline("text/plain", b"x" * 3000)) == 1001
    assert of(one(inline("application/zip", bytes(10**6)))) == Estimate(TURN + REMOTE, 1, 0)


def test_what_lies_elsewhere_is_of_unknown_length() -> None:
    film = {"fileData": {"mimeType": "video/mp4", "fileUri": "https://www.youtube.com/watch?v=x"}}
    assert of(one(film)) == Estimate(TURN + REMOTE, 1, 0)
    picture = {"file_data": {"mime_type": "image/png", "file_uri": "files/abc"}}
    assert of(one(picture)) == Estimate(TURN + 1120, 1, 0)
    assert of(one(picture), generation=2) == Estimate(TURN + 4 * 258, 1, 0)
    assert of({"input": [{"type": "image", "uri": "https://example.com/x"}]}) == Estimate(1120, 1, 0)


# Requests and images


def test_each_text_of_an_embedding_batch_is_a_request() -> None:
    requests = [{"model": "models/m", "content": {"parts": [{"text": PROSE}]}}] * 7
    batch = of({"requests": requests}, verb="batchEmbedContents")
    single = of({"content": {"parts": [{"text": PROSE}]}}, verb="embedContent")
    assert (batch.requests, single.requests) == (7, 1)
    assert batch.tokens == pytest.approx(7 * single.tokens, rel=0.05)
    assert of({"requests": []}, verb="batchEmbedContents").requests == 1


@pytest.mark.parametrize(
    ("value", "requests", "tokens"),
    [
        (PROSE, 1, text_tokens(PROSE)),
        ([PROSE], 1, text_tokens(PROSE)),
        ([PROSE, PROSE, PROSE], 3, text_tokens(PROSE * 3)),
        ([1, 2, 3, 4], 1, 4),
        ([[1, 2, 3], [4, 5]], 2, 5),
        ([], 1, 0),
    ],
)
def test_openai_embeddings(value: Any, requests: int, tokens: int) -> None:
    assert of({"model": "m", "input": value}, verb=None) == Estimate(tokens, requests, 0)


def test_both_forms_of_count_tokens() -> None:
    body = {"contents": [{"parts": [{"text": PROSE}]}], "tools": [{"codeExecution": {}}]}
    assert of({"generateContentRequest": body}, verb="countTokens") == of(body)
    assert of({"generate_content_request": body}, verb="countTokens") == of(body)


def test_images_asked_for() -> None:
    assert of({"prompt": "a cat", "n": 3}, verb=None).images == 3
    assert of({"prompt": "a cat"}, verb=None).images == 1
    assert of({"instances": [{"prompt": "a cat"}], "parameters": {"sampleCount": 2}}, verb="predict").images == 2
    assert of({"instances": [{"prompt": "a cat"}]}, verb="predict").images == 4  # the documented default
    assert of({"instances": [{"prompt": "a cat"}]}, verb="predictLongRunning").images == 0
    assert of(one({"text": "a cat"}, responseModalities=["TEXT", "Image"])).images == 1
    assert of({"generation_config": {"response_modalities": ["IMAGE"]}}).images == 1
    assert of({"messages": [], "modalities": ["text", "image"]}).images == 1
    assert of(one({"text": "a cat"}, responseModalities=["TEXT"])).images == 0
    assert of({"prompt": "a cat", "n": 10**9}, verb=None).images == 100


def test_pictures_for_imagen_and_veo_are_media() -> None:
    image = {"bytesBase64Encoded": base64.b64encode(bytes(9000)).decode(), "mimeType": "image/png"}
    assert of({"instances": [{"prompt": "x", "image": image}]}, verb="predict").tokens < 1200


def test_long_jobs_take_no_input_per_minute() -> None:
    body = {"batch": {"inputConfig": {"requests": {"requests": [{"request": {"contents": [PROSE * 1000]}}]}}}}
    assert of(body, verb="batchGenerateContent") == Estimate(0, 1, 0)


def test_a_body_that_cannot_be_read_goes_by_its_size() -> None:
    assert of(None, size=4000) == Estimate(1000, 1, 0)
    assert of([1, 2], size=4000) == Estimate(1000, 1, 0)
    assert of(None, size=0) == Estimate(0, 1, 0)


def test_an_unknown_body_counts_as_json() -> None:
    assert text_tokens(PROSE) <= of({"somethingNew": {"deep": [PROSE]}}).tokens <= text_tokens(PROSE) + 20


# Hostile bodies

NAMES = """
contents content messages parts text role type tools functionCall functionResponse inlineData inline_data data
bytesBase64Encoded mimeType mime_type fileData fileUri uri image_url url input_audio format file file_data
thoughtSignature videoMetadata fps startOffset mediaResolution level generationConfig responseModalities modalities
requests input prompt n instances parameters sampleCount cachedContent generateContentRequest
"""
KEYS = st.sampled_from(NAMES.split())
MIMES = st.sampled_from(
    ["image/png", "audio/wav", "video/mp4", "application/pdf", "text/plain", "", "audio/l16;rate=0000"]
)
DATA = st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | MIMES
    | DATA
    | DATA.map(lambda text: "data:image/png;base64," + text)
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5)
)
VERBS = st.sampled_from([None, "generateContent", "predict", "batchEmbedContents", "countTokens"])


@given(JSON, VERBS, st.sampled_from([2, 3]))
def test_no_json_makes_it_fail(body: Any, verb: str | None, generation: int) -> None:
    found = estimate(body, size=10, verb=verb, generation=generation)
    assert found.tokens >= 0
    assert found.requests >= 1
    assert found.images >= 0


HEADS = st.sampled_from([png(9, 9), jpeg(9, 9, 99), gif(9, 9), webp(b"VP8L", 9, 9), wav(0.01), mp4(9), pdf(3)])


@given(HEADS, st.binary(max_size=60), st.integers(0, 200), MIMES, st.sampled_from([2, 3]))
def test_no_damage_to_a_file_makes_it_fail(head: bytes, junk: bytes, at: int, mime: str, generation: int) -> None:
    data = head[:at] + junk + head[at + len(junk) :]
    found = of(one(inline(mime, data[:6000])), generation=generation)
    assert 0 <= found.tokens < 10_000_000


@pytest.mark.parametrize("key", ["tools", "contents", "messages", "generateContentRequest", "type", "new"])
def test_depth_is_not_recursion(key: str) -> None:
    body: Any = "x"
    for _ in range(20_000):
        body = {key: [{"parts": [body]}] if key != "generateContentRequest" else body}
    assert of(body).tokens >= 0
    # Taken apart by hand: some versions of Python recurse when they free such a thing.
    while isinstance(body, dict):
        inner = body.pop(key)
        body = inner[0]["parts"].pop() if isinstance(inner, list) else inner


def test_a_number_that_python_refuses_to_write() -> None:
    assert of({"tools": [10**5000, -(10**15), 0.5, True, None]}).tokens > 5000


class Watched(str):
    """Counts the characters that are cut out of it."""

    taken = 0

    def __getitem__(self, key: Any) -> str:
        part = super().__getitem__(key)
        Watched.taken += len(part)
        return part


@pytest.mark.parametrize("mime", ["image/jpeg", "video/mp4", "audio/wav", "application/pdf"])
def test_of_a_large_file_only_the_ends_are_read(mime: str) -> None:
    data = Watched("/9j/" + "A" * 20_000_000)  # begins as a JPEG does
    assert of(one({"inlineData": {"mimeType": mime, "data": data}}), generation=2).tokens < 200_000
    assert 0 < Watched.taken < 1_000_000
    Watched.taken = 0
