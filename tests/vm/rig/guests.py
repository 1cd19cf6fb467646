"""The guests we boot: one frozen row per distribution release."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Guest:
    """A Debian release as a guest.

    Attributes:
        name: short name, part of the cached files' names.
        suite: Debian suite.
        pockets: suffixes of ``suite`` in the main archive.
        security: whether the suite has security updates in an archive of their own.
        kernel_packages: what brings a kernel and its modules.
        python: version of the suite's /usr/bin/python3.
        packages: what the product needs from the suite, and tests of this guest alone.
        wheels: what the product needs and the suite lacks or has too old, from PyPI.
        archives: packages that some tests unpack; they lie in /var/lib/rig as .deb files.
        merge_usr: whether the suite's packages do not merge /usr by themselves.
        disguised: whether software emulation must pass for a hypervisor (options.py).
    """

    name: str
    suite: str
    pockets: tuple[str, ...]
    security: bool
    kernel_packages: tuple[str, ...]
    python: str
    packages: tuple[str, ...]
    wheels: tuple[str, ...]
    archives: tuple[str, ...] = ()
    merge_usr: bool = False
    disguised: bool = False

    @property
    def site_packages(self) -> str:
        """Where the guest's Python looks before it looks at Debian's packages."""
        return f"/usr/local/lib/python{self.python}/dist-packages"


_PYTHON_PACKAGES = ("python3-pyudev", "python3-structlog", "python3-systemd")

BULLSEYE = Guest(
    name="bullseye",
    suite="bullseye",
    pockets=("", "-updates"),
    security=True,
    kernel_packages=("linux-image-amd64",),
    python="3.9",
    packages=("python3-pyudev", "python3-systemd"),
    wheels=("pydantic>=2", "structlog>=21.2", "tomli>=1.1"),
    merge_usr=True,
)

BOOKWORM = Guest(
    name="bookworm",
    suite="bookworm",
    pockets=("", "-updates"),
    security=True,
    kernel_packages=("linux-image-amd64",),
    python="3.11",
    packages=_PYTHON_PACKAGES,
    wheels=("pydantic>=2",),
    # Installed, its udev rule and its initrd would be part of every test.
    archives=("kdump-tools",),
)

# A host of a fleet, and its collector: what the Ansible role finds on a server, and what
# packaging/FLEET.md has installed. Their units would be part of every test.
FLEET = replace(
    BOOKWORM,
    name="fleet",
    packages=(
        *_PYTHON_PACKAGES,
        "jq",
        "openssl",
        "python3-apt",
        "python3-packaging",
        "python3-venv",
        "systemd-journal-remote",
    ),
    archives=(),
)

TRIXIE = Guest(
    name="trixie",
    suite="trixie",
    pockets=("", "-updates"),
    security=True,
    kernel_packages=("linux-image-amd64",),
    python="3.13",
    packages=_PYTHON_PACKAGES,
    wheels=("pydantic>=2",),
    disguised=True,
)

# What kdump-utils' own scripts need: dracut for its functions and for the initrd, keyctl
# and sudo for LUKS (kdumpctl calls kexec through it in a unit), hexdump and gawk.
_FOR_KDUMP_UTILS = (
    "binutils",
    "bsdextrautils",
    "dracut-core",
    "gawk",
    "keyutils",
    "squashfs-tools",
    "sudo",
    "zstd",
)

KDUMP_UTILS = replace(
    BOOKWORM,
    name="kdump-utils",
    packages=(*_PYTHON_PACKAGES, *_FOR_KDUMP_UTILS),
    archives=(),
)

# With kernels that update the header themselves.
KDUMP_UTILS_TRIXIE = replace(
    TRIXIE, name="kdump-utils-trixie", packages=(*_PYTHON_PACKAGES, *_FOR_KDUMP_UTILS)
)

SID = Guest(
    name="sid",
    suite="sid",
    pockets=("",),
    security=False,
    kernel_packages=("linux-image-amd64",),
    python="3.14",
    packages=_PYTHON_PACKAGES,
    wheels=("pydantic>=2",),
    disguised=True,
)

GUESTS = (BULLSEYE, BOOKWORM, TRIXIE, SID)

PACKAGES = (
    "busybox-static",
    "kexec-tools",
    "kmod",
    "makedumpfile",
    "procps",
    "python3",
    "qemu-guest-agent",
    "rpm",
    "systemd",
    "systemd-sysv",
    "udev",
)
