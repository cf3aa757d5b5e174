"""The catalog: models, limits per tier, fallback chains, aliases. It is read from TOML and checked here."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TIERS = ("free", "tier1", "tier2", "tier3")
NAMES = ("rpm", "tpm", "rpd", "tpd", "ipm")  # of limits
TEXT = ("pro", "flash", "flash_lite")  # the kinds that a mode chooses among
# Kinds without fallback: no other model can replace one of them.
ALONE = ("embedding", "image", "tts", "live", "video", "music")
KINDS = (*TEXT, *ALONE, "gemma", "other")

_MODEL = re.compile(r"(?!models/)([a-zA-Z]+/)?[a-zA-Z0-9]+([-.][a-zA-Z0-9]+)+")
MODES = ("both", *(f"{kind}_only" for kind in TEXT))

# The words that give the kind of an unlisted model. The first match wins: "flash-image" is not a flash model.
_WORDS = {
    "embedding": "embedding",
    "image|imagen|banana": "image",
    "tts": "tts",
    "live|native-audio": "live",
    "veo": "video",
    "lyria": "music",
    "gemma": "gemma",
    "robotics|computer-use|deep-research|transcribe|omni|audio": "other",
    "flash-lite": "flash_lite",
    "flash": "flash",
    "pro": "pro",
}
_KIND = {re.compile(rf"(?:^|-)(?:{words})(?:-|$)"): kind for words, kind in _WORDS.items()}
_GENERATION_2 = re.compile(r"gemini-[12][.-]|gemma-")
# Google counts without it: gemini-3-flash-preview as gemini-3-flash, gemma-4-31b-it as gemma-4-31b.
_TAIL = re.compile(r"(-preview)?(-\d\d-\d{2,4})?(-\d{3})?(-it)?$")


class CatalogError(Exception):
    """A catalog is not valid. The message names the entry, the field and what was expected."""


class NeverBelowError(CatalogError):
    """The setting POLLUX_NEVER_BELOW, not the catalog, names a wrong model."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one tier: 0 means "not on this tier", a missing one is unknown. Source and date are for readers."""

    values: Mapping[str, int]
    source: str = ""
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """`generation` determines the tokens of media: 2 for Gemini 2 and Gemma, 3 for later models."""

    name: str
    kind: str | None
    generation: int
    bucket: str
    fallback: str = ""
    note: str = ""
    limits: Mapping[str, Limits] = field(default_factory=dict)


