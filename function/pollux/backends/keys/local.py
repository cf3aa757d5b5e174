"""The keys of one machine: keys.json, key.txt, .env and the environment, seen again within two seconds of a change."""

import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.keys.entries import TOKEN_PREFIX, Entry, KeyFileError, Notice, Problem, clean
from pollux.backends.keys.files import (
    ROOT,
    VARIABLES,
    Parsed,
    Variable,
    decode,
    is_read,
    parse,
    parse_env,
    parse_variables,
)

LOOK_EVERY_S = 1.0
LARGEST = 2**20
_UNREAD = re.compile(r"(GEMINI|GOOGLE)_API_KEY\w*")

Signature = tuple[int, int, int] | None


class LocalKeyring:
    """A Keyring. With `keys_file` it reads only that, else every local source; the first that holds a value names it.

    Raises KeySourceError when made if a file cannot be read as keys. Later on such a file keeps its last good keys, and
    `problems` tells. An entry that cannot be used is a problem and costs no other entry anything.
    """

    def __init__(
        self,
        keys_file: Path | None,
        *,
        data: Path,
        folder: Path,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        home: Path | None = None,
    ) -> None:
        self.problems: tuple[Problem, ...] = ()
        self.notices: tuple[Notice, ...] = ()
        self._own = keys_file
        root = Path(environ[ROOT]).expanduser() if environ.get(ROOT) else None
        folders = [folder, *(place for place in (root, home) if place is not None)]
        self._env_files = list(dict.fromkeys(place / ".env" for place in folders))
        """Of one name the first counts, after the environment."""
        self._files = [keys_file] if keys_file else [data / "keys.json", folder / "keys.json", folder / "key.txt"]
        if root is not None and keys_file is None and root / "keys.json" not in self._files:
            self._files.append(root / "keys.json")
        self._shown = {path: str(path.relative_to(folder) if path.parent == folder else path) for path in self._paths}
        self._environ = environ
        self._clock = clock
        words = [word.strip() for word in environ.get("POLLUX_TOKEN", "").split(",")]
        self._tokens = {*words, *(word.partition("=")[2] for word in words)}  # TOKEN or name=TOKEN
        self._good: dict[Path, Parsed] = {}
        self._good_env: dict[Path, dict[str, Variable]] = {}
        self._places: dict[Secret, str] = {}
        self._generations: dict[str, tuple[Secret, int]] = {}
        self._entries: dict[str, Entry] = {}
        self._written: tuple[Entry, ...] = ()
        self._keys: tuple[Key, ...] = ()
        self._seen = self._signatures()
        self._look_at = clock() + LOOK_EVERY_S
        self._load(starting=True)

    @property
    def _paths(self) -> tuple[Path, ...]:
        return (*self._files, *self._env_files)

    async def keys(self) -> tuple[Key, ...]:
        self._refresh()
        return self._keys

    async def value(self, key_id: str) -> Secret:
        self._refresh()
        if key_id not in self._entries:
            raise KeySourceError(f"there is no key {key_id!r} in the local sources any more")
        return self._entries[key_id].secret

    async def reread(self, key_id: str) -> bool:
        before = self._entries.get(key_id)
        self._seen = self._signatures()
        self._load()
        now = self._entries.get(key_id)
        return before is not None and now is not None and before.secret != now.secret

    def entries(self) -> Mapping[str, Entry]:
        """The usable entries by id, with where each stands: for the command line."""
        return self._entries

    def entries_with(self, secret: Secret) -> tuple[Entry, ...]:
        """Every entry that holds this value, also where it does not count."""
        return tuple(entry for entry in self._written if entry.secret == secret)

    def reads(self, path: Path) -> bool:
        """Whether the keys of this file are in use as they stand there."""
        read = self._files if self._own else self._paths
        return path.resolve() in {other.resolve() for other in read}

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        seen = self._signatures()
        if seen != self._seen:
            self._seen = seen  # taken before reading: a change while we read is a change at the next look
            self._load()

    def _signatures(self) -> tuple[Signature, ...]:
        return tuple(_signature(path) for path in self._paths)

    def _load(self, *, starting: bool = False) -> None:
        problems: list[Problem] = []
        notices: list[Notice] = []
        variables = self._variables(problems, notices, starting)
        found: list[Parsed] = []
        for path in self._files:
            try:
                text = self._read(path)
                self._good[path] = Parsed() if text is None else parse(text, self._shown[path], variables)
            except KeyFileError as error:
                if starting:
                    raise
                problems.append(_kept(error.problem))
            found.append(self._good[path])
        if self._own is None:
            found.append(parse_variables(variables.values()))
        for parsed in found:
            problems += parsed.problems
            notices += parsed.notices
        self._written = tuple(entry for parsed in found for entry in parsed.entries)
        merged = _one_of_each(self._written, notices)
        self._take(self._named(merged, problems))
        if not self._entries:
            notices += _unread(variables)
        self.problems, self.notices = tuple(problems), tuple(notices)

    def _read(self, path: Path) -> str | None:
        """The text; None for a source that is not there, which only the one named in the settings must be."""
        shown = self._shown[path]
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                if path != self._own:
                    return None  # a virtual environment named .env, for one
                raise KeyFileError(Problem(shown, 0, "not a regular file"))
            if status.st_size > LARGEST:
                raise KeyFileError(Problem(shown, 0, "larger than 1 MiB, which no key file is"))
            return decode(path.read_bytes(), shown)
        except (FileNotFoundError, NotADirectoryError):
            if path != self._own:
                return None
            reason = "no such file"
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        raise KeyFileError(Problem(shown, 0, reason))

    def _variables(self, problems: list[Problem], notices: list[Notice], starting: bool) -> dict[str, Variable]:
        """.env below the environment, as everywhere; what is set but empty, or is our own token, does not count."""
        files: dict[str, Variable] = {}
        for path in self._env_files:
            try:
                text = self._read(path)
                self._good_env[path] = parse_env(text, self._shown[path]) if text else {}
            except KeyFileError as error:
                if starting:
                    raise
                problems.append(_kept(error.problem))
            files = self._good_env[path] | files
        merged = dict(files)
        for name, value in self._environ.items():
            if clean(value):
                merged[name] = Variable(name, value)
        # Whoever follows our own greeting has a client token in GEMINI_API_KEY: that would be Pollux calling itself.
        held = merged.get("GEMINI_API_KEY")
        if held and self._is_token(held):
            del merged["GEMINI_API_KEY"]
            notices.append(
                Notice(held.file, held.line, "GEMINI_API_KEY holds a client token of Pollux: not used as a key")
            )
            below = files.get("GEMINI_API_KEY")
            if below and not self._is_token(below):
                merged["GEMINI_API_KEY"] = below
        for name, variable in files.items():
            counts = merged.get(name, variable)
            if clean(variable.value) != clean(counts.value) and parse_variables([variable]).entries:
                notices.append(
                    Notice(variable.file, variable.line, f"{name} is set in the environment too, which counts")
                )
        return merged

    def _is_token(self, variable: Variable) -> bool:
        value = clean(variable.value)
        return value.startswith(TOKEN_PREFIX) or value in self._tokens

    def _named(self, entries: list[Entry], problems: list[Problem]) -> dict[str, Entry]:
        """Each entry under its id, in order. Ids that come from a place follow their value, so that a line taken out
        does not hand the cooldowns of one key to the next."""
        taken: dict[str, Entry] = {}
        for entry in entries:
            if not entry.positional:
                if other := taken.get(entry.id):
                    problems.append(Problem(entry.file, entry.line, f"the id {entry.id!r} is taken by {other.place}"))
                else:
                    taken[entry.id] = entry
        loose = [entry for entry in entries if entry.positional]
        for entry in loose:
            earlier = self._places.get(entry.secret)
            if earlier and earlier not in taken:
                taken[earlier] = entry
        placed = {id(entry) for entry in taken.values()}
        for entry in loose:
            if id(entry) not in placed:
                key_id = free_id(entry.id, taken)
                taken[key_id] = entry
                self._places[entry.secret] = key_id
        order = {id(entry): place for place, entry in enumerate(entries)}
        return dict(sorted(taken.items(), key=lambda item: order[id(item[1])]))

    def _take(self, entries: dict[str, Entry]) -> None:
        for key_id, entry in entries.items():
            secret, generation = self._generations.get(key_id, (entry.secret, 0))
            self._generations[key_id] = (entry.secret, generation + (secret != entry.secret))
        self._entries = entries
        keys = tuple(entry.key(key_id, self._generations[key_id][1]) for key_id, entry in entries.items())
        if keys != self._keys:  # the same tuple tells whoever asks that nothing changed
            self._keys = keys


