"""The package: its specification, its manual pages and its files say what the code does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from kdumphpd.cli import build_parser, main
from kdumphpd.config import Config, load_config, parse
from kdumphpd.errors import ExitCode
from kdumphpd.report.fields import Details
from kdumphpd.report.records import Kind
from tests.unit.host_fixture import FakeHost

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TREE = Path(__file__).parents[2]
PACKAGING = TREE / "packaging"
SPEC = PACKAGING / "rpm/kdumphpd.spec"
PAGES = sorted((PACKAGING / "man").iterdir())
MAN_8 = (PACKAGING / "man/kdumphpd.8").read_text()
MAN_5 = (PACKAGING / "man/kdumphpd.toml.5").read_text()
POLICY = (PACKAGING / "selinux/kdumphpd.te").read_text()
SAMPLE = PACKAGING / "kdumphpd.toml"


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)
    )
    return dict(action.choices)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def section(page: str, title: str) -> str:
    """The text of one section of a page, or of one subsection."""
    found = re.search(rf"^\.S[hs] {title}\n(.*?)(?=^\.S[hs] |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, title
    return found.group(1)


def options_in(page: str) -> set[str]:
    """What mdoc's Fl macro marks: the words after it, up to the next macro."""
    runs = re.findall(r"\bFl ((?:[a-z|,-]+ ?)+)", page)
    return {f"-{word}" for run in runs for word in run.split() if word not in {"|", ","}}


def tables() -> dict[str, dict[str, Any]]:
    """Tables of the configuration file: their keys and fields."""
    models: dict[str, Any] = {name: one.annotation for name, one in Config.model_fields.items()}
    return {name: dict(model.model_fields) for name, model in models.items()}


def lock() -> dict[str, str]:
    """Name and version of each bundled wheel, those for the build included."""
    text = (PACKAGING / "rpm/bundled.txt").read_text()
    return dict(re.findall(r"^([a-z-]+)==([0-9.]+) \\$", text, re.MULTILINE))


def test_manual_names_every_command_and_no_other() -> None:
    listed = re.findall(r"^\.It Cm ([a-z]+)$", section(MAN_8, "DESCRIPTION"), re.MULTILINE)
    assert sorted(listed) == sorted(subcommands()), "packaging/man/kdumphpd.8, DESCRIPTION"
    synopsis = section(MAN_8, "SYNOPSIS")
    assert all(re.search(rf"^\.Cm .*\b{name}\b", synopsis, re.MULTILINE) for name in listed)


def test_manual_names_every_option_and_no_other() -> None:
    real = options_of(build_parser()).union(*map(options_of, subcommands().values()))
    described = options_in("".join(re.findall(r"^\.It Fl .*$", MAN_8, re.MULTILINE)))
    assert described == real, "packaging/man/kdumphpd.8, DESCRIPTION"
    assert options_in(section(MAN_8, "SYNOPSIS")) == real, "packaging/man/kdumphpd.8, SYNOPSIS"


def test_manual_names_every_exit_status() -> None:
    listed = re.findall(r"^\.It (\d+)$", section(MAN_8, "EXIT STATUS"), re.MULTILINE)
    assert {int(code) for code in listed} == {*ExitCode, 1, 2, 3}


def keys_in(title: str) -> set[str]:
    """The keys that a section of JSON lists, several a line or one."""
    items = re.findall(r"^\.It Sy (.+)$", section(MAN_8, title), re.MULTILINE)
    return {key for item in items for key in item.replace(" Sy ", " ").split(" , ")}


