"""The command rung: a command that loads, one that fails, one that hangs; real processes."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest

from kdumphpd import processes
from kdumphpd.errors import LoadError
from kdumphpd.load.command import CommandLoader, command_of
from kdumphpd.load.keeper import State
from kdumphpd.load.ladder import Rung
from kdumphpd.load.loader import NotDoneError
from kdumphpd.machine.files import Root
from tests.unit.host_fixture import DIMM
from tests.unit.hotplug_host import HotplugHost


@pytest.fixture
def host(tmp_path: Path) -> HotplugHost:
    """Loaded by another program; neither system call is there for us."""
    host = HotplugHost(tmp_path)
    host.kernel.foreign_load()
    for call in ("kexec_load", "kexec_file_load"):
        host.kernel.refuse(call, errno.EPERM)
    return host


def loader(host: HotplugHost, *words: str, limit: float = 20) -> CommandLoader:
    return CommandLoader(host.root, host.open().reader, words, host.clock, limit)


def test_what_it_loaded_is_read_back_and_known_again(host: HotplugHost) -> None:
    host.configure(more='[update]\ncommand = "/bin/true now"\n')
    parts = host.open()
    mended = parts.keeper.load(parts.reader.snapshot())
    assert mended.loaded
    assert mended.loaded.backend == "command"
    assert not mended.loaded.problem
    assert [rung for rung, _ in mended.ruled_out] == [Rung.DELTA, Rung.FULL, Rung.FILE]
    keeper = host.open().keeper
    look = keeper.look()
    assert (look.state, look.ours) == (State.CURRENT, True)
    assert keeper.matches(look)


def test_low_memory_in_its_header_is_no_change(host: HotplugHost) -> None:
    host.configure(more='[update]\ncommand = "/bin/true now"\n')
    keeper = host.open().keeper
    keeper.load(keeper.look().machine)
    host.kernel.hot_add_memory(DIMM)
    assert str(keeper.look().change) == f"memory {DIMM}, 2 GiB, 16 blocks added"


def test_a_stale_image_that_it_leaves_is_said(host: HotplugHost) -> None:
    host.kernel.hot_add_memory(DIMM)
    parts = host.open()
    loaded = loader(host, "/bin/true").load(parts.reader.snapshot())
    assert "does not describe" in loaded.problem


def test_failure_names_the_command_its_status_and_its_last_words(host: HotplugHost) -> None:
    words = ("/bin/sh", "-c", "echo first; echo 'no kernel found' >&2; exit 3")
    with pytest.raises(LoadError, match=r"status 3; no kernel found") as caught:
        loader(host, *words).load(host.open().reader.snapshot())
    assert "/bin/sh" in str(caught.value)


def test_one_that_hangs_is_ended_with_its_children(host: HotplugHost) -> None:
    words = ("/bin/sh", "-c", "sleep 60 & sleep 60")
    with pytest.raises(LoadError, match=r"longer than 0\.2 s"):
        loader(host, *words, limit=0.2).load(host.open().reader.snapshot())


def test_one_that_is_not_there_changed_nothing(host: HotplugHost) -> None:
    with pytest.raises(NotDoneError, match=r"\[update\] command"):
        loader(host, "/no/such/command").load(host.open().reader.snapshot())


def test_one_that_leaves_nothing_loaded_has_failed(host: HotplugHost) -> None:
    host.kernel.unload()
    with pytest.raises(LoadError, match="left nothing loaded"):
        loader(host, "/bin/true").load(host.open().reader.snapshot())


def test_under_systemd_it_is_a_unit_of_its_own(
    host: HotplugHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a systemd-run that says what it was asked to run."""
    host.root.path("/run/systemd/system").mkdir(parents=True)
    runner = tmp_path / "bin" / "systemd-run"
    runner.parent.mkdir()
    runner.write_text('#!/bin/sh\nprintf "<%s> " "$@"\nexit 1\n')
    runner.chmod(0o755)
    monkeypatch.setattr(processes, "ENVIRONMENT", {"PATH": str(runner.parent)})
    with pytest.raises(LoadError, match="/opt/load 'the image' failed") as caught:
        loader(host, "/opt/load", "the image", limit=7).load(host.open().reader.snapshot())
    said = str(caught.value)
    assert "<--unit=kdumphpd-command.service>" in said
    assert "<--property=TimeoutStartSec=7>" in said
    assert said.endswith("<--> </opt/load> <the image>")


@pytest.mark.parametrize("code", [0, 3])
def test_luks_keys_of_the_loaded_image_are_used_again(host: HotplugHost, code: int) -> None:
    """As kdump-udev-throttler has it; kdumpctl restart asks for them anew."""
    reuse = host.root.path("/sys/kernel/config/crash_dm_crypt_keys/reuse")
    reuse.parent.mkdir(parents=True)
    reuse.write_text("0\n")
    seen = host.root.path("/seen")
    words = ("/bin/sh", "-c", f"cat {reuse} >{seen}; exit {code}")
    with contextlib.suppress(LoadError):
        loader(host, *words).load(host.open().reader.snapshot())
    assert (seen.read_text(), reuse.read_text()) == ("1\n", "0\n")


@pytest.mark.parametrize(
    ("there", "configured", "expected"),
    [
        ([], None, ()),
        (["/usr/bin/kdumpctl"], None, ("kdumpctl", "reload")),
        (["/usr/sbin/kdump-config"], None, ("kdump-config", "reload")),
        (["/usr/bin/kdumpctl"], "", ()),
        (["/usr/bin/kdumpctl"], "/opt/load 'the image'", ("/opt/load", "the image")),
    ],
)
def test_the_command_is_the_configured_one_or_the_hosts_own(
    tmp_path: Path, there: list[str], configured: str | None, expected: tuple[str, ...]
) -> None:
    root = Root(tmp_path)
    for name in there:
        root.path(name).parent.mkdir(parents=True)
        root.path(name).write_text("")
    assert command_of(root, configured) == expected
