"""Estimates the input tokens of pictures, sounds, films and documents, by their header or else by their size.

It takes Base64 and decodes only the bytes that it looks at.
"""

import math
import re
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Any

REMOTE = 10_000  # a file of unknown length: about five minutes of speech, two of film, or 18 pages
PAGES = 1000  # Google accepts no longer document
WHOLE = 2 << 20  # a PDF up to this size is read whole
AUDIO = 32  # tokens a second, in every generation

# Tokens by media resolution; None: the request names none.
_IMAGE = {None: 1120, "low": 280, "medium": 560, "high": 1120, "ultra_high": 2240}
_FRAME = {None: 70, "low": 70, "medium": 70, "high": 280, "ultra_high": 280}
_PAGE = {None: 560, "low": 280, "medium": 560, "high": 1120, "ultra_high": 1120}
_TILE = 258  # Gemini 2: a picture of up to 384 pixels a side, each 768x768 tile of a larger one, a page

# Bytes a second if no header says it: common bit rates, rather low, so that the estimate is rather high.
_RATES = {"flac": 70_000, "aiff": 176_400, "wav": 32_000, "ogg": 8_000, "opus": 8_000, "webm": 8_000, "amr": 1_600}
_RATE = 16_000  # mp3, aac and others at 128 kbit/s
_VIDEO_RATE = 125_000  # 1 Mbit/s
_PAGE_SIZE = 50_000

_PAGE_OBJECT = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_PAGE_COUNT = re.compile(rb"/Count\s+(\d{1,6})")
_LINEARIZED = re.compile(rb"/Linearized[^>]{0,200}?/N\s+(\d{1,6})")  # in the first kilobyte
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
_SAMPLES = re.compile(r"rate=([1-9]\d{3,5})")


