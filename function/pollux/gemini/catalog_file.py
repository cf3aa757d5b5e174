"""Reads a catalog file and checks each field alone, by name. What entries mean together is catalog.py's business."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

TIERS = ("free", "tier1", "tier2", "tier3")
NAMES = ("rpm", "tpm", "rpd", "tpd", "ipm")  # of limits
TEXT = ("pro", "flash", "flash_lite")  # the kinds that a mode chooses among
ALONE = ("embedding", "image", "tts", "live", "video", "music")  # another one's vectors or voice is another thing
KINDS = (*TEXT, *ALONE, "gemma", "other")

_MODEL = re.compile(r"(?!models/)([a-zA-Z]+/)?[a-zA-Z0-9]+([-.][a-zA-Z0-9]+)+")


class CatalogError(Exception):
    """A catalog makes no sense: names the entry, the field and what was expected there."""


def tier_name(text: str) -> str | None:
    """free, tier1, tier2 or tier3 for each usual spelling ("Tier 1", "tier-1", "1", "paid"); None for anything else."""
    if text in TIERS:
        return text
    word = re.sub(r"[\s_-]", "", text.lower())
    word = {"freetier": "free", "0": "free", "paid": "tier1", "1": "tier1", "2": "tier2", "3": "tier3"}.get(word, word)
    return word if word in TIERS else None


def load(text: str, where: str) -> dict[str, Any]:
    """One file, with every field checked alone; what entries mean together the Catalog checks."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{where} is not TOML: {error}") from None
    sections = ("models", "aliases", "chains", "never_below", "defaults")
    _fields(raw, sections, where)
    file = {name: _typed(raw.get(name, {}), dict, name, "a table") for name in sections}
    for name, entry in file["models"].items():
        check_name(name, f'models."{name}"')
        _check_model(_typed(entry, dict, f'models."{name}"', "a table"), f'models."{name}"')
    for alias, target in file["aliases"].items():
        _typed(target, str, f"aliases.{alias}", "the name of a model")
    for chain, names in file["chains"].items():
        for name in _typed(names, list, f"chains.{chain}", "a list of models"):
            check_name(name, f"chains.{chain}")
        file["chains"][chain] = tuple(names)
    for chain, name in file["never_below"].items():
        check_name(name, f"never_below.{chain}")
    _fields(file["defaults"], TEXT, "defaults")
    for kind, name in file["defaults"].items():
        check_name(name, f"defaults.{kind}")
    return file


def _check_model(entry: dict[str, Any], where: str) -> None:
    _fields(entry, ("kind", "generation", "bucket", "fallback", "note", "limits"), where)
    for name, choices in (("kind", KINDS), ("generation", (2, 3))):
        if name in entry and (type(entry[name]) not in (str, int) or entry[name] not in choices):
            raise CatalogError(f"{where}.{name}: expected one of {', '.join(map(str, choices))}, not {entry[name]!r}")
    for name in ("bucket", "fallback"):
        if name in entry and (entry[name] or name == "bucket"):  # an empty fallback takes away the built-in one
            check_name(entry[name], f"{where}.{name}")
    _typed(entry.get("note", ""), str, f"{where}.note", "a text")
    tiers = _typed(entry.get("limits", {}), dict, f"{where}.limits", "a table per tier")
    for spelling in list(tiers):
        tier, inside = tier_name(spelling), f"{where}.limits.{spelling}"
        if tier is None or (tier != spelling and tier in tiers):
            raise CatalogError(f"{inside}: expected one of {', '.join(TIERS)}, each once")
        table = tiers[tier] = _typed(tiers.pop(spelling), dict, inside, "a table")
        _fields(table, (*NAMES, "source", "seen"), inside)
        for name, value in table.items():
            if name not in NAMES:
                _typed(value, str, f"{inside}.{name}", "a text")
            elif type(value) is not int or value < 0:
                raise CatalogError(f"{inside}.{name}: expected a whole number, 0 or more, not {value!r}")


def check_name(value: Any, where: str) -> None:
    if not isinstance(value, str) or not _MODEL.fullmatch(value):
        raise CatalogError(f"{where}: expected the name of a model, such as gemini-3.8-flash, not {value!r}")


def _fields(table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in table:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
            raise CatalogError(f"{where}: {name} is not known; {hint}")


def _typed(value: Any, kind: type, where: str, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise CatalogError(f"{where}: expected {wanted}, not {value!r}")
    return value
