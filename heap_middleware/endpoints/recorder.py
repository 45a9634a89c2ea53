"""What both attribution backends have in common, as the monitor and the adapters see them."""

from collections.abc import Callable, Iterable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from heap_middleware.endpoints.ledger import Endpoint, EndpointTotals
from heap_middleware.endpoints.sites import Site
from heap_middleware.endpoints.windows import Level

__all__ = ["FirstRequest", "Follower", "Recorder", "RequestRecorder"]


class RequestRecorder(Protocol):
    """What an adapter tells of each request. One serves all threads of a process."""

    @property
    def follows(self) -> bool:
        """Whether a request is followed through its context, so that its response must be made in it, too."""
        ...

    @property
    def begin(self) -> Callable[[MutableMapping[str, Any], Level], Any]:
        """Take note that a request arrives, with its environ or scope; returns what `finish` wants."""
        ...

    def finish(self, window: Any, held: MutableMapping[str, Any], level: Level, method: str, route: str | None) -> None:
        """Take note that its response has ended."""
        ...


class Recorder(RequestRecorder, Protocol):
    """Counts requests and says what they left alive."""

    @property
    def name(self) -> str:
        """Which backend it is."""
        ...

    @property
    def spent(self) -> float:
        """Seconds it has cost so far."""
        ...

    def totals(self) -> dict[Endpoint, EndpointTotals]:
        """What is known of each endpoint."""
        ...

    def sites(self) -> dict[Endpoint, tuple[Site, ...]]:
        """Which lines allocated what each endpoint retains; empty if there are no records."""
        ...

    def tracked(self) -> tuple[int, int] | None:
        """Live records, and one allocation in how many is recorded; None if there are no records."""
        ...

    def numbered(self) -> dict[int, Endpoint]:
        """The endpoints by their numbers in a census; empty if there are no records."""
        ...

    def disturbing(self) -> AbstractContextManager[None]:
        """While this is entered, the heap changes for a reason that is no request."""
        ...


class Follower(RequestRecorder, Protocol):
    """A recorder that `follows` requests through their contexts."""

    @property
    def body(self) -> Callable[[Iterable[Any], Any, Callable[[Any], object]], Iterable[Any]]:
        """Make a response in the context of its request, and call back when it has ended."""
        ...


class FirstRequest:
    """Stands in for a recorder, if there is one, until the first request arrives; tells of that, and passes it on."""

    def __init__(self, recorder: RequestRecorder | None, arrived: Callable[[], None]) -> None:
        self._recorder = recorder
        self._arrived = arrived
        self.follows = recorder is not None and recorder.follows

    def begin(self, held: MutableMapping[str, Any], level: Level) -> Any:
        """Tell of it."""
        self._arrived()
        return None if self._recorder is None else self._recorder.begin(held, level)

    def finish(self, window: Any, held: MutableMapping[str, Any], level: Level, method: str, route: str | None) -> None:
        """Pass it on."""
        if self._recorder is not None:
            self._recorder.finish(window, held, level, method, route)

    @property
    def body(self) -> Callable[[Iterable[Any], Any, Callable[[Any], object]], Iterable[Any]]:
        """Pass it on."""
        return cast(Follower, self._recorder).body
