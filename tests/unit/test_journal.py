"""Records: the table, the journal's fields, the terminal's text, the catalog."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.report.fields import Details, details_of, duration_text, journal_fields, terminal_text
from kdumphpd.report.journal import (
    JournalSink,
    OnceUntilChanged,
    Reporter,
    TerminalSink,
    build_sink,
    goes_to_journal,
)
from kdumphpd.report.records import Kind, Priority

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "systemd" / "kdumphpd.catalog"

# The contract with monitoring: changes here break other people's filters.
EVENTS = [
    *("started", "adopted", "updated", "unchanged", "audited", "repaired"),
    *("fallback", "disarmed", "foreign", "stopped", "status"),
]
FIELDS = [
    *("BACKEND", "GENERATION", "ARMED", "VERDICT", "CHANGE", "CPUS", "MEMORY_BYTES"),
    *("RANGES", "UEVENTS", "UNARMED_USEC", "LATENCY_USEC"),
]

CHANGE = "memory 0x100000000-0x8ffffffff, 32 GiB, 256 blocks added; cpu 3 added"
WHOLE = Details(
    backend="delta",
    generation=3,
    armed=True,
    verdict="complete",
    change=CHANGE,
    cpus=8,
    memory_bytes=34 << 30,
    ranges=3,
    uevents=1,
    unarmed_usec=1534,
    latency_usec=12_345,
)


class Journal:
    """Takes what would go to the journal, as ``FIELD=value`` lines."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []

    def sendv(self, *lines: str) -> None:
        self.entries.append(
            dict(typing.cast("tuple[str, str]", one.split("=", 1)) for one in lines)
        )


def fail_to_write(*arguments: object) -> typing.NoReturn:
    raise AssertionError("not to be used here")


def test_kinds_are_those_of_the_contract() -> None:
    assert [kind.event for kind in Kind] == EVENTS
    ids = [kind.message_id for kind in Kind]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert len(set(ids)) == len(ids)
    assert Kind.DISARMED.priority == Priority.CRIT


def test_record_has_the_fields_of_the_contract() -> None:
    journal = Journal()
    reporter = Reporter(JournalSink(journal.sendv, fail_to_write))
    reporter.record(
        Kind.UPDATED, "done", **{one.name: getattr(WHOLE, one.name) for one in fields(WHOLE)}
    )
    (entry,) = journal.entries
    assert set(entry) == {"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER"} | {
        f"KDUMPHPD_{name}" for name in ["EVENT", *FIELDS]
    }
    assert entry["SYSLOG_IDENTIFIER"] == "kdumphpd"
    assert entry["MESSAGE_ID"] == Kind.UPDATED.message_id
    assert entry["PRIORITY"] == "5"
    assert entry["KDUMPHPD_EVENT"] == "updated"
    assert entry["KDUMPHPD_ARMED"] == "1"
    assert entry["KDUMPHPD_UNARMED_USEC"] == "1534"
    assert entry["KDUMPHPD_MEMORY_BYTES"] == str(34 << 30)


def test_record_says_nothing_of_what_is_not_known() -> None:
    journal = Journal()
    Reporter(JournalSink(journal.sendv, fail_to_write)).record(
        Kind.STATUS, "x", priority=Priority.ERR, armed=False, uevents=0
    )
    (entry,) = journal.entries
    assert entry["PRIORITY"] == "3"
    assert entry["KDUMPHPD_ARMED"] == "0"
    assert entry["KDUMPHPD_UEVENTS"] == "0"
    assert "KDUMPHPD_CHANGE" not in entry


def test_journal_that_refuses_leaves_the_record_on_stderr() -> None:
    def refuse(*lines: str) -> None:
        raise OSError(errno.ECONNREFUSED, "refused")

    stderr = io.StringIO()
    Reporter(JournalSink(refuse, TerminalSink(stderr))).record(Kind.DISARMED, "no image")
    assert stderr.getvalue() == "kdumphpd: CRITICAL: disarmed: no image\n"


def test_closed_terminal_is_no_error() -> None:
    stderr = io.StringIO()
    stderr.close()
    Reporter(TerminalSink(stderr)).record(Kind.STARTED, "x")


