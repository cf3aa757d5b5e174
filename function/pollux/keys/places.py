"""Where the command line reads and writes keys: a keys.json of this machine, or the Secret Manager of a project."""

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pollux.keys import Key, KeySourceError, Secret
from pollux.keys.entries import Entry, KeyFileError, Problem, id_fault
from pollux.keys.files import Variable, decode, parse, parse_env, recognise
from pollux.keys.keyfile import KeyFile
from pollux.keys.local import LocalKeyring, home_folder
from pollux.keys.records import ID, changed, foreign, secret_name
from pollux.keys.secret_manager import SecretManagerKeyring
from pollux.keys.secrets_api import SecretError, SecretInfo, SecretsApi, Version, known_as
from pollux.settings import Settings

T = TypeVar("T")

AT_ONCE = 4

Progress = Callable[[int, str], AbstractContextManager[Callable[[], None]]]
"""`with progress(50, "reading keys") as step`: call `step` for each that is done."""


@dataclass(frozen=True)
class Contents:
    """The keys of a place, in order."""

    keys: tuple[Key, ...]
    entries: Mapping[str, Entry]
    """By id, of the keys that were wanted. One whose value cannot be read has an empty value and is in `unread`."""
    unread: Mapping[str, KeySourceError] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()
    ids: Collection[str] = ()
    """All ids that are taken, also by entries that are not usable as keys."""
    owned: Mapping[Secret, str] = field(default_factory=dict)
    """Values that are in the place itself, with their ids. Other sources of this machine may hold more keys."""


class Rotation(Protocol):
    """A new value of a key. Without `keep` it is given up when the block ends."""

    warning: str
    """What `keep` could not do."""

    @property
    def name(self) -> str:
        """What to call the new value."""

    def offer(self, secret: Secret) -> Secret:
        """Store the value without giving up the old one. Returns the value as it is stored."""

    def keep(self) -> str:
        """Put the new value in the place of the old one. Returns details of what was done."""


class KeyPlace(Protocol):
    """Calls block. That way Ctrl-C ends a prompt between two calls at once. Failures are KeySourceErrors."""

    project: str
    """The Google Cloud project whose Secret Manager this is; "" is this machine."""
    where: str
    """What a suggested command needs at its end, such as " --secrets PROJECT"."""
    name: str
    title: str

    def read(self, wanted: Callable[[Key], bool] | None = None, *, writing: bool = False) -> Contents:
        """All keys, and the values of those that are `wanted`; without it of all. `writing`: raise if the place cannot
        be written, and fill in `ids` and `owned`."""

    def location(self, key_id: str) -> str:
        """Where a key is written, for people."""

    def add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None: ...

    def edit(self, key_id: str, details: Mapping[str, Any], secret: Secret | None = None) -> None:
        """Change what is named; None removes. `details`: project, tier, limits, enabled."""

    def rotation(self, key_id: str) -> AbstractContextManager[Rotation]: ...

    def question(self, key_id: str) -> str:
        """What to ask before the key is removed."""

    def remove(self, key_id: str) -> None: ...

    def adopt(self, entries: Mapping[str, Entry], done: Callable[[str], None]) -> None:
        """Add entries of another source under these ids; `done` is called with each id."""

    def value(self, key_id: str) -> Secret | None:
        """The value that a change would give up, if other sources may hold it too."""

    def copies(self, secret: Secret) -> tuple[list[Entry], str | None]:
        """Other entries with this value, and the id under which one of them serves."""

    def reads(self, path: Path) -> bool:
        """Whether the keys of this file are in use where it is."""

    def close(self) -> None: ...


