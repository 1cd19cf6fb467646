"""What the service has in its charge: one host's image, and what is due to it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kdumphpd.host import Host


class Due(enum.Enum):
    """What the next look has to do although no uevent asks for it."""

    NOTHING = "nothing"
    HEADER = "header"  # an audit found the header stale
    IMAGE = "image"  # an audit found the image damaged
    RELOAD = "reload"  # the image of a new configuration could not be loaded
    REARM = "rearm"  # nothing is loaded, by a failure of ours


@dataclass
class Charge:
    """The state between two turns.

    Attributes:
        host: with the answer of its kdump that is in use; it has the image's files open.
        due: what the next look has to do.
        keeps: we are able and willing to keep what is loaded. Then, and only then, the
            distribution's hotplug rule is not in force.
        ours: the last look found our image.
        blind: the last look found nothing that can be read.
    """

    host: Host
    due: Due = Due.NOTHING
    keeps: bool = False
    ours: bool = False
    blind: bool = False

    def use(self, host: Host) -> None:
        """Take ``host`` in the place of the one before, and let go of that one's files."""
        if host is not self.host:
            self.host.source.close()
            self.host = host