def test_global_configuration_of_structlog_is_left_alone() -> None:
    before = structlog.get_config()
    journal = Journal()
    Reporter(JournalSink(journal.sendv, fail_to_write)).record(Kind.STARTED, "x")
    assert structlog.get_config() == before
    assert not structlog.is_configured()
    assert len(journal.entries) == 1


def test_terminal_text() -> None:
    assert terminal_text(Kind.UPDATED, "the header is live", Priority.NOTICE, WHOLE) == (
        "kdumphpd: updated: the header is live\n"
        "    memory 0x100000000-0x8ffffffff, 32 GiB, 256 blocks added; cpu 3 added\n"
        "    backend delta, generation 3, armed, verdict complete, 8 CPUs, 34 GiB,\n"
        "    3 ranges, 1 uevent, not armed for 1.5 ms,\n"
        "    live 12.3 ms after the first uevent\n"
    )


def test_terminal_does_not_say_the_change_twice() -> None:
    text = terminal_text(Kind.UPDATED, CHANGE, Priority.NOTICE, Details(change=CHANGE))
    assert " ".join(text.split()).count("cpu 3 added") == 1


def test_terminal_is_told_loudly_that_the_host_is_not_armed() -> None:
    text = terminal_text(Kind.FALLBACK, "x", Priority.WARNING, Details(armed=False))
    assert text == "kdumphpd: warning: fallback: x\n    NOT ARMED\n"


@pytest.mark.parametrize(
    ("usec", "wanted"),
    [(0, "0 us"), (999, "999 us"), (1534, "1.5 ms"), (2_900_000, "2.9 s"), (1_000_000, "1.0 s")],
)
def test_durations(usec: int, wanted: str) -> None:
    assert duration_text(usec) == wanted


NUMBERS = st.one_of(st.none(), st.integers(0, 1 << 60))
TEXTS = st.one_of(st.none(), st.text(max_size=200))
DETAILS = st.builds(
    Details,
    backend=TEXTS,
    generation=NUMBERS,
    armed=st.one_of(st.none(), st.booleans()),
    verdict=TEXTS,
    change=TEXTS,
    cpus=NUMBERS,
    memory_bytes=NUMBERS,
    ranges=NUMBERS,
    uevents=NUMBERS,
    unarmed_usec=NUMBERS,
    latency_usec=NUMBERS,
)


@given(st.sampled_from(Kind), st.text(), st.sampled_from(Priority), DETAILS)
def test_fields_read_back_as_they_were(
    kind: Kind, message: str, priority: Priority, details: Details
) -> None:
    assert details_of(journal_fields(kind, message, priority, details)) == details


@given(st.dictionaries(st.sampled_from([f"KDUMPHPD_{one}" for one in FIELDS]), st.text()))
def test_foreign_entries_read_back_without_an_error(entry: dict[str, str]) -> None:
    details = details_of(entry)
    assert details.cpus is None or details.cpus >= 0
    assert details.backend == entry.get("KDUMPHPD_BACKEND")


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), max_size=60)


@given(st.sampled_from(Kind), st.lists(WORDS).map(" ".join), st.sampled_from(Priority), DETAILS)
def test_terminal_lines_fit_and_are_printable(
    kind: Kind, message: str, priority: Priority, details: Details
) -> None:
    lines = terminal_text(kind, message, priority, details).splitlines()
    assert lines[0].startswith("kdumphpd: ")
    for line in lines:
        assert line.isprintable()
        longest = max(map(len, line.split()), default=0)
        assert len(line) <= max(79, 4 + longest), (
            "only a word that is too long itself may stick out"
        )