class Catalog:
    """Looks up listed models. Guesses others from their names each time and keeps nothing: clients choose the names."""

    def __init__(self, layers: Sequence[Mapping[str, Any]], never_below: Sequence[str] = ()) -> None:
        """`layers`: the checked files, the user's own one first. `never_below`: the setting of that name."""
        entries: dict[str, dict[str, Any]] = {}
        for layer in reversed(layers):
            for name, entry in layer["models"].items():
                old = entries.get(name, {})
                entries[name] = {**old, **entry, "limits": {**old.get("limits", {}), **entry.get("limits", {})}}
        self.models: Mapping[str, Model] = {name: _model(name, entry) for name, entry in entries.items()}
        self.aliases: Mapping[str, str] = _merge(layers, "aliases")
        self.defaults: Mapping[str, str] = _merge(layers, "defaults")
        self._final = {alias: _follow(alias, self.aliases) for alias in self.aliases}
        self._check()
        self._floor_set_by: dict[str, str] = {}
        """Chain -> the setting or the catalog's entry that sets its lowest model."""
        self._named = _merge(layers, "chains")
        self._lowest = self._floors(self._named, _merge(layers, "never_below"), never_below)
        self._below: set[str] = set()
        self._limits: dict[tuple[str, str], Mapping[str, int]] = {}
        self._after: dict[str, tuple[str, ...]] = {}
        replaced: set[str] = set()
        for layer in layers:  # the user's file replaces all limits of a bucket's tier, and all that follows a model
            self._limits = _limits(layer["models"], self.models) | self._limits
            chains = {chain: names for chain, names in layer["chains"].items() if chain not in replaced}
            self._after = self._ends(chains) | self._after
            replaced.update(chains)
        names = (*self.models, *self.aliases)
        self._chains = {mode: {name: self._build(name, mode) for name in names} for mode in MODES}

    @classmethod
    def parse(cls, builtin: str, own: str | None = None, never_below: Sequence[str] = ()) -> "Catalog":
        layers = [] if own is None else [load(own, "your catalog")]
        return cls([*layers, load(builtin, "the built-in catalog")], never_below)

    def resolve(self, name: str) -> str:
        name = name.removeprefix("models/")
        return self._final.get(name, name)

    def chain(self, name: str, mode: str = "both") -> tuple[str, ...]:
        """The model to try first, then its fallbacks. A mode chooses among text models; others are not affected."""
        name = name.removeprefix("models/")
        return self._chains[mode].get(name) or self._build(name, mode)

    def floor(self, name: str) -> str | None:
        """The setting or entry that cuts off a model's chain; None if nothing does."""
        last = self._whole(self.resolve(name))[-1]
        known = self.models.get(last)
        for chain, lowest in self._lowest.items():
            names = self._named[chain]
            below = names[names.index(lowest) + 1 :]
            ends = last in names[:-1] and last not in names[: names.index(lowest)]
            if ends or (known is not None and known.fallback in below):
                return self._floor_set_by[chain]
        return None

    def bucket(self, model: str) -> str:
        return (self.models.get(model) or _model(model, {})).bucket

    def limits(self, model: str, tier: str | None) -> dict[str, int]:
        found = self._limits.get((self.bucket(model), tier_name(tier) or "")) if tier else None
        return dict(found) if found else {}

    def smallest_limits(self, model: str) -> dict[str, int]:
        """The smallest of each limit over the tiers that have the model."""
        bucket = self.bucket(model)
        found: dict[str, int] = {}
        for (counted, _), limits in self._limits.items():
            if counted == bucket:
                for name, value in limits.items():
                    if value:
                        found[name] = min(value, found.get(name, value))
        return found

    def generation(self, model: str) -> int:
        return (self.models.get(model) or _model(model, {})).generation

    def kind(self, model: str) -> str | None:
        return (self.models.get(model) or _model(model, {})).kind

    def _build(self, name: str, mode: str) -> tuple[str, ...]:
        whole = self._whole(self._final.get(name, name))
        wanted = mode.removesuffix("_only")
        if wanted == "both" or self.kind(whole[0]) not in TEXT:
            return whole
        default = self._whole(self.defaults[wanted])
        return tuple(m for m in whole if self.kind(m) == wanted) or (
            default[0],
            *(m for m in default[1:] if self.kind(m) == wanted),
        )

    def _whole(self, model: str) -> tuple[str, ...]:
        path = [model]
        while path[-1] not in self._after:
            known = self.models.get(path[-1])
            if not known or not known.fallback or known.fallback in path or known.fallback in self._below:
                return tuple(path)
            path.append(known.fallback)
        return (*path, *(name for name in self._after[path[-1]] if name not in path))

    def _ends(self, chains: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Model -> the models after it, down to the lowest allowed one. Chains may share an end, but must have the same
        models after a shared one.
        """
        whole: dict[str, tuple[str, ...]] = {}
        after: dict[str, tuple[str, ...]] = {}
        for chain, names in chains.items():
            lowest = self._lowest.get(chain)
            end = len(names) if lowest is None else names.index(lowest) + 1
            self._below.update(names[end:])
            for position, name in enumerate(names):
                where, rest = f"chains.{chain}: {name}", names[position + 1 :]
                self._check_member(name, where)
                if name in names[:position]:
                    raise CatalogError(f"{where} is in the chain twice")
                if rest and whole.setdefault(name, rest) != rest:
                    raise CatalogError(f"{where} is followed by other models in another chain")
                if rest or lowest is not None:
                    kept = names[position + 1 : end]
                    after[name] = min(after.get(name, kept), kept, key=len)  # the shorter end counts if chains share it
        return after

    def _floors(
        self, chains: Mapping[str, Sequence[str]], own: Mapping[str, str], setting: Sequence[str]
    ) -> dict[str, str]:
        """Chain -> the lowest model to fall back to. The setting overrides the catalog."""
        for chain, name in own.items():
            if chain not in chains:
                raise CatalogError(
                    f"never_below.{chain}: there is no such chain; there are {', '.join(sorted(chains))}"
                )
            if name not in chains[chain]:
                has = ", ".join(chains[chain]) or "none"
                raise CatalogError(f"never_below.{chain}: {name} is not in that chain, which has {has}")
        chosen: dict[str, str] = {}
        for name in setting:
            holding = [chain for chain, names in chains.items() if name in names]
            if not holding:
                known = ", ".join(dict.fromkeys(model for names in chains.values() for model in names))
                final = self._final.get(name)
                hint = f"it is an alias, name the model: {final}" if final else f"expected {known}"
                raise NeverBelowError(f"{name} is in no fallback chain; {hint}")
            for chain in holding:
                if chosen.setdefault(chain, name) != name:
                    raise NeverBelowError(f"{chosen[chain]} and {name} are both in the chain {chain}; name one of them")
        self._floor_set_by = {chain: f"never_below.{chain} of the catalog" for chain in own}
        self._floor_set_by |= dict.fromkeys(chosen, "POLLUX_NEVER_BELOW")
        return dict(own) | chosen

    def _check_member(self, name: str, where: str) -> None:
        if (kind := self.kind(name)) in ALONE:
            raise CatalogError(f"{where} is for {kind}, and such models have no fallback")
        if name in self.aliases and name not in self.models:
            raise CatalogError(f"{where} is an alias; name the model, {self._final[name]}")

    def _check(self) -> None:
        """Checks what needs both files."""
        for alias, target in self._final.items():
            check_name(target, f"aliases.{alias}")
        for kind, name in self.defaults.items():
            if self.kind(name) not in (kind, None):
                raise CatalogError(f"defaults.{kind}: {name} is {self.kind(name)}")
        for model in self.models.values():
            if model.fallback:
                self._check_member(model.name, f'models."{model.name}".fallback: {model.name}')
                self._check_member(model.fallback, f'models."{model.name}".fallback: {model.fallback}')


def tier_name(text: str) -> str | None:
    """free, tier1, tier2 or tier3 for each usual spelling ("Tier 1", "tier-1", "1", "paid"); None for anything else."""
    if text in TIERS:
        return text
    word = re.sub(r"[\s_-]", "", text.lower())
    word = {"freetier": "free", "0": "free", "paid": "tier1", "1": "tier1", "2": "tier2", "3": "tier3"}.get(word, word)
    return word if word in TIERS else None


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    """The entry, with what it leaves out guessed from the name. An unlisted model has an empty entry."""
    tuned = "/" in name
    kind = entry.get("kind")
    if kind is None and not tuned:
        kind = next((kind for words, kind in _KIND.items() if words.search(name)), None)
    limits = {
        tier: Limits({k: table[k] for k in NAMES if k in table}, table.get("source", ""), table.get("seen", ""))
        for tier, table in entry.get("limits", {}).items()
    }
    return Model(
        name,
        None if kind == "other" else kind,
        entry.get("generation") or (2 if _GENERATION_2.match(name) else 3),
        entry.get("bucket") or (not tuned and _TAIL.sub("", name)) or name,
        entry.get("fallback", ""),
        entry.get("note", ""),
        limits,
    )


def _limits(entries: Mapping[str, Any], models: Mapping[str, Model]) -> dict[tuple[str, str], Mapping[str, int]]:
    """By bucket and tier. Models of one bucket are counted together: the smallest of their limits counts."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, entry in entries.items():
        for tier, table in entry.get("limits", {}).items():
            values = found.setdefault((models[name].bucket, tier), {})
            for limit in NAMES:
                if limit in table:
                    values[limit] = min(table[limit], values.get(limit, table[limit]))
    return dict(found)


def _follow(alias: str, aliases: Mapping[str, str]) -> str:
    path = [alias]
    while (target := aliases.get(path[-1])) is not None:
        if target in path:
            raise CatalogError(f"aliases.{alias} goes in a circle: {' -> '.join([*path, target])}")
        path.append(target)
    return path[-1]


def _merge(layers: Sequence[Mapping[str, Any]], section: str) -> dict[str, Any]:
    return {name: value for layer in reversed(layers) for name, value in layer[section].items()}


# --- reading a file --------------------------------------------------------------------------------------------------


def load(text: str, where: str) -> dict[str, Any]:
    """Parses one file and checks every field by itself. The Catalog checks entries against each other."""
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
        if name in entry and (entry[name] or name == "bucket"):  # an empty fallback removes the built-in one
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
