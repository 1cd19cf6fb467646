"""What this host permits: asked of the kernel, without touching what is loaded.

Each question is a call that the kernel refuses in any case, but for a reason that
comes after permission, LSM and lockdown, and before the kexec lock and the loaded
image (see `kdumphpd.load.syscalls.Kernel`). A version says nothing: RHEL builds
without kexec_load, a unit's seccomp filter answers ENOSYS, lockdown may come later.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from kdumphpd.errors import KdumphpdError
from kdumphpd.load.syscalls import KEXEC_ARCH_X86_64, KEXEC_FILE_ON_CRASH, KEXEC_ON_CRASH, Kernel
from kdumphpd.machine.files import Root

_SYSCTL = "/proc/sys/kernel"
_LOCKDOWN = "/sys/kernel/security/lockdown"
# PowerPC only; newer kernels first (Documentation/arch/powerpc/firmware-assisted-dump.rst).
_FADUMP = ("/sys/kernel/fadump/enabled", "/sys/kernel/fadump_enabled")

_MEANINGS = {
    errno.ENOSYS: "this kernel, or the unit's system call filter, has none",
    errno.EACCES: "an IMA policy or Secure Boot demands a signature, which only files can have",
}


@dataclass(frozen=True)
class Access:
    """Whether a system call is permitted; ``reason`` and ``errno`` say why it is not."""

    reason: str = ""
    errno: int = 0

    def __bool__(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Allowed:
    """What the host permits.

    Attributes:
        kexec_load: of segments that we made.
        kexec_file_load: of files; the kernel may still refuse a certain file.
        firmware_dump: why the dump is not the crash kernel's business; empty if it is.
    """

    kexec_load: Access = Access()
    kexec_file_load: Access = Access()
    firmware_dump: str = ""


def probe(root: Root, kernel: Kernel) -> Allowed:
    """Ask what is permitted now; changes nothing, and takes no lock.

    Where both limits (kernel.kexec_load_limit_panic and _reboot, since 6.3) are set, each
    question would use one up: then the calls count as permitted until one is refused.
    """
    if not kernel.may_load():
        # The loads themselves say what to do about it.
        return Allowed()
    fadump = root.first_existing(*_FADUMP)
    if fadump is not None and root.read_text(fadump) == "1":
        return Allowed(firmware_dump="the firmware dumps this host (fadump)")
    closed = _closed(root)
    if closed is not None:
        return Allowed(closed, closed)
    kind = _unlimited_kind(root)
    if kind is None:
        return Allowed()
    load_flags = KEXEC_ARCH_X86_64 | (KEXEC_ON_CRASH if kind == "panic" else 0)
    file_flags = KEXEC_FILE_ON_CRASH if kind == "panic" else 0
    return Allowed(
        _access("kexec_load", kernel.kexec_load_refusal, load_flags, root),
        _access("kexec_file_load", kernel.kexec_file_load_refusal, file_flags, root),
    )


def lockdown(root: Root) -> str | None:
    """``integrity``, ``confidentiality`` or ``none``; None where that cannot be read."""
    try:
        text = root.read_text(_LOCKDOWN)
    except KdumphpdError:
        # securityfs is not mounted in many namespaces.
        return None
    _, found, rest = text.partition("[")
    return rest.partition("]")[0] if found else None


def _closed(root: Root) -> Access | None:
    """What both calls meet in kernel/kexec_core.c, kexec_load_permitted."""
    if _sysctl(root, "kexec_load_disabled") == 1:
        return Access("kernel.kexec_load_disabled is 1", errno.EPERM)
    if limit(root, "panic") == 0:
        return Access("kernel.kexec_load_limit_panic is used up", errno.EPERM)
    return None


def _unlimited_kind(root: Root) -> str | None:
    """Kind of image whose limit a question does not use up; the other checks are the same."""
    return next((kind for kind in ("panic", "reboot") if limit(root, kind) is None), None)


def limit(root: Root, kind: str) -> int | None:
    """How many more loads of ``kind`` (panic, reboot) are permitted; None for any number."""
    number = _sysctl(root, f"kexec_load_limit_{kind}")
    return None if number is None or number < 0 else number


def _sysctl(root: Root, name: str) -> int | None:
    try:
        return int(root.read_text(f"{_SYSCTL}/{name}"))
    except (KdumphpdError, ValueError):
        return None  # before 6.3, or hidden: there is no limit that we could see


def _access(name: str, ask: Callable[[int], int], flags: int, root: Root) -> Access:
    number = ask(flags)
    if number in (0, errno.EINVAL):
        return Access()
    meaning = _MEANINGS.get(number, "")
    if number == errno.EPERM:
        mode = lockdown(root)
        meaning = (
            f"the kernel is locked down ({mode})"
            if mode not in (None, "none")
            else ("lockdown, another security module or the unit's system call filter forbids it")
        )
    code = errno.errorcode.get(number, str(number))
    return Access(f"{name}: {code}{f', {meaning}' if meaning else ''}", number)
