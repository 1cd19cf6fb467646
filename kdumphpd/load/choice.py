"""Which way of loading is taken, and whether that is news; what is left to the kernel.

The ordinary way, kexec_load(2) of an image that nobody else updates, needs no words.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdumphpd.load.keeper import Look, Mended, State
from kdumphpd.load.ladder import Obstacle, told


@dataclass(frozen=True)
class News:
    """What is worth a record.

    Attributes:
        text: what it says.
        backend: its KDUMPHPD_BACKEND, if it is about one.
        as_it_ought: nobody need look after it.
    """

    text: str
    backend: str | None = None
    as_it_ought: bool = False


class Choice:
    """Remembers what was said of it, and since when the kernel owes an update."""

    def __init__(self) -> None:
        self._way: tuple[str, tuple[Obstacle, ...]] = ("kexec_load", ())
        self._stale_since: int | None = None
        self.managed = False

    def loaded(self, mended: Mended) -> News | None:
        """What to say after a load that succeeded; None if it is as before."""
        loaded = mended.loaded
        if loaded is None:
            return None
        ordinary = loaded.backend in ("delta", "full")
        # A rung that failed is recorded with the failure; these are rungs not tried at all.
        way = ("kexec_load" if ordinary else loaded.backend, mended.ruled_out)
        known, self._way = self._way == way, way
        if known:
            return None
        why = "; ".join(told(mended.ruled_out) or mended.failures)
        if loaded.kept:
            return News(
                f"kdump's image is kept, and mended by {loaded.backend}; {why}",
                loaded.backend,
                True,
            )
        if ordinary and not why:
            return News("kexec_load is possible again and used from here on", loaded.backend)
        return News(f"loading by {way[0]}; {why}", loaded.backend)

    def looked(self, look: Look) -> News | None:
        """What to say after a look; None if nothing changed about who updates the header."""
        if not look.ours or look.managed == self.managed:
            return None
        self.managed = look.managed
        if look.managed:
            return News(
                "the kernel updates the header of this image (crash_hotplug is 1);"
                " what it leaves stale is repaired",
                "kernel",
            )
        return News("the kernel does not update the header of this image (crash_hotplug is 0)")

    def leaves(self, look: Look, now: int, patience_usec: int) -> bool:
        """Whether a stale header is left to the kernel for now.

        Its update follows the uevent (MEM_ONLINE comes after the `add`). What is still
        stale then is what it leaves: removed memory (arch/x86 builds the header from iomem
        at MEM_OFFLINE, before release_mem_region_adjustable), and updates that it drops while
        somebody holds the kexec lock.
        """
        if not (look.managed and look.state is State.STALE):
            self._stale_since = None
            return False
        if self._stale_since is None:
            self._stale_since = now
        return now - self._stale_since < patience_usec
