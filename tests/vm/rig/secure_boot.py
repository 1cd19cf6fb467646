"""Kernels signed with the keys that Debian's OVMF for tests trusts."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .errors import RigError

# The package ovmf ships both halves; the private one's passphrase is its README's.
_KEY = Path("/usr/share/ovmf/PkKek-1-snakeoil.key")
_CERTIFICATE = Path("/usr/share/ovmf/PkKek-1-snakeoil.pem")
_PASSPHRASE = "snakeoil"


def sign(kernel: Path, directory: Path) -> Path:
    """Sign a copy of the bzImage ``kernel`` with the snakeoil key, and with that only.

    The kernel verifies an image's first signature alone (pefile_strip_sig_wrapper,
    crypto/asymmetric_keys/verify_pefile.c), so the distribution's has to go.

    Returns:
        The signed kernel, in ``directory``.

    Raises:
        RigError: there is no snakeoil key here, or no sbsigntool.
    """
    if not _KEY.exists():
        raise RigError(f"{_KEY} is missing: only Debian's package ovmf has it")
    key, unsigned = directory / "snakeoil.key", directory / "vmlinuz.unsigned"
    signed = directory / "vmlinuz.signed"
    _run("openssl", "rsa", "-in", _KEY, "-passin", f"pass:{_PASSPHRASE}", "-out", key)
    unsigned.write_bytes(kernel.read_bytes())
    while "signature 1" in _run("sbverify", "--list", unsigned):
        _run("sbattach", "--remove", unsigned)
    _run("sbsign", "--key", key, "--cert", _CERTIFICATE, "--output", signed, unsigned)
    key.unlink()
    return signed


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RigError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout
