"""kdump-tools' kexec command: taken apart as the shell and kexec would."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdumphpd.distribution import auto, kdump_tools
from kdumphpd.errors import ConfigError, InputError, KdumphpdError
from kdumphpd.machine.files import Root

COMMAND = (
    '/sbin/kexec -p -s --command-line="root=/dev/vda ro  irqpoll nr_cpus=1" '
    "--initrd=/var/lib/kdump/initrd.img /var/lib/kdump/vmlinuz\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    for name, text in (
        (kdump_tools.CONFIG, 'USE_KDUMP=1\nKDUMP_COREDIR="/var/crash"\n'),
        (kdump_tools.TOOL, ""),
        ("/var/lib/kdump/initrd.img-6.1", "initrd"),
        ("/boot/vmlinuz-6.1", "kernel"),
        ("/var/crash/kexec_cmd", COMMAND),
    ):
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "var/lib/kdump/initrd.img").symlink_to("initrd.img-6.1")
    (tmp_path / "var/lib/kdump/vmlinuz").symlink_to("../../../boot/vmlinuz-6.1")
    return Root(tmp_path)


def test_command_is_taken_apart(root: Root) -> None:
    asked = kdump_tools.ask(root)
    assert asked.kernel == root.path("/var/lib/kdump/vmlinuz")
    assert asked.initrd == root.path("/var/lib/kdump/initrd.img")
    assert asked.command_line == "root=/dev/vda ro  irqpoll nr_cpus=1"
    assert asked.kexec_arguments == ("-p", "-s")
    assert "/var/crash/kexec_cmd" in asked.command_line_origin


def test_recorded_tree_will_do(root: Root) -> None:
    kdump = auto.find(root)
    assert kdump is not None
    assert kdump.unit == "kdump-tools.service"
    assert root.path("/var/crash/kexec_cmd") in kdump.loaded
    assert auto.ask(root, kdump, "auto").origin == "kdump-tools"


@pytest.mark.parametrize(
    ("line", "directory"),
    [
        ('KDUMP_COREDIR="/srv/dumps"', "/srv/dumps"),
        ("KDUMP_COREDIR=/a\nKDUMP_COREDIR='/b c'", "/b c"),
        ("#KDUMP_COREDIR=/a", "/var/crash"),
        ("  export KDUMP_COREDIR=/a # here", "/a"),
        ("KDUMP_COREDIR=", "/var/crash"),
        ("KDUMP_COREDIR='", "/var/crash"),
    ],
)
def test_core_directory(root: Root, line: str, directory: str) -> None:
    root.path(kdump_tools.CONFIG).write_text(line + "\n")
    assert str(kdump_tools.command_path(root)) == f"{directory}/kexec_cmd"


@pytest.mark.parametrize("value", ["$HOME/x", "`pwd`", "relative"])
def test_core_directory_that_needs_a_shell(root: Root, value: str) -> None:
    root.path(kdump_tools.CONFIG).write_text(f"KDUMP_COREDIR={value}\n")
    with pytest.raises(ConfigError, match="KDUMP_COREDIR"):
        kdump_tools.ask(root)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "does not hold one kexec command"),
        (COMMAND * 2, "does not hold one kexec command"),
        ("rm -rf /", "does not begin with kexec"),
        (COMMAND.replace("irqpoll", "$(reboot)"), "expansion"),
        (COMMAND.replace("irqpoll", "`reboot`"), "expansion"),
        (COMMAND.strip() + "; reboot", "operator"),
        (COMMAND.strip() + " && reboot", "operator"),
        (COMMAND.strip() + ' "', "No closing quotation"),
        (COMMAND.replace("-s", "--reuse-cmdline"), "--reuse-cmdline cannot be followed"),
        (COMMAND.replace("/var/lib/kdump/vmlinuz", ""), "names 0 kernels"),
        (COMMAND.strip() + " /boot/other", "names 2 kernels"),
    ],
)
def test_commands_that_cannot_be_followed(root: Root, command: str, words: str) -> None:
    path = root.path("/var/crash/kexec_cmd")
    path.write_text(command)
    with pytest.raises(ConfigError) as caught:
        kdump_tools.ask(root)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert 'source = "explicit"' in str(caught.value)


def test_nothing_loaded_yet(root: Root) -> None:
    root.path("/var/crash/kexec_cmd").unlink()
    with pytest.raises(InputError, match=r"not loaded a crash kernel yet.*kdump-config load"):
        kdump_tools.ask(root)


@pytest.mark.parametrize("name", ["/boot/vmlinuz-6.1", "/var/lib/kdump/initrd.img-6.1"])
def test_missing_file_is_named(root: Root, name: str) -> None:
    root.path(name).unlink()
    with pytest.raises(InputError, match="is not there"):
        kdump_tools.ask(root)


def test_command_without_initrd(root: Root) -> None:
    path = root.path("/var/crash/kexec_cmd")
    path.write_text(COMMAND.replace("--initrd=/var/lib/kdump/initrd.img ", ""))
    with pytest.raises(InputError, match="names no initrd"):
        kdump_tools.ask(root)


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@given(PRINTABLE)
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        values, _ = kdump_tools.parse_command(text, "kexec_cmd")
    except ConfigError:
        return
    assert values["kernel"]


@settings(max_examples=40, deadline=None)
@given(PRINTABLE, PRINTABLE)
def test_words_are_those_of_the_shell(line: str, extra: str) -> None:
    """What kdump-config evaluates is what we take, whenever we take it."""
    text = f'kexec --command-line={shlex.quote(line)} {extra} --initrd="/i" /k'
    try:
        values, arguments = kdump_tools.parse_command(text, "kexec_cmd")
    except ConfigError:
        return
    shown = subprocess.run(
        ["sh", "-f", "-c", 'kexec() { printf "%s\\n" "$@"; }; eval "$1"', "sh", text],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout.splitlines()
    assert shown[0] == f"--command-line={line}" or "--append" in extra or "--command" in extra
    assert shown[-1] == values["kernel"]
    assert all(argument in shown for argument in arguments)


# --- /var/crash is everybody's on Ubuntu -------------------------------------------------


@pytest.fixture
def command(root: Root) -> Path:
    """The kexec command, in a directory as Ubuntu makes it."""
    path = root.path("/var/crash/kexec_cmd")
    path.chmod(0o644)
    path.parent.chmod(0o3777)
    return path


def refused(root: Root, *words: str) -> None:
    with pytest.raises(KdumphpdError) as caught:
        kdump_tools.ask(root)
    for word in (str(root.path("/var/crash")), "kdump-config reload", *words):
        assert word in str(caught.value)


def test_roots_own_command_in_a_directory_for_all_counts(root: Root, command: Path) -> None:
    assert kdump_tools.ask(root).kernel == root.path("/var/lib/kdump/vmlinuz")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_command_that_others_can_write_is_refused(root: Root, command: Path, mode: int) -> None:
    command.chmod(mode)
    refused(root, f"mode {mode:04o}", "choose the crash kernel")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_users_command_is_refused(root: Root, command: Path) -> None:
    os.chown(command, 4242, 4242)
    refused(root, "belongs to user 4242", "choose the crash kernel")


def test_a_command_that_others_can_replace_is_refused(root: Root, command: Path) -> None:
    command.parent.chmod(0o777)
    refused(root, "mode 0777")


@pytest.mark.parametrize(
    "make",
    [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")],
    ids=["directory", "FIFO", "link"],
)
def test_what_is_no_file_is_refused_at_once(
    root: Root, command: Path, make: Callable[[Path], None]
) -> None:
    """A FIFO blocked the daemon, a link's content came into the error."""
    command.unlink()
    make(command)
    refused(root, "is not a regular file")


def test_a_command_without_end_is_refused_at_once(root: Root, command: Path) -> None:
    os.truncate(command, 1 << 40)
    refused(root, "larger than 64 KiB")


def test_a_recorded_tree_may_be_anybodys(root: Root, command: Path) -> None:
    command.chmod(0o666)
    recorded = Root(root.directory, recorded=True)
    assert kdump_tools.ask(recorded).kernel == root.path("/var/lib/kdump/vmlinuz")


def test_a_fifo_for_a_configuration_is_refused_at_once(root: Root) -> None:
    path = root.path(kdump_tools.CONFIG)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"kdump-tools: not a regular file; make it a file"):
        kdump_tools.ask(root)
