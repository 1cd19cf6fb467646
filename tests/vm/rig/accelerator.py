"""KVM where it really runs a kernel, software emulation everywhere else."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

from .progress import log

OVERRIDE = "KDUMPHPD_VM_ACCEL"
_PROBE_SECONDS = 15


@functools.cache
def choose(kernel: Path) -> str:
    """Return QEMU's ``-accel`` argument for this host.

    A /dev/kvm that opens is no proof (nested or restricted hosts fail on the first
    vCPU), so ``kernel`` must get as far as its first line.
    """
    tcg = "tcg,thread=multi"
    forced = os.environ.get(OVERRIDE)
    if forced:
        return tcg if forced == "tcg" else forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return tcg
    command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "max", "-m", "512M", "-nic", "none"]
    command += ["-display", "none", "-no-reboot", "-kernel", str(kernel), "-serial", "stdio"]
    command += ["-append", "console=ttyS0 panic=-1"]
    try:
        printed = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
    works = re.search(rb"Linux version \d", printed) is not None
    log.info("accelerator: %s", "kvm" if works else "tcg (KVM does not run a kernel here)")
    return "kvm" if works else tcg