def test_manual_names_every_key_of_json(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    def keys(command: str) -> set[str]:
        main([command, "--json"], host.root, host.kernel)
        return set(json.loads(capsys.readouterr().out))

    assert keys_in("JSON of plan") == keys("plan")
    assert keys_in("JSON of load and update") == keys("load") | keys("update")
    assert keys_in("JSON of audit") == keys("audit")
    assert keys_in("JSON of check") == keys("check")


def test_manual_names_every_record_and_field() -> None:
    text = section(MAN_8, "JOURNAL")
    fields = {f"KDUMPHPD_{field.name.upper()}" for field in dataclasses.fields(Details)}
    assert set(re.findall(r"KDUMPHPD_[A-Z_]+", text)) == fields | {"KDUMPHPD_EVENT"}
    events = text.split("KDUMPHPD_EVENT", 1)[1].split(".It", 1)[0]
    assert set(re.findall(r"^\.Sy ([a-z]+)", events, re.MULTILINE)) == {kind.event for kind in Kind}


def test_manual_names_every_table_and_key() -> None:
    assert re.findall(r"^\.Ss The ([a-z]+) table$", MAN_5, re.MULTILINE) == list(tables())
    for name, keys in tables().items():
        text = section(MAN_5, f"The {name} table")
        assert re.findall(r"^\.It Sy ([a-z_]+) No =", text, re.MULTILINE) == list(keys)


def test_manual_has_the_limits_and_defaults_of_numbers() -> None:
    checked = 0
    for name, keys in tables().items():
        items = section(MAN_5, f"The {name} table").split(".It Sy ")[1:]
        for item, (key, field) in zip(items, keys.items()):
            limits = re.search(r"from ([0-9.]+) to ([0-9.]+)$", field.description)
            if limits:
                assert f"From {limits[1]} to {limits[2]}" in item, f"{name}.{key}"
                assert f"Default: {field.default:g}.\n" in item, f"{name}.{key}"
                checked += 1
    assert checked >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_manual_is_well_formed(page: Path) -> None:
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        pytest.skip("mandoc is not installed")
    # "style" would also ask whether each page that is referred to is installed.
    command = [mandoc, "-Tlint", "-Wwarning", str(page)]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_sample_configuration_is_the_defaults() -> None:
    assert load_config(SAMPLE, check_owner=False) == Config()
    table = tomllib.loads(SAMPLE.read_text())
    assert table == {name: {} for name in tables()}, "everything in it is commented out"


def test_sample_configuration_shows_every_key_with_its_default() -> None:
    shown = re.sub(r"^#(?=[a-z_]+ = )", "", SAMPLE.read_text(), flags=re.MULTILINE)
    assert 'source = "auto"' in shown
    # The image's keys count only with the other source, and only that is not the default.
    given = parse(shown.replace('source = "auto"', 'source = "explicit"'), SAMPLE)
    for name, keys in tables().items():
        shown_table = getattr(given, name)
        assert shown_table.model_fields_set == set(keys), f"[{name}]"
        for key, field in keys.items():
            if field.default is not None and key != "source":
                assert getattr(shown_table, key) == field.default, f"{name}.{key}"


def test_fleet_page_has_the_identifiers() -> None:
    text = (PACKAGING / "FLEET.md").read_text()
    rows = re.findall(r"^\| ([a-z]+) \| `([0-9a-f]{32})` \| ([a-z]+) \|$", text, re.MULTILINE)
    assert rows == [(kind.event, kind.message_id, kind.priority.name.lower()) for kind in Kind]
    known = {kind.message_id for kind in Kind}
    assert set(re.findall(r"MESSAGE_ID=([0-9a-f]+)", text)) <= known
    assert set(re.findall(r"KDUMPHPD_EVENT=([a-z]+)", text)) <= {kind.event for kind in Kind}


def test_installing_does_not_enable() -> None:
    preset = (TREE / "systemd/90-kdumphpd.preset").read_text()
    rules = [line for line in preset.splitlines() if line and not line.startswith("#")]
    assert rules == ["disable kdumphpd.service"]


def test_specification_has_the_project_version() -> None:
    (version,) = re.findall(r"^  version: '(.+)',$", (TREE / "meson.build").read_text(), re.M)
    spec = SPEC.read_text()
    assert re.findall(r"^Version: +(.+)$", spec, re.MULTILINE) == [version]
    newest = spec.split("%changelog\n", 1)[1].splitlines()[0]
    assert re.search(rf" - {re.escape(version)}-\d+$", newest)


def test_specification_bundles_what_the_lock_pins() -> None:
    wheels = re.findall(r"^Source\d+: +([a-z_]+)-([0-9.]+)-.*\.whl$", SPEC.read_text(), re.M)
    assert {name.replace("_", "-"): version for name, version in wheels} == lock()


def test_specification_says_what_it_bundles() -> None:
    provided = re.findall(r"bundled\(python3dist\((.+)\)\) = (.+)$", SPEC.read_text(), re.M)
    build_only = {"meson-python", "packaging", "pyproject-metadata"}
    assert dict(provided) == {name: one for name, one in lock().items() if name not in build_only}


def test_every_dependency_is_bundled_or_required() -> None:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())
    required = dict(re.findall(r"^Requires: +(python3-\w+) >= (\S+)$", SPEC.read_text(), re.M))
    distribution = {"pyudev": "python3-pyudev", "systemd-python": "python3-systemd"}
    requirements = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for requirement in map(Requirement, requirements):
        pinned = lock().get(requirement.name)
        if pinned is None:
            pinned = required[distribution[requirement.name]]
        assert pinned in requirement.specifier, requirement


