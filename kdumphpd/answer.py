"""kdump's answer to what it would load: asked for once, and again where something changed.

Asking runs kdump's own shell library, which costs a second of CPU on a small machine, and
each ``kdumpctl status`` of a monitoring system closes the lock that we watch. So the answer
stays until a file that decides it is another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdumphpd.distribution.adoption import Owner
from kdumphpd.distribution.stamps import Stamp, stamp
from kdumphpd.errors import BusyError, KdumphpdError
from kdumphpd.host import Host


@dataclass(frozen=True)
class Informed:
    """A host with an answer.

    Attributes:
        host: what is wanted there is known, unless there is a problem.
        problem: why it is not known anew; the host still has its earlier answer, if any.
        asked: whether it was asked for just now.
    """

    host: Host
    problem: str = ""
    asked: bool = False


class Answer:
    """Remembers what the latest answer was made of."""

    def __init__(self) -> None:
        self._stamp: Stamp | None = None

    def renew(self, host: Host, *, anew: bool) -> Informed:
        """The host with kdump's present answer. Call it with kdump's lock held.

        Args:
            host: the host with its answer so far, if it has one.
            anew: ask in any case.

        Raises:
            BusyError: our own end came before the answer.
        """
        if host.owner is Owner.CONFIGURATION:
            return Informed(host.asked_again() if anew and host.source.is_open else host)
        known = host.source.known is not None
        if known and not anew and self._stamp == stamp(files(host)):
            return Informed(host)
        asked = host.asked_again() if known else host
        # Before the question: what changes meanwhile gives another stamp the next time.
        deciding = stamp(deciding_files(host))
        self._stamp = None
        try:
            asked.source.spec  # noqa: B018
        except BusyError:
            raise
        except KdumphpdError as error:
            return Informed(host, str(error))
        self._stamp = (*deciding, *stamp(image_files(asked)))
        return Informed(asked, asked=True)

    def forget(self) -> None:
        """The next `renew` asks."""
        self._stamp = None


def files(host: Host) -> tuple[Path, ...]:
    """Every file on which the answer depends."""
    return (*deciding_files(host), *image_files(host))


def deciding_files(host: Host) -> tuple[Path, ...]:
    """The files from which kdump makes its answer."""
    return host.kdump.asked if host.kdump else ()


def image_files(host: Host) -> tuple[Path, ...]:
    """The kernel and the initrd, where kdump has said which."""
    spec = host.source.known
    if host.owner is Owner.CONFIGURATION or spec is None:
        return ()
    return (spec.kernel, spec.initrd)
