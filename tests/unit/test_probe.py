"""What the host permits is found out without touching what is loaded, or any limit."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdumphpd.load.probe import Allowed, limit, lockdown, probe
from tests.unit.fake_crash_hotplug import CrashHotplugKernel
from tests.unit.fake_kernel import MIB, FakeKernel

SYSCTL = "proc/sys/kernel"


@pytest.fixture
def kernel(tmp_path: Path) -> CrashHotplugKernel:
    kernel = CrashHotplugKernel.q35(tmp_path, crashkernel=64 * MIB)
    kernel.foreign_load()
    return kernel


def ask(kernel: FakeKernel) -> Allowed:
    """Probe; nothing may have happened by that."""
    loaded, calls = kernel.loaded, len(kernel.calls)
    allowed = probe(kernel.root, kernel)
    assert (kernel.loaded, len(kernel.calls)) == (loaded, calls)
    return allowed


def write(kernel: FakeKernel, name: str, content: str) -> None:
    path = kernel.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_a_free_host_permits_both(kernel: CrashHotplugKernel) -> None:
    allowed = ask(kernel)
    assert allowed.kexec_load
    assert allowed.kexec_file_load
    assert not allowed.firmware_dump


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENOMEM])
def test_a_refusal_says_which_call_and_why(kernel: CrashHotplugKernel, code: int) -> None:
    kernel.refuse("kexec_load", code)
    allowed = ask(kernel)
    assert not allowed.kexec_load
    assert allowed.kexec_load.errno == code
    assert f"kexec_load: {errno.errorcode[code]}" in allowed.kexec_load.reason
    assert allowed.kexec_file_load


def test_lockdown_is_named_where_it_can_be_read(kernel: CrashHotplugKernel) -> None:
    kernel.lock_down("integrity")
    assert "locked down (integrity)" in ask(kernel).kexec_load.reason
    (kernel.directory / "sys/kernel/security/lockdown").unlink()
    assert lockdown(kernel.root) is None
    assert "lockdown, another security module" in ask(kernel).kexec_load.reason


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
        ("none integrity [confidentiality]\n", "confidentiality"),
        ("", None),
    ],
)
def test_lockdown_is_the_marked_word(
    kernel: CrashHotplugKernel, text: str, mode: str | None
) -> None:
    write(kernel, "sys/kernel/security/lockdown", text)
    assert lockdown(kernel.root) == mode


def test_a_limit_is_not_used_up_by_asking(kernel: CrashHotplugKernel) -> None:
    kernel.load_limit = 3
    for _ in range(5):
        assert ask(kernel).kexec_load
    assert kernel.load_limit == 3
    kernel.refuse("kexec_load", errno.ENOSYS)
    assert not ask(kernel).kexec_load, "asked by way of the other kind of image"


def test_with_both_limits_set_nothing_is_asked(kernel: CrashHotplugKernel) -> None:
    kernel.load_limit = 3
    write(kernel, f"{SYSCTL}/kexec_load_limit_reboot", "1\n")
    kernel.refuse("kexec_load", errno.ENOSYS)
    assert ask(kernel) == Allowed()
    assert limit(kernel.root, "reboot") == 1


def test_a_limit_that_is_used_up_permits_nothing(kernel: CrashHotplugKernel) -> None:
    kernel.load_limit = 0
    allowed = ask(kernel)
    assert "kexec_load_limit_panic" in allowed.kexec_load.reason
    assert not allowed.kexec_file_load


def test_loading_that_is_disabled_permits_nothing(kernel: CrashHotplugKernel) -> None:
    write(kernel, f"{SYSCTL}/kexec_load_disabled", "1\n")
    allowed = ask(kernel)
    assert "kexec_load_disabled" in allowed.kexec_load.reason
    assert not allowed.kexec_file_load
    write(kernel, f"{SYSCTL}/kexec_load_disabled", "0\n")
    assert ask(kernel).kexec_load


def test_a_firmware_dump_is_not_ours_to_load(kernel: CrashHotplugKernel) -> None:
    write(kernel, "sys/kernel/fadump_enabled", "1\n")
    assert "fadump" in ask(kernel).firmware_dump
    write(kernel, "sys/kernel/fadump_enabled", "0\n")
    assert not ask(kernel).firmware_dump


def test_a_missing_capability_is_left_for_the_load_to_say(kernel: CrashHotplugKernel) -> None:
    kernel.permitted = False
    assert ask(kernel) == Allowed()
