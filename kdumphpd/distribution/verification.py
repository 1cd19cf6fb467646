"""Whether somebody counts on the kernel's verifying the crash kernel, and what follows.

kexec_file_load(2) hands files to the kernel, which can verify a signature, and measure or
appraise by an IMA policy; kexec_load(2) hands over memory, of which only our purgatory
checks the digest. kdump asks for the first with ``-s`` in KEXEC_ARGS, which is the default
on x86_64. A host that enforces something with it keeps it.
"""

from __future__ import annotations

import re

from kdumphpd.errors import KdumphpdError
from kdumphpd.machine.files import Root

# Variable, GUID of EFI_GLOBAL_VARIABLE; four bytes of attributes come before the value
# (Documentation/filesystems/efivarfs.rst).
_EFIVARS = "/sys/firmware/efi/efivars"
_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_IMA_POLICY = "/sys/kernel/security/ima/policy"
# KEXEC_KERNEL_CHECK, KEXEC_INITRAMFS_CHECK, KEXEC_CMDLINE: Documentation/ABI/testing/ima_policy.
_KEXEC_RULE = re.compile(r"^\s*(measure|appraise|audit|hash)\b.*\bfunc=KEXEC_", re.MULTILINE)
# src/core/ima-setup.c of systemd.
_SYSTEMD_POLICY = "/etc/ima/ima-policy"
# security/integrity/ima/ima_policy.c, policy_setup: names are separated by "|" or blanks.
_SECURE_BOOT_POLICY = re.compile(r"\bima_policy=(\S*\|)?secure_boot\b")


def verifier(root: Root) -> str:
    """Who verifies or measures what kexec_file_load(2) loads; empty if nobody does."""
    if _variable(root, "SecureBoot") == 1 and _variable(root, "SetupMode") != 1:
        return "Secure Boot is on"
    return _ima(root)


def no_kexec_load(syscall: str, arguments: tuple[str, ...], verified_by: str) -> str:
    """Why kexec_load(2) is not used; empty if it may be.

    Args:
        syscall: ``[image] syscall``.
        arguments: the options that kdump passes to kexec.
        verified_by: what `verifier` says.
    """
    if syscall == "kexec_file_load":
        return '[image] syscall is "kexec_file_load"'
    if syscall == "kexec_load" or not asks_for_file_load(arguments) or not verified_by:
        return ""
    return f"kdump's KEXEC_ARGS has -s, and {verified_by}"


def not_followed(syscall: str, arguments: tuple[str, ...], verified_by: str) -> str:
    """What to tell where ``-s`` is not followed unasked; arguments as for `no_kexec_load`."""
    if syscall != "auto" or not asks_for_file_load(arguments) or verified_by:
        return ""
    return (
        "kdump's KEXEC_ARGS has -s, but kexec_load is used: the kernel does not verify the"
        ' image then; [image] syscall = "kexec_file_load" follows -s'
    )


def asks_for_file_load(arguments: tuple[str, ...]) -> bool:
    """Whether kexec's options ask for kexec_file_load(2); the last one counts."""
    asked = False
    for one in arguments:
        if one in ("-s", "--kexec-file-syscall"):
            asked = True
        elif one in ("-c", "--kexec-syscall", "-a", "--kexec-syscall-auto"):
            asked = False
    return asked


def _variable(root: Root, name: str) -> int | None:
    try:
        content = root.read_bytes(f"{_EFIVARS}/{name}-{_GLOBAL}")
    except KdumphpdError:
        return None
    return content[4] if len(content) == 5 else None


def _ima(root: Root) -> str:
    if not root.exists(_IMA_POLICY):
        return ""
    try:
        policy = root.read_text(_IMA_POLICY)
    except KdumphpdError:
        # Without CONFIG_IMA_READ_POLICY. Then what systemd loads at boot tells, and
        # which of the kernel's own policies the command line names.
        policy = _text(root, _SYSTEMD_POLICY)
        if _SECURE_BOOT_POLICY.search(_text(root, "/proc/cmdline")):
            return "ima_policy=secure_boot is on the kernel's command line"
    return "an IMA policy has a rule for kexec" if _KEXEC_RULE.search(policy) else ""


def _text(root: Root, name: str) -> str:
    try:
        return root.read_text(name)
    except KdumphpdError:
        return ""
