"""The guests we boot: one frozen row per distribution release."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guest:
    """A Debian release as a guest.

    Attributes:
        name: short name, part of the cached files' names.
        suite: Debian suite.
        pockets: suffixes of ``suite`` in the main archive; security has its own.
        kernel_package: package that pulls in a kernel and its modules.
        python: version of the suite's /usr/bin/python3.
        wheels: what the product needs and the suite lacks, from PyPI.
    """

    name: str
    suite: str
    pockets: tuple[str, ...]
    kernel_package: str
    python: str
    wheels: tuple[str, ...]

    @property
    def site_packages(self) -> str:
        """Where the guest's Python looks before it looks at Debian's packages."""
        return f"/usr/local/lib/python{self.python}/dist-packages"


BOOKWORM = Guest(
    name="bookworm",
    suite="bookworm",
    pockets=("", "-updates"),
    kernel_package="linux-image-amd64",
    python="3.11",
    wheels=("pydantic>=2",),
)

PACKAGES = (
    "busybox-static",
    "kexec-tools",
    "kmod",
    "makedumpfile",
    "procps",
    "python3",
    "python3-pyudev",
    "python3-structlog",
    "python3-systemd",
    "qemu-guest-agent",
    "systemd",
    "systemd-sysv",
    "udev",
)
