"""Images that we had loaded but did not make: by kexec_file_load(2) or by a command.

They have no parameter block of ours. That such an image is still the armed one is seen
by its witness: the digest of the reservation's last MiB, where every loader writes
(measured for kexec-tools and for the kernel). The kernel's and kexec-tools' purgatories
lie there, and they hold the digest of all that would be started; so equal witnesses
mean equal images. The header is left out where it lies there: it changes with hotplug.

It is remembered in /run, which ends with the boot that it is about.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from kdumphpd.audit.read_back import Memory
from kdumphpd.errors import KdumphpdError, LoadError
from kdumphpd.machine import trust
from kdumphpd.machine.files import Root
from kdumphpd.machine.ranges import Range, subtract

STATE = "/run/kdumphpd/image.json"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_LIMIT = 4096
_TAIL = 1 << 20
_FIELDS = {
    "boot_id": str,
    "backend": str,
    "header": int,
    "header_size": int,
    "witness": str,
    "image": str,
}


@dataclass(frozen=True)
class Remembered:
    """One image that was loaded for us.

    Attributes:
        boot_id: of the boot it was loaded in.
        backend: ``file`` or ``command``.
        header: address of its elfcorehdr.
        header_size: bytes that the header may come to fill.
        witness: digest of the reservation's end, hexadecimal.
        image: digest of the kernel, initrd and command line it was made of, hexadecimal;
            empty where that is the command's business.
    """

    boot_id: str
    backend: str
    header: int
    header_size: int
    witness: str
    image: str

    def is_loaded(self, memory: Memory, reservation: Range) -> bool:
        """Whether it is still there; says nothing of whether anything is armed."""
        place = Range(self.header, self.header + self.header_size - 1)
        return reservation.contains(place) and self.witness == witness(memory, reservation, place)


def witness(memory: Memory, reservation: Range, header: Range | None = None) -> str:
    """The digest of the last MiB of ``reservation`` without ``header``."""
    end = Range(max(reservation.start, reservation.end + 1 - _TAIL), reservation.end)
    digest = hashlib.sha256()
    for piece in subtract((end,), (header,) if header else ()):
        digest.update(memory.read(piece.start, piece.size))
    return digest.hexdigest()


def boot_id(root: Root) -> str:
    """What tells this boot from others; empty if the kernel does not say."""
    try:
        return root.read_text(_BOOT_ID)
    except KdumphpdError:
        return ""


def store(root: Root, image: Remembered) -> None:
    """Write it down, in one step.

    Raises:
        LoadError: /run/kdumphpd cannot be written.
    """
    path = root.path(STATE)
    beside = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        beside.write_text(json.dumps(asdict(image)) + "\n", encoding="ascii")
        os.replace(beside, path)
    except OSError as error:
        raise LoadError(
            f"{path}: {error.strerror}", "the image will not be recognised after a restart"
        ) from error


def forget(root: Root) -> None:
    """An image of ours has taken its place."""
    with contextlib.suppress(OSError):
        root.path(STATE).unlink()


def recall(root: Root) -> Remembered | None:
    """What was written down in this boot; None if nothing was, or it is damaged."""
    found = _parse(_read(root.path(STATE)))
    return found if found is not None and found.boot_id == boot_id(root) else None


def _read(path: Path) -> bytes:
    try:
        fd = trust.open_regular(path, follow=False, check_owner=True)
    except (OSError, trust.DistrustError):
        return b""
    try:
        return trust.read_limited(fd, _LIMIT)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _parse(content: bytes) -> Remembered | None:
    try:
        table = json.loads(content) if len(content) <= _LIMIT else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, dict) or table.keys() != _FIELDS.keys():
        return None
    # Not isinstance: it takes a bool for an int.
    if any(type(table[name]) is not kind for name, kind in _FIELDS.items()):
        return None
    image = Remembered(**table)
    sane = 0 <= image.header < 1 << 63 and 0 < image.header_size < 1 << 32
    return image if sane else None
