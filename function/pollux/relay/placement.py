"""Where a request may go, what makes a project ready for it, how it is rewritten for there, and what was lost there."""

from pollux.pool.reservation import Ask, Tried
from pollux.relay.send import Failure


class Placement:
    """The null case: the request may go to any project, as it is. Others override what differs."""

    only: str | None = None
    """The one project that can serve the request."""
    home: str | None = None
    """The project that is preferred, if it has a healthy key."""
    names: tuple[str, ...] = ()
    """What the request names, for messages."""
    one_model: bool = False
    """What it names works with the wanted model alone: no fallback."""
    prepares: bool = False
    """A project must be made ready first: only then the relay calls `narrow`, `ready`, `prepare` and `exhausted`."""

    def counts_at(self) -> str | None:
        """The project that can count the tokens of the request as the client wrote it."""
        return self.only

    async def narrow(self, ask: Ask, tried: Tried) -> Ask:
        """Exclude the projects that cannot be made ready; prefer those that are."""
        return ask

    def ready(self, project: str) -> bool:
        """Whether the request can be sent there now. If so, `rewritten` is for that project from now on."""
        return True

    async def prepare(self, project: str, tried: Tried) -> None:
        """Make the project ready. If that fails, `tried` excludes it; raises if no other can serve."""

    def rewritten(self, body: bytes) -> bytes:
        return body

    def shown(self, body: bytes) -> bytes:
        """An answer with the names that the client knows."""
        return body

    def judged(self, failure: Failure) -> Failure:
        """The failure, understood by what the request names."""
        return failure

    async def lost(self, failure: Failure) -> bool:
        """Whether the project lost something that can be made again: then the request is sent again."""
        return False

    async def moved(self, failure: Failure) -> bool:
        """Whether another project owns by now what the request names. Then `only` is that one."""
        return False

    def exhausted(self) -> Failure | None:
        """When no project is left: the failure that the client gets. Raises if no project could be made ready."""
        return None


ANYWHERE = Placement()
