"""A virtual machine as a test tells its story: boot, plug, unplug, crash, collect."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from qemu.qmp import EventListener

from . import accelerator, firmware, initramfs, secure_boot
from .console import Console
from .control import Control
from .errors import RigError
from .gdbstub import PhysicalMemory
from .guest_image import GuestImage
from .guest_shell import GuestShell
from .options import MIB, MachineOptions, Sockets, disguised, qemu_command
from .overlay import Overlay
from .progress import log, step

# Limits for software emulation on a busy host: some ten times what we saw.
BOOT_SECONDS = 240
PLUG_SECONDS = 60
UNPLUG_SECONDS = 120
CAPTURE_BEGIN_SECONDS = 120
CAPTURE_END_SECONDS = 240
QEMU_END_SECONDS = 30


@dataclass(frozen=True)
class Dimm:
    """A hot-added DIMM: ``start`` and ``end`` (inclusive) are its physical addresses."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Capture:
    """What the capture kernel saved.

    Attributes:
        vmcore: ELF dump by makedumpfile, all but zero pages.
        header: first 4 MiB of /proc/vmcore as it was: ELF header, notes, PT_LOADs.
        dmesg: the crashed kernel's log.
        seconds: from the crash to the capture kernel's power-off.
    """

    vmcore: Path
    header: Path
    dmesg: Path
    seconds: float