def home_folder() -> Path | None:
    """None where there is none, as for a user without an entry in the system's list."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def free_id(wanted: str, taken: Iterable[str]) -> str:
    """The id itself, or with the next free number."""
    used = set(taken)
    stem, _, number = wanted.rpartition("-")
    if not (stem and number.isdigit()):
        stem, number = wanted, "1"
    key_id, count = wanted, int(number)
    while key_id in used:
        count += 1
        key_id = f"{stem[:50]}-{count}"
    return key_id


def _one_of_each(entries: Iterable[Entry], notices: list[Notice]) -> list[Entry]:
    first: dict[Secret, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.secret, entry)
        if other is not entry and (entry.variable is None or entry.variable != other.variable):
            notices.append(
                Notice(entry.file, entry.line, f"the same key as {other.id!r} of {other.place}, which counts")
            )
    return list(first.values())


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _kept(problem: Problem) -> Problem:
    return Problem(problem.file, problem.line, f"{problem.reason}; the keys read from it before stay in use")


def _unread(variables: Mapping[str, Variable]) -> list[Notice]:
    read = ", ".join(VARIABLES)
    return [
        Notice(variable.file, variable.line, f"{name} is not read; these are: {read}")
        for name, variable in variables.items()
        if _UNREAD.fullmatch(name) and not is_read(name)
    ]
