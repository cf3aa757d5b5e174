"""Says which projects may get a request, prepares a project, rewrites the request and interprets failures."""

from pollux.pool.reservation import Ask, Tried
from pollux.relay.send import Failure


class Placement:
    """The default: the request may go to any project, unchanged. Subclasses in `resources` override what differs."""

    only: str | None = None
    """The one project that can serve the request."""
    home: str | None = None
    """The project that is preferred, if it has a healthy key."""
    names: tuple[str, ...] = ()
    """The resources that the request names, for messages."""
    one_model: bool = False
    """The resources work only with the requested model, so there is no fallback."""
    prepares: bool = False
    """Whether a project must be prepared first. If not, `narrow`, `ready`, `prepare` and `rewritten` are not called."""

    def counts_at(self) -> str | None:
        """Returns the project that can count the tokens of the request as the client wrote it."""
        return self.only

    async def narrow(self, ask: Ask, tried: Tried) -> Ask:
        """Exclude the projects that cannot be prepared; prefer those that are ready."""
        return ask

    def ready(self, project: str) -> bool:
        """Whether the request can be sent to the project now. If so, `rewritten` then rewrites for that project."""
        return True

    async def prepare(self, project: str, tried: Tried) -> None:
        """Prepare the project. If that fails, exclude it in `tried`. Raises if no other project can serve."""

    def rewritten(self, body: bytes) -> bytes:
        return body

    def shown(self, body: bytes) -> bytes:
        """Returns the body of a refusal with the names that the client knows."""
        return body

    def judged(self, failure: Failure) -> Failure:
        """Returns the failure, with another verdict if a resource that the request names explains it."""
        return failure

    async def lost(self, failure: Failure) -> bool:
        """Whether the project lost something that can be made again. Then the request is sent again."""
        return False

    async def moved(self, failure: Failure) -> bool:
        """Whether another project owns the resources now. Then `only` is that project."""
        return False

    def exhausted(self) -> Failure | None:
        """Returns the failure that the client gets when no project is left. Raises if no project could be prepared."""
        return None


ANYWHERE = Placement()
