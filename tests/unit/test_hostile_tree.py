"""``plan --root`` on a tree made to break it: it ends, in a plan or in an error of ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdumphpd import cli
from tests.unit.host_fixture import CONFIG, INITRD, KERNEL, FakeHost

FILES = (
    "/proc/iomem",
    "/proc/kcore",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/cpu0/crash_notes",
    "/sys/devices/system/cpu/cpu0/crash_notes_size",
    "/sys/kernel/vmcoreinfo",
    "/sys/kernel/kexec_crash_size",
    "/sys/kernel/boot_params/data",
    str(CONFIG),
    KERNEL,
    INITRD,
)
#: Exit codes that say what is wrong; none for an error in kdumphpd itself.
FORESEEN = {0, 65, 66, 69, 77, 78}
HOSTILE_TEXT = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        (
            b"",
            b"-1",
            b"9" * 5000,
            b"f" * 17,
            b"f" * 16,
            b"ffffffffffffffff ffffffffffffffff",
            b"0-65535",
            b"0-4294967295",
            b"0" * 100_000,
            b"\xff" * 300,
            b"00000000-ffffffffffffffff : System RAM\n",
            b"00100000-ffffffffffffffff : System RAM\n10000000-ffffffff : Crash kernel\n",
            b"fffffffffffff000-ffffffffffffffff : System RAM\n"
            b"fffffffffffff000-ffffffffffffffff : Crash kernel\n",
        )
    ),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FakeHost(tmp_path_factory.mktemp("tree")).root.directory


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(FILES), HOSTILE_TEXT, min_size=1, max_size=3))
def test_any_content_of_any_file(
    tree: Path, capsys: pytest.CaptureFixture[str], contents: dict[str, bytes]
) -> None:
    kept = {name: (tree / name[1:]).rename(tree / f"{name[1:]}.kept") for name in contents}
    try:
        for name, content in contents.items():
            (tree / name[1:]).write_bytes(content)
        code = cli.main(["plan", "--root", str(tree)])
    finally:
        for name, path in kept.items():
            path.replace(tree / name[1:])
    captured = capsys.readouterr()
    assert code in FORESEEN, captured.err
    assert len(captured.err.splitlines()) == (1 if code else 0)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_bytes_of_the_headers(
    tree: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    """kcore's program headers, boot_params and the kernel's setup header, a little damaged."""
    path = tree / data.draw(st.sampled_from(("/proc/kcore", FILES[8], KERNEL)))[1:]
    offset = data.draw(st.integers(0, min(path.stat().st_size, 0x400) - 9))
    damage = data.draw(st.one_of(st.just(b"\xff" * 8), st.binary(min_size=1, max_size=8)))
    with path.open("r+b") as file:
        whole = os.pread(file.fileno(), 8, offset)
        os.pwrite(file.fileno(), damage, offset)
        try:
            code = cli.main(["plan", "--root", str(tree)])
        finally:
            os.pwrite(file.fileno(), whole, offset)
    assert code in FORESEEN, capsys.readouterr().err
    capsys.readouterr()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "make",
    [
        os.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    ],
    ids=["directory", "FIFO", "device", "loop", "1 TiB"],
)
def test_anything_in_a_file_s_place(
    tree: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], None],
) -> None:
    path = tree / name[1:]
    kept = path.rename(f"{path}.kept")
    try:
        make(path)
        code = cli.main(["plan", "--root", str(tree)])
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
        kept.replace(path)
    assert code in FORESEEN, capsys.readouterr().err
    # Where the size is not there, the reservation of iomem counts.
    if path.name in ("iomem", "kcore", "present", "possible", "vmcoreinfo", CONFIG.name):
        assert code != 0