class Base64:
    """Bytes that stay encoded. google-genai uses the URL-safe alphabet, most others the standard one."""

    __slots__ = ("_start", "_text", "size")

    def __init__(self, text: str, start: int = 0) -> None:
        self._text, self._start = text, start
        self.size = max(0, (len(text) - start) * 3 // 4 - text[-2:].count("="))

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes at the end, none if it is not Base64. Line breaks are accepted at offset 0."""
        first = self._start + offset // 3 * 4
        chunk = self._text[first : first + (length + 5) // 3 * 4].replace("-", "+").replace("_", "/")
        for _ in range(2):
            try:
                return a2b_base64(chunk[: len(chunk) // 4 * 4])[offset % 3 : offset % 3 + length]
            except ValueError:
                chunk = "".join(chunk.split())
        return b""

    def number(self, offset: int, length: int) -> int:
        return int.from_bytes(self.read(offset, length), "big")


def media_tokens(mime: str, data: Base64, *, generation: int, resolution: str | None = None, clip: Any = None) -> int:
    """`clip`: the part's videoMetadata."""
    kind = mime[:100].lower().strip()
    if kind.startswith("image/"):
        return _image(data, generation, resolution)
    if kind.startswith("video/"):
        return _video(data, generation, resolution, clip)
    if kind.startswith("audio/"):
        return math.ceil(_sound(kind, data) * AUDIO)
    if kind.startswith("application/pdf"):
        return _pages(data) * (_TILE if generation < 3 else _PAGE[resolution])
    if kind.startswith("text/") or kind.endswith(("json", "xml", "script", "python")):
        return data.size // 3 + 1
    return min(data.size // 3 + 1, REMOTE)


def remote_tokens(mime: str, *, generation: int, resolution: str | None = None) -> int:
    """A file that only Google has: a picture's tokens are known whatever its size, others are a rough guess."""
    if mime[:100].lower().startswith("image"):
        return 4 * _TILE if generation < 3 else _IMAGE[resolution]
    return REMOTE


def resolution_of(value: Any) -> str | None:
    """low, medium, high or ultra_high from "MEDIA_RESOLUTION_LOW" or {"level": …}."""
    level = value.get("level") if isinstance(value, dict) else value
    word = level.lower().removeprefix("media_resolution_") if isinstance(level, str) else None
    return word if word in _IMAGE else None


def _image(data: Base64, generation: int, resolution: str | None) -> int:
    if generation >= 3:  # the same for any picture
        return _IMAGE[resolution]
    if resolution in ("low", "medium"):
        return 64 if resolution == "low" else 256
    width, height = _pixels(data)
    if not width or not height:
        return 4 * _TILE
    if max(width, height) <= 384:
        return _TILE
    # Google scales larger pictures to 3072 pixels; and a header may claim any size.
    return _TILE * math.ceil(min(width, 3072) / 768) * math.ceil(min(height, 3072) / 768)


def _pixels(data: Base64) -> tuple[int, int]:
    head = data.read(0, 64)
    if head.startswith(b"\x89PNG"):
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if head.startswith(b"GIF8"):
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head.startswith(b"\xff\xd8"):
        return _jpeg(data.read(0, 4096)) or _jpeg(data.read(0, 65536)) or (0, 0)
    if head[8:12] == b"WEBP":
        form, bits = head[12:16], int.from_bytes(head[21:25], "little")
        if form == b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        if form == b"VP8L":
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Goes through the segments to the frame header, which may follow a thumbnail and a colour profile."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None


def _video(data: Base64, generation: int, resolution: str | None, clip: Any) -> int:
    seconds = _mp4_seconds(data)
    length = data.size / _VIDEO_RATE if seconds is None else seconds
    frames = 1.0
    if isinstance(clip, dict):
        start = _offset(clip.get("startOffset", clip.get("start_offset")), 0.0)
        length = max(0.0, min(length, _offset(clip.get("endOffset", clip.get("end_offset")), length)) - start)
        fps = clip.get("fps")
        if isinstance(fps, int | float) and 0 < fps <= 24:
            frames = fps
    old_frame = 66 if resolution == "low" else 263 - AUDIO  # 263 a second together with its sound
    frame = _FRAME[resolution] if generation >= 3 else old_frame
    return math.ceil(length * (frame * frames + AUDIO))


def _offset(value: Any, otherwise: float) -> float:
    found = _SECONDS.fullmatch(value) if isinstance(value, str) else None
    return float(found[1]) if found else otherwise


def _sound(kind: str, data: Base64) -> float:
    """Seconds."""
    seconds = _wav_seconds(data)
    if seconds is None and ("mp4" in kind or "m4a" in kind):
        seconds = _mp4_seconds(data)
    if seconds is not None:
        return seconds
    if "pcm" in kind or "l16" in kind:  # raw: 16 bits, one channel, 24 kHz unless the type says otherwise
        samples = _SAMPLES.search(kind)
        return data.size / (2 * int(samples[1] if samples else 24_000))
    rate = next((rate for name, rate in _RATES.items() if name in kind), _RATE)
    return data.size / rate


def _wav_seconds(data: Base64) -> float | None:
    head = data.read(0, 4096)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at, rate = 12, 0
    while at + 8 <= len(head):
        name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        if name == b"fmt ":
            rate = int.from_bytes(head[at + 16 : at + 20], "little")
        elif name == b"data":  # a recorder that streams writes 0 or the largest number for the size
            return min(size or data.size, data.size - at - 8) / rate if rate else None
        at += 8 + size + size % 2
    return None


def _mp4_seconds(data: Base64) -> float | None:
    """From the movie header, skipping boxes: moov may be at the end of the file."""
    at, end = 0, data.size
    for _ in range(64):
        if at + 8 > end:
            break
        size, name = data.number(at, 4), data.read(at + 4, 4)
        head = 16 if size == 1 else 8
        size = data.number(at + 8, 8) if size == 1 else size or end - at
        if name == b"moov":
            at += head
        elif name == b"mvhd":
            wide = data.number(at + head, 1) == 1
            scale = data.number(at + head + (20 if wide else 12), 4)
            length = data.number(at + head + (24 if wide else 16), 8 if wide else 4)
            # A film has at least a byte a second: a longer duration is a broken header.
            return length / scale if scale and 0 < length / scale <= data.size else None
        elif size < head or (at == 0 and name not in (b"ftyp", b"moov", b"wide", b"skip", b"free", b"mdat", b"styp")):
            break
        else:
            at += size
    return None


def _pages(data: Base64) -> int:
    """Counts page objects if the whole file is read; newer files compress them, then uses the page tree's count."""
    whole = data.size <= WHOLE
    text = (
        data.read(0, data.size) if whole else data.read(0, WHOLE // 8) + data.read(data.size - WHOLE // 8, WHOLE // 8)
    )
    pages = sum(1 for _ in _PAGE_OBJECT.finditer(text)) if whole else 0
    if not pages:
        claims = [*_PAGE_COUNT.finditer(text), *_LINEARIZED.finditer(text[:1024])]
        pages = max((int(found[1]) for found in claims), default=0)
    return min(pages or data.size // _PAGE_SIZE + 1, PAGES)


def mime_of(holder: Mapping[str, Any]) -> str:
    mime = holder.get("mimeType") or holder.get("mime_type")
    return mime if isinstance(mime, str) else ""
