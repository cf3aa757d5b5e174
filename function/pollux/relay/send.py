"""Sends one request upstream with one key. Only this module sends a key's value to Gemini. No answer shows it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pollux.backends.keys.contract import Key, Keyring, KeySourceError
from pollux.backends.upstream import Answer, Streamed, Upstream, UpstreamError
from pollux.gemini.body import inflate
from pollux.gemini.errors import GatewayError
from pollux.gemini.headers import client_headers
from pollux.gemini.upload import OF_UPLOADS
from pollux.gemini.verdict.rules import Verdict, judge, verdict_of
from pollux.redaction import Forms, Screen, never_log, redact

API_KEY, BEARER, NO_CREDENTIAL = "x-goog-api-key", "authorization", ""
"""How a key travels: in a header of Google's, in that of the OpenAI paths, or not at all."""
ERROR_MOST = 1 << 20
"""No error is larger, inflated."""

Headers = Sequence[tuple[bytes, bytes]]
Readdress = Callable[[Headers, Key], Awaitable[list[tuple[bytes, bytes]]]]
"""Rewrites the headers of an upload's answer for the client, given the key that was used."""
Text = TypeVar("Text", str, bytes)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that was refused or got no answer: what Google said, without secrets, and what it means."""

    verdict: Verdict
    key: Key
    status: int
    headers: Headers
    body: bytes
    problem: GatewayError | None = None
    """Our own error, if there is no answer to pass on."""
    unsent: bool = False
    """Nothing of the request reached Google."""

    @property
    def timed_out(self) -> bool:
        return self.problem is not None and self.problem.code == "UPSTREAM_TIMEOUT"


class CoveredAnswer:
    """An answer as a client may see it: only allowed headers, and the key replaced in headers and body. Either `read`
    all of it or take each `chunk`.
    """

    __slots__ = ("_answer", "_forms", "_screen", "_secret", "body", "headers", "length", "status")

    def __init__(self, answer: Answer, secret: str, forms: Forms, *, uploads: bool = False) -> None:
        """`forms`: of the secret. `uploads`: also keep the headers that only uploads need."""
        self.status = answer.status
        self.length = answer.length
        self.headers = client_headers(answer.headers, OF_UPLOADS if uploads else ())
        self.body = b""
        """Set by `send` if it was told to read the whole answer."""
        self._answer = answer
        self._secret = secret
        self._forms = forms
        self._screen: Screen | None = None
        if forms.may_be_in(b"\n".join([text for _, text in self.headers])):
            self.headers = [(name, forms.cover(text)) for name, text in self.headers]

    async def read(self) -> bytes:
        try:
            body = await self._answer.read()
        except UpstreamError as error:
            raise _covered(error, self._secret) from None
        return self._forms.cover(body)

    async def chunk(self) -> bytes:
        """The next bytes; b"" at the end. If Content-Length was announced, exactly that many come."""
        if self._screen is None:
            kind = next((text for name, text in self.headers if name == b"content-type"), b"")
            is_text = b"json" in kind or kind.startswith(b"text/")
            self._screen = Screen(self._forms, escaped=is_text, same_length=self.length is not None)
        try:
            while data := await self._answer.chunk():
                if data := self._screen.through(data):
                    return data
        except UpstreamError as error:
            raise _covered(error, self._secret) from None
        return self._screen.rest()

    def redact(self, text: Text) -> Text:
        """For errors: replaces this key however it is escaped, and everything that looks like a key."""
        return redact(text, [self._secret])

    def refusal(self, key: Key, body: bytes, now: float) -> Failure:
        """Judge this answer, or the error that a stream began with."""
        headers, body = _inflated(self.headers, body)
        # Replaced before judging, which cuts messages: half a key would not be recognised. And after, as judging
        # unescapes them.
        body = self._forms.cover(body)
        verdict = judge(self.status, body, now=now)
        verdict = replace(verdict, message=self.redact(verdict.message))
        return Failure(verdict, key, self.status, headers, redact(body))

    def close(self) -> None:
        self._answer.close()


class KeyedUpstream:
    """Calls the upstream with keys of the keyring."""

    def __init__(self, upstream: Upstream, keyring: Keyring, now: Callable[[], float]) -> None:
        self._upstream = upstream
        self._keyring = keyring
        self._now = now
        self._forms: dict[int, Forms] = {}
        """Hash of a key's value -> its forms. Logs are told to leave out these values."""

    async def send(
        self,
        key: Key,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        body: bytes | Streamed = b"",
        *,
        credential: str = API_KEY,
        whole: bool = False,
        readdress: Readdress | None = None,
        begins: Callable[[], None] | None = None,
    ) -> CoveredAnswer | Failure:
        """`whole`: read a good answer into its `body`. `readdress`: rewrite the headers of an upload's answer. `begins`
        is called just before sending, when the value was read. What these or a streamed body raise is raised here.
        """
        try:
            value = (await self._keyring.value(key.id)).reveal()
        except KeySourceError as error:
            return _unreadable(key, error)
        forms = self._forms.get(hash(value))
        if forms is None:
            never_log(value)
            forms = self._forms[hash(value)] = Forms(value)
        if credential:
            headers = [*headers, (credential, f"Bearer {value}" if credential == BEARER else value)]
        if begins is not None:
            begins()
        answer = None
        try:
            came = await self._upstream.send(method, target, headers, body)
            answer = CoveredAnswer(came, value, forms, uploads=readdress is not None)
            if readdress is not None:
                answer.headers = await readdress(answer.headers, key)
            good = 200 <= answer.status < 300
            if whole or not good:
                answer.body = await answer.read()
                answer.close()
            return answer if good else answer.refusal(key, answer.body, self._now())
        except BaseException as error:
            if answer is not None:
                answer.close()
            if isinstance(error, UpstreamError):
                return broken(key, _covered(error, value), self._now())
            raise


def broken(key: Key, error: UpstreamError, now: float) -> Failure:
    """The failure when no answer came, or not all of it. `error` was raised by this module: its text shows no key."""
    code, said = "UPSTREAM_UNREACHABLE", f"Gemini did not answer: {error}"
    verdict = replace(judge(None, b"", now=now), message=str(error))
    if error.kind == "timeout":
        code, said = "UPSTREAM_TIMEOUT", f"{said} (POLLUX_TIMEOUT)"
    elif error.kind == "malformed":
        verdict = verdict_of("malformed", str(error))
        said = f"Gemini's answer cannot be read, and the request is not sent again: {error}"
    problem = GatewayError(code, said)
    return Failure(verdict, key, 0, (), b"", problem, unsent=error.kind == "unreachable")


def _unreadable(key: Key, error: KeySourceError) -> Failure:
    verdict = verdict_of("key-source", str(error))
    if error.transient:  # trouble of this instance: others may have the value, so the key is not set aside
        verdict = replace(verdict, cooldown_s=0.0)
    problem = GatewayError("NO_USABLE_KEY", str(error), retry_after=5.0)
    return Failure(verdict, key, 0, (), b"", problem, unsent=True)


def _covered(error: UpstreamError, secret: str) -> UpstreamError:
    return UpstreamError(error.kind, redact(str(error), [secret]))


def _inflated(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """A compressed error, inflated. If that fails, the body is dropped, because it might show the key."""
    encoding = b",".join(value for name, value in headers if name == b"content-encoding").decode("latin-1")
    if not encoding:
        return headers, body
    headers = [(name, value) for name, value in headers if name != b"content-encoding"]
    try:
        return headers, inflate(body, encoding, ERROR_MOST)
    except GatewayError:
        return headers, b""
