"""The places where commands read and change keys: files of this machine, or the Secret Manager of a project."""

import asyncio
import difflib
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pollux.backends.keys.contract import Key, KeySourceError, Secret
from pollux.backends.keys.entries import Entry, Problem, id_fault, text_of
from pollux.backends.keys.files import Variable, parse, parse_env, recognise
from pollux.backends.keys.keys_json import KeyFile
from pollux.backends.keys.local import open_local
from pollux.backends.keys.records import ID, changed, foreign, secret_name
from pollux.backends.keys.secret_manager import SecretManagerKeyring
from pollux.backends.keys.secrets_api import SecretError, SecretInfo, SecretsApi, known_as
from pollux.settings import Settings

AT_ONCE = 4

T = TypeVar("T")
Progress = Callable[[int, str], AbstractContextManager[Callable[[], None]]]
"""`with progress(50, "reading keys") as step`: call `step` after each of the 50."""


@dataclass(frozen=True)
class Contents:
    """The keys of a place, in order."""

    keys: tuple[Key, ...]
    entries: Mapping[str, Entry]
    """The keys that were wanted, by id. One whose value cannot be read has an empty value and is in `unread`."""
    unread: Mapping[str, KeySourceError] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()
    ids: Collection[str] = ()
    """All ids in use, also of entries that are not usable as keys."""
    owned: Mapping[Secret, str] = field(default_factory=dict)
    """The ids of the values in the place itself. Other sources of this machine may hold more keys."""


class KeyPlace(Protocol):
    """Every failure is a KeySourceError. Calls block, so that Ctrl-C works at once while a command asks something."""

    project: str = ""
    """The Google Cloud project whose Secret Manager this is; "" is this machine."""
    where: str = ""
    """What the commands in hints need at their end, such as " --secrets PROJECT"."""
    name: str
    title: str

    def read(self, wanted: Callable[[Key], bool] | None = None, *, writing: bool = False) -> Contents:
        """All keys, and the values of those that are `wanted` (default: all). `writing`: raise if the place cannot be
        written, and fill in `ids` and `owned`."""

    def location(self, key_id: str) -> str:
        """Where the key is kept, for messages."""

    def require(self, key_id: str) -> None:
        """Raise unless the key can be changed here."""

    def add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None: ...

    def adopt(self, entries: Mapping[str, Entry]) -> Iterator[str]:
        """Add entries of another source under these ids. Yields each id after it was added."""

    def edit(self, key_id: str, details: Mapping[str, Any], secret: Secret | None = None) -> None:
        """Change the given details: project, tier, limits, enabled. None removes."""

    def replace(self, key_id: str, secret: Secret, accepted: Callable[[Secret, str], bool]) -> tuple[str, str] | None:
        """Give the key a new value if `accepted` agrees, which is called with the stored value and its name. Returns
        what was done and a warning, both for messages; None if nothing has changed."""

    def question(self, key_id: str) -> str:
        """What to ask before the key is removed. Raises if it cannot be removed."""

    def remove(self, key_id: str) -> None: ...

    def replaced_value(self, key_id: str) -> Secret | None:
        """Returns the value that a change replaces, if other sources of this machine may hold it too."""
        return None

    def copies(self, secret: Secret) -> tuple[list[Entry], str | None]:
        """Other entries with this value, and the id of one that is in use."""
        return [], None

    def reads(self, path: Path) -> bool:
        """Whether a gateway here reads this file anyway."""
        return False

    def close(self) -> None:
        return None


def variables_here(environ: Mapping[str, str]) -> dict[str, Variable]:
    env_file = Path.cwd() / ".env"
    below = parse_env(text_of(env_file), ".env") if env_file.is_file() else {}
    return below | {name: Variable(name, value) for name, value in environ.items() if value}


def no_such_key(key_id: str, known: Collection[str], where: str = "") -> KeySourceError:
    """Repeats the id only if it cannot be a key's value, typed in the wrong place."""
    if id_fault(key_id):
        return KeySourceError(f"there is no such key; see: pollux keys list{where}")
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(key_id.casefold(), folded, n=1)
    meant = f" (did you mean {folded[near[0]]}?)" if near else ""
    return KeySourceError(f"there is no key {key_id!r}{meant}; see: pollux keys list{where}")


