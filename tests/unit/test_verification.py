"""Whether the kernel's verification counts on a host, and whether -s is followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.distribution.verification import (
    asks_for_file_load,
    no_kexec_load,
    not_followed,
    verifier,
)
from kdumphpd.machine.files import Root

EFIVARS = "sys/firmware/efi/efivars"
GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
POLICY = "sys/kernel/security/ima/policy"
MEASURE = "measure func=FILE_CHECK mask=^MAY_READ euid=0\nmeasure func=KEXEC_KERNEL_CHECK\n"
APPRAISE = "appraise func=KEXEC_INITRAMFS_CHECK appraise_type=imasig\n"


def variable(root: Root, name: str, content: bytes) -> None:
    path = root.path(f"{EFIVARS}/{name}-{GUID}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("secure_boot", "setup_mode", "counts"),
    [
        (b"\6\0\0\0\1", b"\6\0\0\0\0", True),
        (b"\6\0\0\0\1", None, True),
        (b"\6\0\0\0\1", b"\6\0\0\0\1", False),
        (b"\6\0\0\0\0", b"\6\0\0\0\0", False),
        (b"\1", None, False),
        (None, None, False),
    ],
)
def test_secure_boot(
    tmp_path: Path, secure_boot: bytes | None, setup_mode: bytes | None, counts: bool
) -> None:
    root = Root(tmp_path)
    for name, content in (("SecureBoot", secure_boot), ("SetupMode", setup_mode)):
        if content is not None:
            variable(root, name, content)
    assert bool(verifier(root)) == counts


@pytest.mark.parametrize(
    ("policy", "counts"),
    [
        (MEASURE, True),
        (APPRAISE, True),
        ("dont_measure func=KEXEC_KERNEL_CHECK\n", False),
        ("measure func=FILE_CHECK mask=MAY_READ\n", False),
        ("", False),
    ],
)
def test_ima_policy(tmp_path: Path, policy: str, counts: bool) -> None:
    path = tmp_path / POLICY
    path.parent.mkdir(parents=True)
    path.write_text(policy)
    assert bool(verifier(Root(tmp_path))) == counts


@pytest.mark.parametrize(
    ("command_line", "loaded_at_boot", "counts"),
    [
        ("ro ima_policy=tcb|secure_boot", "", True),
        ("ro ima_policy=secure_boot", "", True),
        ("ro ima_policy=tcb", "", False),
        ("ro xima_policy=secure_boots", "", False),
        ("ro", MEASURE, True),
    ],
)
def test_ima_policy_that_the_kernel_does_not_show(
    tmp_path: Path, command_line: str, loaded_at_boot: str, counts: bool
) -> None:
    """Without CONFIG_IMA_READ_POLICY root cannot read it either; here it is a directory."""
    (tmp_path / POLICY).mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text(command_line)
    (tmp_path / "etc/ima").mkdir(parents=True)
    (tmp_path / "etc/ima/ima-policy").write_text(loaded_at_boot)
    assert bool(verifier(Root(tmp_path))) == counts


def test_without_ima_and_efi_nobody_verifies(tmp_path: Path) -> None:
    assert verifier(Root(tmp_path)) == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("syscall", "asked", "verified", "used"),
    [
        ("auto", True, True, False),
        ("auto", True, False, True),
        ("auto", False, True, True),
        ("auto", False, False, True),
        ("kexec_load", True, True, True),
        ("kexec_file_load", False, False, False),
        ("kexec_file_load", True, False, False),
    ],
)
def test_whether_kexec_load_is_used(syscall: str, asked: bool, verified: bool, used: bool) -> None:
    arguments, by = ("-s",) if asked else (), "Secure Boot is on" if verified else ""
    assert bool(no_kexec_load(syscall, arguments, by)) != used


@given(
    syscall=st.sampled_from(["auto", "kexec_load", "kexec_file_load"]),
    arguments=st.lists(st.sampled_from(["-s", "-c", "-a", "-d"]), max_size=4).map(tuple),
    by=st.sampled_from(["", "Secure Boot is on"]),
)
def test_no_verification_is_taken_away_in_silence(
    syscall: str, arguments: tuple[str, ...], by: str
) -> None:
    used = not no_kexec_load(syscall, arguments, by)
    if used and asks_for_file_load(arguments):
        assert syscall == "kexec_load" or not_followed(syscall, arguments, by)
        assert syscall == "kexec_load" or not by


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [((), False), (("-s",), True), (("-s", "-c"), False), (("-d", "--kexec-file-syscall"), True)],
)
def test_the_last_option_counts(arguments: tuple[str, ...], asked: bool) -> None:
    assert asks_for_file_load(arguments) == asked
