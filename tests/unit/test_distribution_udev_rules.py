"""Shadowing the hotplug rules on a tree, and read by udev itself where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd import processes
from kdumphpd.distribution import udev_rules
from kdumphpd.distribution.udev_rules import RULES, RUN_DIRECTORY
from kdumphpd.errors import KdumphpdError
from kdumphpd.machine.files import Root

TEXT = udev_rules.shadow_text()
VENDOR = 'SUBSYSTEM=="cpu", ACTION=="add", RUN+="/bin/reload"\n'


class Udev:
    """Counts the reloads; ``answer`` is what they come to."""

    def __init__(self, answer: str = "") -> None:
        self.reloads = 0
        self.answer = answer

    def __call__(self) -> str:
        self.reloads += 1
        return self.answer


def host(directory: Path, *rules: str) -> Root:
    root = Root(directory)
    for rule in rules:
        path = root.path(rule)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(VENDOR)
    return root


def run_files(root: Root) -> dict[str, str]:
    directory = root.path(RUN_DIRECTORY)
    if not directory.exists():
        return {}
    return {one.name: one.read_text() for one in directory.iterdir()}


def test_content_has_a_mark_and_no_rule() -> None:
    assert TEXT.startswith(udev_rules.MARK)
    assert all(line.startswith("#") for line in TEXT.splitlines())


def test_shadows_what_is_there_and_takes_it_away(tmp_path: Path) -> None:
    root = host(tmp_path, "/usr/lib/udev/rules.d/98-kexec.rules")
    udev = Udev()
    done = udev_rules.shadow(root, TEXT, udev)
    assert done.rules == done.fresh == ("98-kexec.rules",)
    assert run_files(root) == {"98-kexec.rules": TEXT}
    assert root.path(f"{RUN_DIRECTORY}/98-kexec.rules").stat().st_mode & 0o777 == 0o644
    assert udev.reloads == 1

    again = udev_rules.shadow(root, TEXT, udev)
    assert (again.rules, again.fresh, udev.reloads) == (done.rules, (), 1)

    udev_rules.unshadow(root, udev)
    assert run_files(root) == {}
    assert udev.reloads == 2


def test_old_directory_counts(tmp_path: Path) -> None:
    root = host(tmp_path, "/lib/udev/rules.d/50-kdump-tools.rules")
    assert udev_rules.shadow(root, TEXT, Udev()).rules == ("50-kdump-tools.rules",)


def test_nothing_to_shadow(tmp_path: Path) -> None:
    udev = Udev()
    assert udev_rules.shadow(Root(tmp_path), TEXT, udev).rules == ()
    assert (run_files(Root(tmp_path)), udev.reloads) == ({}, 0)


def test_rule_in_run_is_put_back(tmp_path: Path) -> None:
    root = host(tmp_path, f"{RUN_DIRECTORY}/70-kdump.rules")
    assert udev_rules.shadow(root, TEXT, Udev()).fresh == ("70-kdump.rules",)
    assert run_files(root)["70-kdump.rules"] == TEXT
    assert sum(name.endswith(".rules") for name in run_files(root)) == 1
    udev_rules.unshadow(root, Udev())
    assert run_files(root) == {"70-kdump.rules": VENDOR}


def test_rule_that_came_back_is_shadowed_again(tmp_path: Path) -> None:
    root = host(tmp_path, f"{RUN_DIRECTORY}/70-kdump.rules")
    udev_rules.shadow(root, TEXT, Udev())
    root.path(f"{RUN_DIRECTORY}/70-kdump.rules").write_text(VENDOR)
    udev = Udev()
    assert udev_rules.shadow(root, TEXT, udev).fresh == ("70-kdump.rules",)
    assert udev.reloads == 1


def test_administrators_rule_is_reported(tmp_path: Path) -> None:
    root = host(
        tmp_path, "/usr/lib/udev/rules.d/98-kexec.rules", "/etc/udev/rules.d/98-kexec.rules"
    )
    assert udev_rules.shadow(root, TEXT, Udev()).overridden == ("98-kexec.rules",)


def test_failed_reload_is_reported(tmp_path: Path) -> None:
    root = host(tmp_path, "/usr/lib/udev/rules.d/98-kexec.rules")
    assert udev_rules.shadow(root, TEXT, Udev("udevd is not there")).problem == "udevd is not there"


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    root = host(tmp_path, "/usr/lib/udev/rules.d/98-kexec.rules")
    # A file in the directory's place: root would get past a mere mode.
    root.path("/run/udev").mkdir(parents=True)
    root.path(RUN_DIRECTORY).write_text("")
    udev = Udev()
    with pytest.raises(KdumphpdError) as caught:
        udev_rules.shadow(root, TEXT, udev)
    assert "stays in force" in str(caught.value)
    assert RUN_DIRECTORY in str(caught.value)
    assert udev.reloads == 0


def test_unshadow_leaves_other_files_alone(tmp_path: Path) -> None:
    root = host(tmp_path, f"{RUN_DIRECTORY}/98-kexec.rules", f"{RUN_DIRECTORY}/60-other.rules")
    before = run_files(root)
    udev = Udev()
    udev_rules.unshadow(root, udev)
    assert (run_files(root), udev.reloads) == (before, 0)


@given(
    in_run=st.sets(st.sampled_from(RULES)),
    in_vendor=st.sets(st.sampled_from(RULES)),
    times=st.integers(1, 3),
)
def test_there_and_back_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, in_run: set[str], in_vendor: set[str], times: int
) -> None:
    names = [f"{RUN_DIRECTORY}/{one}" for one in in_run]
    names += [f"/usr/lib/udev/rules.d/{one}" for one in in_vendor]
    root = host(tmp_path_factory.mktemp("tree"), *names)
    before = run_files(root)
    for _ in range(times):
        done = udev_rules.shadow(root, TEXT, Udev())
    assert set(done.rules) == in_run | in_vendor
    assert all(run_files(root)[name] == TEXT for name in done.rules)
    udev_rules.unshadow(root, Udev())
    assert run_files(root) == before


def test_reload_without_udev_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "ENVIRONMENT", {"PATH": str(tmp_path)})
    assert "udevadm" in udev_rules.reload_live_rules()
    tool = tmp_path / "udevadm"
    tool.write_text('#!/bin/sh\necho "no control socket" >&2\nexit 2\n')
    tool.chmod(0o755)
    assert "no control socket" in udev_rules.reload_live_rules()
    tool.write_text('#!/bin/sh\n[ "$*" = "control --reload" ]\n')
    assert udev_rules.reload_live_rules() == ""