class FilePlace(KeyPlace):
    """Reads every source of this machine. Writes POLLUX_KEYS_FILE, or keys.json in the data folder."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._named = Path(settings.keys_file).expanduser() if settings.keys_file else None
        self._path = self._named or Path(settings.data) / "keys.json"
        self.name = str(self._path)
        self.title = f"file {self.name}"

    def read(self, wanted: Callable[[Key], bool] | None = None, *, writing: bool = False) -> Contents:
        if writing:
            ids = self._file.ids()
            new = self._named is not None and not self._named.exists()
            found = Contents((), {}) if new else self.read(wanted)
            owned = {entry.secret: entry.id for entry in self._own_entries()}
            return replace(found, ids={*found.entries, *ids}, owned=owned)
        keyring = open_local(self._settings)
        entries = {key_id: replace(entry, id=key_id) for key_id, entry in keyring.entries().items()}
        keys = tuple(entry.key(key_id) for key_id, entry in entries.items())
        chosen = {key.id: entries[key.id] for key in keys if wanted is None or wanted(key)}
        return Contents(keys, chosen, {}, keyring.problems, keyring.notices)

    def location(self, key_id: str) -> str:
        return self.name

    def require(self, key_id: str) -> None:
        if key_id in self._file.ids():
            return
        contents = self.read(writing=True)
        if entry := contents.entries.get(key_id):
            raise KeySourceError(
                f"{key_id!r} comes from {entry.where}: change it there, or take it over with: pollux keys import FILE"
            )
        raise no_such_key(key_id, contents.ids)

    def add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None:
        self._file.add(key_id, secret, **details)

    def adopt(self, entries: Mapping[str, Entry]) -> Iterator[str]:
        if entries:
            self._file.adopt(entries)
        yield from entries

    def edit(self, key_id: str, details: Mapping[str, Any], secret: Secret | None = None) -> None:
        self.require(key_id)
        written = dict(details)
        if written.get("enabled"):
            written["enabled"] = None  # the default
        self._file.edit(key_id, secret=secret, **written)

    def replace(self, key_id: str, secret: Secret, accepted: Callable[[Secret, str], bool]) -> tuple[str, str] | None:
        if not accepted(secret, "the new one"):
            return None
        self.edit(key_id, {}, secret)
        return "", ""

    def question(self, key_id: str) -> str:
        self.require(key_id)
        return f"Remove {key_id} from {self.name}?"

    def remove(self, key_id: str) -> None:
        self._file.remove(key_id)

    def replaced_value(self, key_id: str) -> Secret | None:
        return next((entry.secret for entry in self._own_entries() if entry.id == key_id), None)

    def copies(self, secret: Secret) -> tuple[list[Entry], str | None]:
        keyring = open_local(self._settings)
        serving = (key_id for key_id, e in keyring.entries().items() if e.secret == secret and e.enabled)
        return list(keyring.entries_with(secret)), next(serving, None)

    def reads(self, path: Path) -> bool:
        return path.resolve() != self._path.resolve() and open_local(self._settings).reads(path)

    @property
    def _file(self) -> KeyFile:
        """The file that is written. Raises if POLLUX_KEYS_FILE has another format."""
        text = text_of(self._named) if self._named and self._named.exists() else ""
        if self._named and recognise(text, self.name) != "json":
            raise KeySourceError(
                f"POLLUX_KEYS_FILE={self.name} is not a keys.json, the only format that commands write: edit it "
                f"yourself, or unset POLLUX_KEYS_FILE and run: pollux keys import {self.name}"
            )
        return KeyFile(self._path)

    def _own_entries(self) -> tuple[Entry, ...]:
        if not self._path.exists():
            return ()
        return parse(text_of(self._path), self.name, variables_here(self._settings.environ)).entries


class SecretManager:
    """The Secret Manager of one project for code that is not async: `google.run(google.api.versions(name))`."""

    def __init__(self, project: str) -> None:
        self.project = project
        self.api = SecretsApi(project)
        self._runner = asyncio.Runner()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    async def create(self, name: str, labels: Mapping[str, str], notes: Mapping[str, str], value: Secret) -> int:
        """Makes a secret with its first version. If the version fails, the secret is deleted again."""
        await self.api.create(name, labels, notes)
        try:
            return await self.api.add_version(name, value)
        except BaseException:
            with suppress(SecretError):
                await self.api.delete(name)
            raise

    def close(self) -> None:
        self.run(self.api.close())
        self._runner.close()


class SecretManagerPlace(SecretManager, KeyPlace):
    """Each key is a secret, each of its values a version."""

    def __init__(self, project: str, progress: Progress) -> None:
        super().__init__(project)
        self.name = project
        self.where = f" --secrets {project}"
        self.title = f"Secret Manager of {project}"
        self._progress = progress

    def read(self, wanted: Callable[[Key], bool] | None = None, *, writing: bool = False) -> Contents:
        keyring = SecretManagerKeyring(self.project, api=self.api)
        keys = self.run(keyring.keys())
        chosen = [key for key in keys if wanted is None or wanted(key)]
        unread: dict[str, KeySourceError] = {}
        with self._progress(len(chosen), "reading keys") as step:

            async def one(key: Key) -> Entry:
                try:
                    value = await keyring.value(key.id)
                except SecretError as error:
                    unread[key.id] = error
                    value = Secret("")
                step()
                return Entry(key.id, value, self.location(key.id), 0, key.project, key.tier, key.limits, key.enabled)

            found = self.run(_all(map(one, chosen)))
        owned = {entry.secret: entry.id for entry in found if entry.id not in unread}
        entries = {entry.id: entry for entry in found}
        return Contents(keys, entries, unread, keyring.problems, ids=keyring.ids, owned=owned)

    def location(self, key_id: str) -> str:
        return f"secret {secret_name(key_id)} of {self.project}"

    def require(self, key_id: str) -> None:
        self._versions(key_id)

    def add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None:
        self.run(self._add(key_id, secret, details))

    async def _add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None:
        name = secret_name(key_id)
        labels, annotations = changed(None, details)
        if key_id not in name:
            annotations[ID] = key_id
        await self.create(name, labels, annotations, secret)

    def adopt(self, entries: Mapping[str, Entry]) -> Iterator[str]:
        """Several at a time. If one fails, those added before stay, and another import adds the rest."""
        added, waiting = 0, list(entries.items())

        async def one(key_id: str, entry: Entry) -> KeySourceError | None:
            try:
                await self._add(key_id, entry.secret, entry.details)
            except KeySourceError as error:
                return error
            return None

        while waiting:
            turn, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            failed = self.run(_all(one(*item) for item in turn))
            done = [key_id for (key_id, _), error in zip(turn, failed, strict=True) if error is None]
            added += len(done)
            yield from done
            for error in filter(None, failed):
                raise KeySourceError(f"{error} ({added} of {len(entries)} were added; import again for the rest)")

    def edit(self, key_id: str, details: Mapping[str, Any], secret: Secret | None = None) -> None:
        info = self._info(key_id)
        self.run(self.api.describe(info, *changed(info, details)))

    def replace(self, key_id: str, secret: Secret, accepted: Callable[[Secret, str], bool]) -> tuple[str, str] | None:
        """Adds a version. If it is accepted, gateways are told and the old versions are disabled; else it is disabled
        itself."""
        name, old, warning = secret_name(key_id), self._versions(key_id), ""
        number = self.run(self.api.add_version(name, secret))
        keep = False
        try:
            keep = accepted(self.run(self.api.access(name, number)), f"the new one, version {number},")
        finally:
            if not keep:
                self.run(self.api.disable(name, number))
        if not keep:
            return None
        try:
            self.edit(key_id, {"version": number})
        except KeySourceError as error:
            warning = f"gateways were not told; they take the new value when Google refuses the old: {error}"
        for version in old:
            self.run(self.api.disable(name, version))
        disabled = f"; disabled {', '.join(map(str, sorted(old)))}" if old else ""
        return f": version {number}{disabled}", warning

    def question(self, key_id: str) -> str:
        return f"Remove {self.location(key_id)}, with all its versions?{foreign(self._info(key_id))}"

    def remove(self, key_id: str) -> None:
        self.run(self.api.delete(self._secret(key_id)))

    def _secret(self, key_id: str) -> str:
        if id_fault(key_id):  # it may be a key's value: neither sent nor shown
            raise KeySourceError(f"no such key in project {self.project}; see: pollux keys list{self.where}")
        return secret_name(key_id)

    def _info(self, key_id: str) -> SecretInfo:
        with known_as(f"key {key_id!r}", self.project):
            return self.run(self.api.secret(self._secret(key_id)))

    def _versions(self, key_id: str) -> list[int]:
        with known_as(f"key {key_id!r}", self.project):
            return [version.number for version in self.run(self.api.versions(self._secret(key_id)))]


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return await asyncio.gather(*calls)