class Machine:
    """A guest in QEMU; it runs from ``with`` to the end of the block, never longer."""

    def __init__(
        self,
        image: GuestImage,
        directory: Path,
        overlay: Overlay | None = None,
        options: MachineOptions | None = None,
    ) -> None:
        """Prepare a machine that keeps its console and vmcore in ``directory``."""
        self.image = image
        self.options = options or MachineOptions()
        self.directory = directory.resolve()
        self._overlay = overlay
        self._process: subprocess.Popen[bytes] | None = None
        self._dimms = 0
        self.console = Console(self.directory / "console.log", self.is_running)

    def __enter__(self) -> Machine:
        self._sockets = Sockets(Path(tempfile.mkdtemp(prefix="vm-rig-")))
        try:
            with step("boot") as booting:
                self._start()
                self._monitor = Control.monitor(self._sockets.monitor)
                self._agent = Control.agent(self._sockets.agent)
                self.guest = GuestShell(self._agent)
                self._wait_for_boot()
            self.boot_seconds = booting.seconds
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            log.error("%s", self.console.tail())
        self._stop()

    def is_running(self) -> bool:
        """Whether QEMU still runs."""
        return self._process is not None and self._process.poll() is None

    def hot_add_dimm(self, size: int, *, node: int = 0, address: int | None = None) -> Dimm:
        """Plug in a DIMM of ``size`` bytes; the guest may still be bringing it online.

        Args:
            size: bytes.
            node: NUMA node.
            address: where; None for behind the last one.
        """
        self._dimms += 1
        name = f"dimm{self._dimms}"
        self._monitor.execute(
            "object-add", {"qom-type": "memory-backend-ram", "id": f"{name}-ram", "size": size}
        )
        device = {"driver": "pc-dimm", "id": name, "memdev": f"{name}-ram", "node": node}
        self._monitor.execute("device_add", device | ({"addr": address} if address else {}))
        (start,) = (
            device["data"]["addr"]
            for device in self._monitor.execute("query-memory-devices")
            if device["data"].get("id") == name
        )
        log.info("plugged %s: %d MiB at %#x", name, size // MIB, start)
        return Dimm(name, start, start + size - 1)

    def hot_remove_dimm(self, dimm: Dimm) -> None:
        """Unplug ``dimm`` and wait until the guest has let it go."""
        gone = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR")

        def concerns_us(event: Any) -> bool:
            return bool(event["data"].get("device") == dimm.name)

        with step(f"unplug {dimm.name}"):
            event = self._monitor.execute_and_wait(
                "device_del", {"id": dimm.name}, EventListener(gone, concerns_us), UNPLUG_SECONDS
            )
        if event["event"] != "DEVICE_DELETED":
            raise RigError(f"the guest refused to unplug: {event}\n{self.console.tail()}")
        self._monitor.execute("object-del", {"id": f"{dimm.name}-ram"})

    def resize_virtio_mem(self, size: int) -> Dimm:
        """Have the virtio-mem device hold ``size`` bytes, from its start, and wait for it.

        Needs ``MachineOptions.virtio_mem``.
        """
        with step(f"virtio-mem: {size // MIB} MiB"):
            device = {"path": "/machine/peripheral/virtio-mem", "property": "requested-size"}
            self._monitor.execute("qom-set", {**device, "value": size})
            deadline = time.monotonic() + UNPLUG_SECONDS
            while (now := self._virtio_mem())["size"] != size:
                if time.monotonic() > deadline:
                    raise RigError(f"the guest has {now} of {size} bytes\n{self.console.tail()}")
                time.sleep(0.1)
        return Dimm("virtio-mem", now["memaddr"], now["memaddr"] + size - 1)

    def _virtio_mem(self) -> dict[str, Any]:
        (found,) = (
            one["data"]
            for one in self._monitor.execute("query-memory-devices")
            if one["type"] == "virtio-mem"
        )
        return dict(found)

    def hot_add_cpu(self) -> str:
        """Plug in a CPU and return its name; the guest may still be bringing it online."""
        free = [cpu for cpu in self._cpu_slots() if "qom-path" not in cpu]
        if not free:
            raise RigError(f"all {self.options.max_cpus} CPUs are plugged in")
        slot = min(free, key=lambda cpu: int(cpu["props"]["socket-id"]))
        name = f"cpu-socket{slot['props']['socket-id']}"
        self._monitor.execute("device_add", {"driver": slot["type"], "id": name, **slot["props"]})
        log.info("plugged %s", name)
        return name

    def hot_remove_cpu(self, name: str) -> None:
        """Unplug a CPU that ``hot_add_cpu`` plugged in and wait until its socket is empty.

        Under software emulation QEMU sends no DEVICE_DELETED for a CPU: something keeps
        a reference to it. Unless `outlives_cpus`, let this be the story's end.
        """
        with step(f"unplug {name}"):
            self._monitor.execute("device_del", {"id": name})
            deadline = time.monotonic() + UNPLUG_SECONDS
            while any(cpu.get("qom-path", "").endswith(f"/{name}") for cpu in self._cpu_slots()):
                if time.monotonic() > deadline:
                    raise RigError(f"the guest does not let {name} go\n{self.console.tail()}")
                time.sleep(0.1)

    @property
    def outlives_cpus(self) -> bool:
        """Whether the machine goes on after a CPU's removal.

        Whatever changes the memory map then (a DIMM, a capture kernel that finds its PCI
        devices) makes QEMU 7.2's software emulation flush the TLB of the CPU that is gone, in
        freed memory (tcg_commit, softmmu/physmem.c): it ends with "malloc(): smallbin double
        linked list corrupted". 11.1 does not; what lies between was not tried.
        """
        version = self._monitor.execute("query-version")["qemu"]
        return bool(version["major"] >= 11)

    def wait_for_memory(self, dimm: Dimm) -> None:
        """Wait until every memory block of ``dimm`` is online in the guest."""
        self.guest.wait_until(
            f"block=$((0x$(cat /sys/devices/system/memory/block_size_bytes))); "
            f"for i in $(seq $(({dimm.start} / block)) $(({dimm.end} / block))); do "
            "grep -q online /sys/devices/system/memory/memory$i/state || exit 1; done",
            PLUG_SECONDS,
        )

    def wait_for_cpus(self, count: int) -> None:
        """Wait until the guest has exactly ``count`` CPUs online."""
        self.guest.wait_until(f'[ "$(nproc --all)" -ge {count} ] && [ "$(nproc)" = {count} ]', 60)

    def freeze(self) -> PhysicalMemory:
        """Stop the guest for a ``with`` block that reads or writes its physical memory."""
        return PhysicalMemory(self._sockets.gdb)

    def read_physical(self, address: int, length: int) -> bytes:
        """Read physical memory from outside, for large pieces (pmemsave)."""
        file = self._sockets.directory / "pmemsave"
        self._monitor.execute(
            "pmemsave", {"val": address, "size": length, "filename": str(file)}, timeout=120
        )
        data = file.read_bytes()
        file.unlink()
        return data

    def trigger_crash(self) -> None:
        """Panic the guest's kernel and return at once."""
        log.info("crashing the guest")
        # The kernel may die before the agent answers; the console decides.
        with contextlib.suppress(RigError):
            self.guest.start("echo c >/proc/sysrq-trigger")

    def crash(self) -> Capture:
        """Panic the guest's kernel, wait for the capture kernel and collect what it saved.

        Raises:
            RigError: the capture kernel did not start, or did not save a vmcore.
        """
        began = time.monotonic()
        self.trigger_crash()
        with step("capture kernel: boot"):
            self.console.wait_for("CAPTURE-BEGIN", CAPTURE_BEGIN_SECONDS)
        with step("capture kernel: save vmcore"):
            outcome = self.console.wait_for("CAPTURE-(DONE|FAILED.*)", CAPTURE_END_SECONDS)
        if outcome.group(1) != "DONE":
            raise RigError(f"{outcome.group()}\n{self.console.tail()}")
        self._wait_for_end()
        seconds = time.monotonic() - began
        capture = Capture(
            vmcore=self._share / "vmcore",
            header=self._share / "header",
            dmesg=self._share / "dmesg",
            seconds=seconds,
        )
        for path in (capture.vmcore, capture.header, capture.dmesg):
            if not path.exists() or path.stat().st_size == 0:
                raise RigError(f"the capture kernel saved no {path.name}\n{self.console.tail()}")
        return capture

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._share = self.directory / "capture"
        shutil.rmtree(self._share, ignore_errors=True)
        self._share.mkdir()
        self.console.path.unlink(missing_ok=True)
        accelerated = accelerator.choose(self.image.kernel)
        disguise = self.image.guest.disguised and accelerated.startswith("tcg")
        command = qemu_command(
            disguised(self.options) if disguise else self.options,
            accelerated,
            self._kernel(),
            self._initrd(),
            self.image.disk,
            self.console.path,
            self._share,
            self._sockets,
        )
        flash = firmware.find(self.options.firmware)
        if flash is not None:
            command += flash.qemu_arguments(self.directory / "variables.fd")
        with (self.directory / "qemu.log").open("wb") as messages:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages
            )
        deadline = time.monotonic() + QEMU_END_SECONDS
        while not self._sockets.gdb.exists() or not self._sockets.monitor.exists():
            if not self.is_running() or time.monotonic() > deadline:
                messages_text = (self.directory / "qemu.log").read_text()
                raise RigError(f"QEMU did not start: {' '.join(command)}\n{messages_text}")
            time.sleep(0.05)

    def _kernel(self) -> Path:
        if self.options.firmware is firmware.Firmware.SECURE_BOOT:
            return secure_boot.sign(self.image.kernel, self.directory)
        return self.image.kernel

    def _initrd(self) -> Path:
        """Return the image's initramfs, followed by the overlay if there is one."""
        if self._overlay is None:
            return self.image.initramfs
        tree = self.directory / "initrd.tree"
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(self._overlay.tree, tree / "overlay", symlinks=True)
        archive, whole = self.directory / "overlay.cpio", self.directory / "initrd.img"
        initramfs.pack(tree, archive)
        whole.write_bytes(self.image.initramfs.read_bytes() + archive.read_bytes())
        shutil.rmtree(tree)
        archive.unlink()
        return whole

    def _wait_for_boot(self) -> None:
        try:
            self.guest.wait_until_up(BOOT_SECONDS)
            code, state, _ = self.guest.try_run("systemctl is-system-running --wait", BOOT_SECONDS)
        except RigError as error:
            raise RigError(f"{error}\n{self.console.tail()}") from error
        if code != 0:
            _, failed, _ = self.guest.try_run("systemctl --failed; journalctl -b -p warning")
            raise RigError(f"the guest booted {state.strip()}\n{failed}\n{self.console.tail()}")

    def _cpu_slots(self) -> list[dict[str, Any]]:
        return list(self._monitor.execute("query-hotpluggable-cpus"))

    def _wait_for_end(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(QEMU_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise RigError(f"QEMU does not end\n{self.console.tail()}") from None

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(QEMU_END_SECONDS)
        for name in ("_agent", "_monitor"):
            control = getattr(self, name, None)
            if control is not None:
                control.close()
        shutil.rmtree(self._sockets.directory, ignore_errors=True)