def test_stream_of_the_journal_is_known_by_its_inode(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    socket.touch()
    with (tmp_path / "stderr").open("w") as stream:
        status = os.fstat(stream.fileno())
        mine = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert goes_to_journal(stream, mine, socket)
        assert not goes_to_journal(stream, mine, tmp_path / "none"), "nobody listens"
        assert not goes_to_journal(stream, {"JOURNAL_STREAM": "1:2"}, socket), "redirected since"
        assert not goes_to_journal(stream, {}, socket)
    assert not goes_to_journal(stream, mine, socket), "closed"
    assert not goes_to_journal(io.StringIO(), mine, socket), "no descriptor"


def test_terminal_is_chosen_without_a_journal() -> None:
    stderr = io.StringIO()
    Reporter(build_sink(stderr, {})).record(Kind.STARTED, "hello")
    time, _, rest = stderr.getvalue().partition(" kdumphpd: ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", time), "the journal adds its own"
    assert rest == "started: hello\n"


def test_same_problem_is_said_once() -> None:
    once = OnceUntilChanged()
    assert [once.is_new(one) for one in ("a", "a", "b", "b", "a")] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert once.over()
    assert not once.over()
    assert once.is_new("a"), "it went and came back"


def catalog_entries() -> dict[str, str]:
    entries = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(entries[::2], entries[1::2]))


def test_catalog_and_table_agree() -> None:
    assert list(catalog_entries()) == [kind.message_id for kind in Kind]


@pytest.mark.parametrize("kind", Kind)
def test_catalog_entry_says_what_to_do(kind: Kind) -> None:
    header, _, text = catalog_entries()[kind.message_id].partition("\n\n")
    assert header.startswith("Subject: ")
    assert "Defined-By: kdumphpd" in header
    assert re.search(r"\bdo\b|systemctl", text), "what to do"
    assert re.search(r"armed|\bpanic\b|crash\s+kernel\s+is\s+loaded", text), "is the host armed"
    used = set(re.findall(r"@(\w+)@", text))
    assert used <= {f"KDUMPHPD_{name}" for name in FIELDS}


@pytest.mark.skipif(not shutil.which("journalctl"), reason="needs journalctl")
def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/catalog").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, tmp_path / "usr/lib/systemd/catalog")
    journalctl = ["journalctl", f"--root={tmp_path}"]
    update = subprocess.run(
        [*journalctl, "--update-catalog"], capture_output=True, text=True, check=True
    )
    assert not update.stderr
    listed = subprocess.run(
        [*journalctl, "--list-catalog"], capture_output=True, text=True, check=True
    )
    assert {line.split()[0] for line in listed.stdout.splitlines()} == {
        kind.message_id for kind in Kind
    }


# Runs in a mount namespace with an empty /run: a journald of its own, whose
# entries are then read by journalctl.
WITH_JOURNALD = """
import os, pathlib, socket, subprocess, sys
pathlib.Path("/run/systemd/journal").mkdir(parents=True)
pathlib.Path("/run/log/journal").mkdir(parents=True)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind("/run/notify")
notify.settimeout(30)
journald = subprocess.Popen(
    [sys.argv[1]], env={**os.environ, "NOTIFY_SOCKET": "/run/notify"}
)
try:
    while "READY=1" not in notify.recv(4096).decode():
        pass
    from systemd import journal
    stream = journal.stream("kdumphpd")
    os.dup2(stream.fileno(), 2)
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    from kdumphpd.report.journal import open_reporter
    from kdumphpd.report.records import Kind
    open_reporter().record(Kind.UPDATED, "zwei\\nZeilen \\u00fc", armed=True, unarmed_usec=1534)
finally:
    journald.terminate()
    journald.wait(30)
subprocess.run(["journalctl", "-D", "/run/log/journal", "-o", "json", "-t", "kdumphpd"], check=True)
"""


def test_journald_stores_the_record() -> None:
    journald = shutil.which("systemd-journald", path="/usr/lib/systemd:/lib/systemd")
    if os.geteuid() != 0 or not journald or not shutil.which("unshare"):
        pytest.skip("needs root, systemd-journald and unshare")
    run = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"),
            *(sys.executable, "-c", WITH_JOURNALD, journald),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if "unshare failed" in run.stderr or "permission denied" in run.stderr:
        pytest.skip(f"no mount namespace here: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    (entry,) = (json.loads(line) for line in run.stdout.splitlines())
    wanted = journal_fields(
        Kind.UPDATED, "zwei\nZeilen ü", Priority.NOTICE, Details(armed=True, unarmed_usec=1534)
    )
    assert {name: entry.get(name) for name in wanted} == wanted
    assert entry["_TRANSPORT"] == "journal"
    assert "CODE_FILE" not in entry
