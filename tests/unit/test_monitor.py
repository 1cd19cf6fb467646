"""The edge to netlink: a fake on a real descriptor, and the kernel itself."""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdumphpd.events import monitor as edge
from kdumphpd.events.monitor import Drained, Uevent, UeventMonitor, kernel_monitor
from tests.unit.fake_monitor import FakeMonitor

# Writing an action to this file has the kernel send a uevent
# (Documentation/ABI/testing/sysfs-uevent).
CPU0_UEVENT = Path("/sys/devices/system/cpu/cpu0/uevent")


@pytest.fixture
def fake() -> Iterator[FakeMonitor]:
    monitor = FakeMonitor()
    yield monitor
    monitor.close()


def readable(source: UeventMonitor) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        return bool(selector.select(0))


def test_uevents_come_in_order_and_once(fake: FakeMonitor) -> None:
    source = UeventMonitor(fake)
    assert not readable(source)
    fake.emit("add", "memory32")
    fake.emit("online", "cpu3", "cpu")
    assert readable(source)
    assert source.drain() == Drained(
        (Uevent("add", "memory", "memory32", 1), Uevent("online", "cpu", "cpu3", 2)), lost=False
    )
    assert not readable(source)
    assert source.drain() == Drained((), lost=False)


def test_overrun_is_reported_with_what_is_left(fake: FakeMonitor) -> None:
    source = UeventMonitor(fake)
    fake.emit("add", "memory32")
    fake.overrun()
    fake.emit("add", "memory40")
    drained = source.drain()
    assert drained.lost
    assert [one.name for one in drained.uevents] == ["memory32", "memory40"]
    assert not source.drain().lost


def test_storm_is_taken_in_parts(fake: FakeMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "MAX_UEVENTS_PER_DRAIN", 4)
    source = UeventMonitor(fake)
    for number in range(6):
        fake.emit("add", f"memory{number}")
    assert len(source.drain().uevents) == 4
    assert readable(source)
    assert len(source.drain().uevents) == 2


def test_uevent_without_action_or_subsystem(fake: FakeMonitor) -> None:
    fake.emit(None, "cpu0", None)
    assert UeventMonitor(fake).drain().uevents == (Uevent("", "", "cpu0", 1),)


@pytest.mark.parametrize("number", [errno.EBADF, None])
def test_other_errors_are_not_swallowed(number: int | None, fake: FakeMonitor) -> None:
    class Broken:
        def fileno(self) -> int:
            return fake.fileno()

        def poll(self, timeout: float | None = None) -> None:
            raise OSError("Error while polling fd") if number is None else OSError(number, "bad")

    with pytest.raises(OSError, match=r"bad|polling"):
        UeventMonitor(Broken()).drain()


def test_close_leaves_no_descriptor(fake: FakeMonitor) -> None:
    before = set(os.listdir("/proc/self/fd"))
    UeventMonitor(fake).close()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def netlink() -> Iterator[UeventMonitor]:
    if os.geteuid() != 0 or not os.access(CPU0_UEVENT, os.W_OK):
        pytest.skip("needs root and a writable sysfs")
    source = UeventMonitor(kernel_monitor())
    CPU0_UEVENT.write_text("change")
    if not readable(source):
        pytest.skip("the kernel's uevents do not reach this network namespace")
    source.drain()
    yield source
    source.close()


def test_uevent_of_the_kernel(netlink: UeventMonitor) -> None:
    CPU0_UEVENT.write_text("change")
    drained = netlink.drain()
    assert not drained.lost
    mine = [one for one in drained.uevents if one.name == "cpu0"]
    assert [(one.action, one.subsystem) for one in mine] == [("change", "cpu")]
    assert mine[0].seqnum > 0


def test_overrun_by_the_kernel(netlink: UeventMonitor) -> None:
    with socket.socket(fileno=os.dup(netlink.fileno())) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(50):
        CPU0_UEVENT.write_text("change")
    drained = netlink.drain()
    assert drained.lost
    assert 0 < len(drained.uevents) < 50
    assert not readable(netlink), "the error must not stay and keep the loop awake"
    CPU0_UEVENT.write_text("change")
    again = netlink.drain()
    assert not again.lost
    assert [one.name for one in again.uevents] == ["cpu0"]


def test_receive_buffer_holds_a_big_dimm() -> None:
    try:
        monitor = kernel_monitor()
    except OSError as error:
        pytest.skip(f"no uevent socket: {error}")
    with socket.socket(fileno=os.dup(monitor.fileno())) as plain:
        size = plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert size >= 2 * min(allowed, edge.RECEIVE_BUFFER_BYTES)
