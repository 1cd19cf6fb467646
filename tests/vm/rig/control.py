"""Blocking calls over qemu.qmp: QEMU's monitor, and the guest agent's channel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError

from .errors import RigError


class Control:
    """One connection; asyncio runs only while a call is under way."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, client: QMPClient) -> None:
        self._name = name
        self._loop = loop
        self._client = client

    @classmethod
    def monitor(cls, socket: Path) -> Control:
        """Connect to QEMU's own QMP socket."""
        return cls._connect("monitor", socket, agent=False)

    @classmethod
    def agent(cls, socket: Path) -> Control:
        """Connect to the guest agent, which speaks the protocol without its greeting."""
        return cls._connect("guest agent", socket, agent=True)

    @classmethod
    def _connect(cls, name: str, socket: Path, *, agent: bool) -> Control:
        loop = asyncio.new_event_loop()

        async def connect() -> QMPClient:
            client = QMPClient(name)
            client.logger.setLevel("CRITICAL")  # errors reach the caller as exceptions
            client.await_greeting = client.negotiate = not agent
            await asyncio.wait_for(client.connect(str(socket)), 30)
            return client

        return cls(name, loop, loop.run_until_complete(connect()))

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = 30
    ) -> Any:
        """Run ``command`` and return its result.

        Raises:
            RigError: it was refused, the peer went away, or ``timeout`` seconds passed.
        """
        call = self._client.execute(command, dict(arguments) if arguments else None)
        try:
            return self._loop.run_until_complete(asyncio.wait_for(call, timeout))
        except asyncio.TimeoutError as error:
            raise RigError(f"{self._name}: {command}: no answer in {timeout:.0f} s") from error
        except QMPError as error:
            raise RigError(f"{self._name}: {command}: {error}") from error

    def execute_and_wait(
        self, command: str, arguments: Mapping[str, object], listener: EventListener, timeout: float
    ) -> Mapping[str, Any]:
        """Run ``command``, then wait for the first event that ``listener`` accepts.

        Returns:
            The event.

        Raises:
            RigError: as ``execute``, or no such event came.
        """

        async def run() -> Mapping[str, Any]:
            with self._client.listen(listener):
                await self._client.execute(command, dict(arguments))
                return await listener.get()

        try:
            return self._loop.run_until_complete(asyncio.wait_for(run(), timeout))
        except asyncio.TimeoutError as error:
            raise RigError(f"{self._name}: no event after {command} in {timeout:.0f} s") from error
        except QMPError as error:
            raise RigError(f"{self._name}: {command}: {error}") from error

    def close(self) -> None:
        """Disconnect; the peer may be gone already."""
        try:
            self._loop.run_until_complete(asyncio.wait_for(self._client.disconnect(), 10))
        except (QMPError, OSError, EOFError, asyncio.TimeoutError):
            pass
        finally:
            self._loop.close()