def text_of(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise KeyFileError(Problem(str(path), 0, reason))


def variables_here() -> dict[str, Variable]:
    env_file = Path.cwd() / ".env"
    below = parse_env(text_of(env_file), ".env") if env_file.is_file() else {}
    return below | {name: Variable(name, value) for name, value in os.environ.items() if value}


class FilePlace:
    """The sources of this machine are read; written is POLLUX_KEYS_FILE or keys.json in the data folder."""

    project = where = ""

    def __init__(self, settings: Settings) -> None:
        self._data = Path(settings.data)
        self._named = Path(settings.keys_file).expanduser() if settings.keys_file else None
        self._file = KeyFile(self._named or self._data / "keys.json")
        self.name = str(self._file.path)
        self.title = f"file {self.name}"

    def read(self, wanted: Callable[[Key], bool] | None = None, *, writing: bool = False) -> Contents:
        if not writing:
            keyring = self._keyring()
            entries = {key_id: replace(entry, id=key_id) for key_id, entry in keyring.entries().items()}
            keys = tuple(entry.key(key_id) for key_id, entry in entries.items())
            chosen = {key.id: entries[key.id] for key in keys if wanted is None or wanted(key)}
            return Contents(keys, chosen, {}, keyring.problems, keyring.notices)
        ids = self._writable().ids()
        here = Contents((), {}) if self._named and not self._named.exists() else self.read(wanted)
        return replace(
            here,
            ids={*here.entries, *ids},
            owned={entry.secret: entry.id for entry in self._own_entries()},
        )

    def location(self, key_id: str) -> str:
        return self.name

    def add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None:
        self._file.add(key_id, secret, **details)

    def edit(self, key_id: str, details: Mapping[str, Any], secret: Secret | None = None) -> None:
        self._require(key_id)
        written = dict(details)
        if written.get("enabled"):
            written["enabled"] = None  # what is not written is enabled
        self._file.edit(key_id, secret=secret, **written)

    @contextmanager
    def rotation(self, key_id: str) -> Iterator[Rotation]:
        self._require(key_id)
        yield _FileRotation(self, key_id)

    def question(self, key_id: str) -> str:
        self._require(key_id)
        return f"Remove {key_id} from {self.name}?"

    def remove(self, key_id: str) -> None:
        self._file.remove(key_id)

    def adopt(self, entries: Mapping[str, Entry], done: Callable[[str], None]) -> None:
        if entries:
            self._file.adopt(entries)
        for key_id in entries:
            done(key_id)

    def value(self, key_id: str) -> Secret | None:
        self._require(key_id)
        return next((entry.secret for entry in self._own_entries() if entry.id == key_id), None)

    def copies(self, secret: Secret) -> tuple[list[Entry], str | None]:
        keyring = self._keyring()
        serving = [key_id for key_id, e in keyring.entries().items() if e.secret == secret and e.enabled]
        return list(keyring.entries_with(secret)), serving[0] if serving else None

    def reads(self, path: Path) -> bool:
        return path.resolve() != self._file.path.resolve() and self._keyring().reads(path)

    def close(self) -> None:
        pass

    def _keyring(self) -> LocalKeyring:
        return LocalKeyring(self._named, data=self._data, folder=Path.cwd(), environ=os.environ, home=home_folder())

    def _own_entries(self) -> tuple[Entry, ...]:
        path = self._file.path
        return parse(text_of(path), str(path), variables_here()).entries if path.exists() else ()

    def _writable(self) -> KeyFile:
        """A list of lines or variables is left to its owner."""
        path = self._named
        if path and recognise(text_of(path) if path.exists() else "", str(path)) != "json":
            raise KeySourceError(
                f"POLLUX_KEYS_FILE={path} is not a keys.json, the only kind that is written here: edit it yourself, or "
                f"unset POLLUX_KEYS_FILE and run: pollux keys import {path}"
            )
        return self._file

    def _require(self, key_id: str) -> None:
        """Raises unless the key is in the file that is written."""
        if key_id in self._writable().ids():
            return
        contents = self.read(writing=True)
        if entry := contents.entries.get(key_id):
            raise KeySourceError(
                f"{key_id!r} comes from {entry.place}: change it there, or take it over with: pollux keys import FILE"
            )
        raise no_such_key(key_id, contents.ids)


class _FileRotation:
    name, warning = "the new one", ""

    def __init__(self, place: FilePlace, key_id: str) -> None:
        self._place, self._key_id = place, key_id

    def offer(self, secret: Secret) -> Secret:
        self._secret = secret
        return secret

    def keep(self) -> str:
        self._place.edit(self._key_id, {}, self._secret)
        return ""


class SecretManager:
    """The Secret Manager of one project, for code that is not async: `manager.run(manager.api.versions(name))`."""

    def __init__(self, project: str) -> None:
        self.project = project
        self.api = SecretsApi(project)
        self._runner = asyncio.Runner()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def close(self) -> None:
        self.run(self.api.close())
        self._runner.close()


class SecretManagerPlace(SecretManager):
    """Every key is a secret, every value of it a version."""

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
                finally:
                    step()
                details = (key.project, key.tier, key.limits, key.enabled)
                return Entry(key.id, value, self.location(key.id), 0, *details)

            async def all_of_them() -> list[Entry]:
                return await asyncio.gather(*map(one, chosen))

            entries = {entry.id: entry for entry in self.run(all_of_them())}
        return Contents(
            keys,
            entries,
            unread,
            keyring.problems,
            ids=keyring.ids,
            owned={entry.secret: key_id for key_id, entry in entries.items() if key_id not in unread},
        )

    def location(self, key_id: str) -> str:
        return f"secret {secret_name(key_id)} of {self.project}"

    def add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None:
        self.run(self._add(key_id, secret, details))

    async def _add(self, key_id: str, secret: Secret, details: Mapping[str, Any]) -> None:
        """The secret and its first version, or neither."""
        name = secret_name(key_id)
        labels, annotations = changed(None, details)
        if key_id not in name:
            annotations[ID] = key_id
        await self.api.create(name, labels, annotations)
        try:
            await self.api.add_version(name, secret)
        except BaseException:
            with suppress(SecretError):
                await self.api.delete(name)
            raise

    def edit(self, key_id: str, details: Mapping[str, Any], secret: Secret | None = None) -> None:
        info = self._info(key_id)
        self.run(self.api.describe(info, *changed(info, details)))

    @contextmanager
    def rotation(self, key_id: str) -> Iterator[Rotation]:
        """A value that is not kept stays as a disabled version."""
        rotation = _Version(self, key_id, self._named(key_id, self.api.versions(self._secret(key_id))))
        try:
            yield rotation
        finally:
            if rotation.number and not rotation.kept:
                self.run(self.api.disable(self._secret(key_id), rotation.number))

    def question(self, key_id: str) -> str:
        return f"Remove {self.location(key_id)}, with all its versions?{foreign(self._info(key_id))}"

    def remove(self, key_id: str) -> None:
        self.run(self.api.delete(self._secret(key_id)))

    def adopt(self, entries: Mapping[str, Entry], done: Callable[[str], None]) -> None:
        """The first that fails ends it. What is done stays, and the same again does the rest."""
        added = 0
        turn, failed = asyncio.Semaphore(AT_ONCE), False

        async def one(key_id: str, entry: Entry) -> None:
            nonlocal added, failed
            async with turn:
                if failed:
                    return
                details = {"project": entry.project, "tier": entry.tier, "limits": entry.limits}
                try:
                    await self._add(key_id, entry.secret, details | {"enabled": entry.enabled})
                except BaseException:
                    failed = True
                    raise
            added += 1
            done(key_id)

        async def all_of_them() -> list[BaseException | None]:
            return await asyncio.gather(*(one(*item) for item in entries.items()), return_exceptions=True)

        for error in self.run(all_of_them()):
            if isinstance(error, KeySourceError):
                raise KeySourceError(f"{error} ({added} of {len(entries)} were added; import again for the rest)")
            if error is not None:
                raise error

    def value(self, key_id: str) -> None:
        return None

    def copies(self, secret: Secret) -> tuple[list[Entry], None]:
        return [], None

    def reads(self, path: Path) -> bool:
        return False

    def _secret(self, key_id: str) -> str:
        if id_fault(key_id):  # it may be a value: neither asked for nor repeated
            raise KeySourceError(f"no such key in project {self.project}; see: pollux keys list{self.where}")
        return secret_name(key_id)

    def _info(self, key_id: str) -> SecretInfo:
        return self._named(key_id, self.api.secret(self._secret(key_id)))

    def _named(self, key_id: str, call: Coroutine[Any, Any, T]) -> T:
        with known_as(f"key {key_id!r}", self.project):
            return self.run(call)


class _Version:
    warning = ""

    def __init__(self, place: SecretManagerPlace, key_id: str, old: list[Version]) -> None:
        self._place, self._key_id, self._old = place, key_id, old
        self._name = secret_name(key_id)
        self.number, self.kept = 0, False

    @property
    def name(self) -> str:
        return f"the new one, version {self.number},"

    def offer(self, secret: Secret) -> Secret:
        self.number = self._place.run(self._place.api.add_version(self._name, secret))
        return self._place.run(self._place.api.access(self._name, self.number))

    def keep(self) -> str:
        """Announce the version to gateways, then disable the old ones."""
        self.kept = True
        try:
            self._place.edit(self._key_id, {"version": self.number})
        except KeySourceError as error:
            self.warning = f"gateways were not told, and take it when the old is refused: {error}"
        for version in self._old:
            self._place.run(self._place.api.disable(self._name, version.number))
        disabled = f"; disabled {', '.join(str(version.number) for version in sorted(self._old))}" if self._old else ""
        return f": version {self.number}{disabled}"


def no_such_key(key_id: str, known: Collection[str], where: str = "") -> KeySourceError:
    """Repeats the id only if it cannot be the value of a key, typed in the wrong place."""
    import difflib

    if id_fault(key_id):
        return KeySourceError(f"there is no such key; see: pollux keys list{where}")
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(key_id.casefold(), folded, n=1)
    meant = f" (did you mean {folded[near[0]]}?)" if near else ""
    return KeySourceError(f"there is no key {key_id!r}{meant}; see: pollux keys list{where}")
