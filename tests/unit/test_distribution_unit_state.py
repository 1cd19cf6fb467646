"""What systemctl says, from a stand-in on the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumphpd import processes
from kdumphpd.distribution.unit_state import UnitState, unit_state


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("echo active", UnitState.ACTIVE),
        ("echo reloading", UnitState.ACTIVE),
        ("echo activating; exit 3", UnitState.CHANGING),
        ("echo deactivating; exit 3", UnitState.CHANGING),
        ("echo inactive; exit 3", UnitState.STOPPED),
        ("echo failed; exit 3", UnitState.FAILED),
        ("echo unknown; exit 4", UnitState.UNKNOWN),
        ("echo 'Failed to connect' >&2; exit 1", UnitState.UNKNOWN),
    ],
)
def test_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, state: UnitState
) -> None:
    tool = tmp_path / "systemctl"
    tool.write_text(f'#!/bin/sh\n[ "$*" = "is-active kdump.service" ] || exit 9\n{said}\n')
    tool.chmod(0o755)
    monkeypatch.setattr(processes, "ENVIRONMENT", {"PATH": str(tmp_path)})
    assert unit_state("kdump.service") is state


def test_without_systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ENVIRONMENT", {"PATH": str(tmp_path)})
    assert unit_state("kdump.service") is UnitState.UNKNOWN