def test_specification_lists_the_files_that_are_there() -> None:
    files = SPEC.read_text().split("%files", 1)[1]
    for page in PAGES:
        assert f"/man{page.suffix[1:]}/{page.name}*" in files
    for unit in (TREE / "systemd").glob("*.service"):
        assert f"%{{_unitdir}}/{unit.name}\n" in files
        assert f"%systemd_post {unit.name}\n" in SPEC.read_text()
    for name in re.findall(r"packaging/[A-Z]+\.md", files):
        assert (TREE / name).is_file()


def parsed_specification(variant: str) -> str:
    rpmspec = shutil.which("rpmspec")
    if rpmspec is None:
        pytest.skip("rpmspec is not installed")
    command = [rpmspec, "--load", str(PACKAGING / "rpm/macros.build"), variant, "bundled"]
    done = subprocess.run(
        [*command, "--parse", str(SPEC)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_macros_for_debian_are_all_that_is_needed() -> None:
    parsed = parsed_specification("--with")
    assert "bundled(python3dist(pydantic))" in parsed
    known = {"description", "prep", "build", "install", "check", "post", "preun", "postun"}
    known |= {"files", "license", "doc", "dir", "config", "ghost", "changelog"}
    known |= {"package", "pre", "posttrans", "verify"}
    assert set(re.findall(r"%\{?\??(\w+)", parsed)) <= known


def test_specification_without_bundled_libraries_is_plain() -> None:
    parsed = parsed_specification("--without")
    assert ".whl" not in parsed
    assert "bundled(" not in parsed
    assert {"%pyproject_buildrequires", "%pyproject_install"} <= set(parsed.split())


def test_policy_allows_the_capabilities_of_the_unit_and_no_more() -> None:
    unit = (TREE / "systemd/kdumphpd.service").read_text()
    (bounding,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    rules = re.findall(r"^allow kdumphpd_t self:capability2? (.+);$", POLICY, re.MULTILINE)
    allowed = {f"CAP_{one.upper()}" for rule in rules for one in rule.strip("{} ").split()}
    assert allowed == set(bounding.split())


def test_policy_and_its_page_cite_code_that_is_there() -> None:
    page = (PACKAGING / "SELINUX.md").read_text()
    for text in (POLICY, page):
        cited = re.findall(r"\b((?:[a-z_]+/)*[a-z_]+\.py)\b", text)
        assert len(set(cited)) > 10
        for name in cited:
            assert (TREE / "kdumphpd" / name).is_file() or (TREE / name).is_file(), name
    assert "unconfined_service_t" in page
    switch = re.findall(r"gen_tunable\((\w+), true\)", POLICY)
    assert [f"setsebool -P {one} off" in page for one in switch] == [True]


def test_launcher_takes_the_private_libraries_first(tmp_path: Path) -> None:
    cli = "import argparse\ndef main():\n    print('private'); return 7\n"
    for name, code in (("__init__", ""), ("cli", cli)):
        module = tmp_path / "lib/kdumphpd" / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(code)
    launcher = tmp_path / "kdumphpd"
    text = (PACKAGING / "rpm/launcher.py").read_text()
    launcher.write_text(text.replace("@PRIVATEDIR@", str(tmp_path / "lib")))
    # The flags of its first line; a module beside it or in PYTHONPATH must not win.
    flags = text.splitlines()[0].split()[1]
    (tmp_path / "argparse.py").write_text("raise SystemExit('taken from beside the script')\n")
    done = subprocess.run(
        [sys.executable, flags, str(launcher)],
        env={"PYTHONPATH": str(TREE)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "private\n", "")
    assert not list(tmp_path.rglob("__pycache__"))
