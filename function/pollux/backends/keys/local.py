"""The keys of one machine: keys.json, key.txt, .env and the environment. A change is seen within two seconds."""

import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.keys.entries import TOKEN_PREFIX, Entry, KeyFileError, Parsed, Problem, clean, decode
from pollux.backends.keys.files import ROOT, VARIABLES, Variable, is_read, parse, parse_env, parse_variables
from pollux.settings import Settings

LOOK_EVERY_S = 1.0
LARGEST = 2**20
_UNREAD = re.compile(r"(GEMINI|GOOGLE)_API_KEY\w*")

Signature = tuple[int, int, int] | None


class LocalKeyring:
    """A Keyring. With `keys_file` it reads only that file, else every local source. Of a value that is in several
    sources, the first one counts.

    Raises KeySourceError when made if a file cannot be read as keys. Later such a file keeps its last good keys, and
    `problems` says so. An unusable entry is a problem, and does not affect the other entries.
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
        self.notices: tuple[Problem, ...] = ()
        self._own = keys_file
        root = Path(environ[ROOT]).expanduser() if environ.get(ROOT) else None
        folders = [folder, *(place for place in (root, home) if place is not None)]
        self._env_files = list(dict.fromkeys(place / ".env" for place in folders))
        """The environment comes before them; then the first that sets a variable counts."""
        self._files = [keys_file] if keys_file else [data / "keys.json", folder / "keys.json", folder / "key.txt"]
        if root is not None and keys_file is None and root / "keys.json" not in self._files:
            self._files.append(root / "keys.json")
        self._paths = (*self._files, *self._env_files)
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

    async def keys(self) -> tuple[Key, ...]:
        self._refresh()
        return self._keys

    async def value(self, key_id: str) -> Secret:
        self._refresh()
        if key_id not in self._entries:
            raise KeySourceError(f"the key {key_id!r} is no longer in the local sources")
        return self._entries[key_id].secret

    async def reread(self, key_id: str) -> bool:
        before = self._entries.get(key_id)
        self._seen = self._signatures()
        self._load()
        now = self._entries.get(key_id)
        return before is not None and now is not None and before.secret != now.secret

    def entries(self) -> Mapping[str, Entry]:
        """The usable entries by id, for commands."""
        return self._entries

    def entries_with(self, secret: Secret) -> tuple[Entry, ...]:
        """Every entry with this value, including those that do not count."""
        return tuple(entry for entry in self._written if entry.secret == secret)

    def reads(self, path: Path) -> bool:
        """Whether this keyring reads the file."""
        read = self._files if self._own else self._paths
        return path.resolve() in {other.resolve() for other in read}

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        seen = self._signatures()
        if seen != self._seen:
            self._seen = seen  # taken before reading, so that a change meanwhile is seen at the next look
            self._load()

    def _signatures(self) -> tuple[Signature, ...]:
        return tuple(_signature(path) for path in self._paths)

    def _load(self, *, starting: bool = False) -> None:
        problems: list[Problem] = []
        notices: list[Problem] = []
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
        self._publish(self._named(_one_of_each(self._written, notices), problems))
        if not self._entries:
            notices += _unread(variables)
        self.problems, self.notices = tuple(problems), tuple(notices)

    def _read(self, path: Path) -> str | None:
        """The text; None if the file does not exist, which is an error only for POLLUX_KEYS_FILE."""
        shown = self._shown[path]
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                if path != self._own:
                    return None  # for example a virtual environment named .env
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

    def _variables(self, problems: list[Problem], notices: list[Problem], starting: bool) -> dict[str, Variable]:
        """The variables of the environment, then of the .env files. Empty ones and our own token do not count."""
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
        merged = files | {name: Variable(name, value) for name, value in self._environ.items() if clean(value)}
        # The lines that `pollux serve` prints for clients put a client token into GEMINI_API_KEY. As a key it would
        # make Pollux call itself.
        held = merged.get("GEMINI_API_KEY")
        if held and self._is_token(held):
            del merged["GEMINI_API_KEY"]
            reason = "GEMINI_API_KEY holds a client token of Pollux: not used as a key"
            notices.append(Problem(held.file, held.line, reason))
            below = files.get("GEMINI_API_KEY")
            if below and not self._is_token(below):
                merged["GEMINI_API_KEY"] = below
        for name, variable in files.items():
            counts = merged.get(name, variable)
            if clean(variable.value) != clean(counts.value) and parse_variables([variable]).entries:
                reason = f"{name} is set in the environment too, which counts"
                notices.append(Problem(variable.file, variable.line, reason))
        return merged

    def _is_token(self, variable: Variable) -> bool:
        value = clean(variable.value)
        return value.startswith(TOKEN_PREFIX) or value in self._tokens

    def _named(self, entries: list[Entry], problems: list[Problem]) -> dict[str, Entry]:
        """Each entry under its id, in order. An id made from a position stays with its value, so that the removal of a
        line does not give the cooldowns of one key to the next."""
        taken: dict[str, Entry] = {}
        for entry in entries:
            if not entry.positional:
                if other := taken.get(entry.id):
                    problems.append(Problem(entry.file, entry.line, f"the id {entry.id!r} is taken by {other.where}"))
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

    def _publish(self, entries: dict[str, Entry]) -> None:
        for key_id, entry in entries.items():
            secret, generation = self._generations.get(key_id, (entry.secret, 0))
            self._generations[key_id] = (entry.secret, generation + (secret != entry.secret))
        self._entries = entries
        keys = tuple(entry.key(key_id, self._generations[key_id][1]) for key_id, entry in entries.items())
        if keys != self._keys:  # the same tuple means that nothing has changed
            self._keys = keys


def open_local(settings: Settings) -> LocalKeyring:
    try:
        home = Path.home()
    except RuntimeError:  # the user has no entry in the system's list of users
        home = None
    keys_file = Path(settings.keys_file).expanduser() if settings.keys_file else None
    return LocalKeyring(keys_file, data=Path(settings.data), folder=Path.cwd(), environ=settings.environ, home=home)


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


def _one_of_each(entries: Iterable[Entry], notices: list[Problem]) -> list[Entry]:
    first: dict[Secret, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.secret, entry)
        if other is not entry and (entry.variable is None or entry.variable != other.variable):
            reason = f"the same key as {other.id!r} of {other.where}, which counts"
            notices.append(Problem(entry.file, entry.line, reason))
    return list(first.values())


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _kept(problem: Problem) -> Problem:
    return Problem(problem.file, problem.line, f"{problem.reason}; the keys read from it before stay in use")


def _unread(variables: Mapping[str, Variable]) -> list[Problem]:
    read = ", ".join(VARIABLES)
    return [
        Problem(variable.file, variable.line, f"{name} is not read; these are: {read}")
        for name, variable in variables.items()
        if _UNREAD.fullmatch(name) and not is_read(name)
    ]
