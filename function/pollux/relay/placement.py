"""Where a request may go, how a project is made ready and the request rewritten for it, what a failure there means."""

from pollux.pool.reservation import Ask, Tried
from pollux.relay.send import Failure


class Placement:
    """The null case: the request may go to any project, as it is. Subclasses in `resources` override what differs."""

    only: str | None = None
    """The one project that can serve the request."""
    home: str | None = None
    """The project that is preferred, if it has a healthy key."""
    names: tuple[str, ...] = ()
    """What the request names, for messages."""
    one_model: bool = False
    """What the request names works with the wanted model alone: no fallback."""
    prepares: bool = False
    """Whether a project must be made ready first. Else `narrow`, `ready`, `prepare` and `rewritten` are not called."""

    def counts_at(self) -> str | None:
        """The project that can count the tokens of the request as the client wrote it."""
        return self.only

    async def narrow(self, ask: Ask, tried: Tried) -> Ask:
        """Exclude the projects that cannot be made ready; prefer those that are."""
        return ask

    def ready(self, project: str) -> bool:
        """Whether the request can be sent there now. If so, `rewritten` rewrites for that project from now on."""
        return True

    async def prepare(self, project: str, tried: Tried) -> None:
        """Make the project ready. If that fails, exclude it in `tried`; raises if no other project can serve."""

    def rewritten(self, body: bytes) -> bytes:
        return body

    def shown(self, body: bytes) -> bytes:
        """The body of a refusal with the names that the client knows."""
        return body

    def judged(self, failure: Failure) -> Failure:
        """The failure, with another verdict if what the request names explains it."""
        return failure

    async def lost(self, failure: Failure) -> bool:
        """Whether the project lost something that is made again. Then the request is sent again."""
        return False

    async def moved(self, failure: Failure) -> bool:
        """Whether another project owns by now what the request names. Then `only` is that project."""
        return False

    def exhausted(self) -> Failure | None:
        """The failure that the client gets when no project is left. Raises if no project could be made ready."""
        return None


ANYWHERE = Placement()
