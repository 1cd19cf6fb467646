"""Which rungs are tried, in which order, and why others are not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.load.ladder import Route, Rung, route, told
from kdumphpd.load.probe import Access, Allowed

REFUSED = Access("refused", 1)
ACCESS = st.sampled_from([Access(), REFUSED, Access("not there", 38)])


def test_a_free_host_begins_with_a_delta_where_there_is_one_to_make() -> None:
    found = route(Allowed(), own_image=True, command=True)
    assert found == Route((Rung.DELTA, Rung.FULL, Rung.FILE, Rung.COMMAND))
    assert route(Allowed(), own_image=False).rungs == (Rung.FULL, Rung.FILE)


def test_without_kexec_load_the_kernel_makes_the_image() -> None:
    found = route(Allowed(kexec_load=REFUSED), own_image=True, command=True)
    without = ((Rung.DELTA, "refused"), (Rung.FULL, "refused"))
    assert found == Route((Rung.FILE, Rung.COMMAND), without)
    assert found.above(Rung.FULL) == without[:1]
    assert found.above(Rung.FILE) == without


def test_keys_that_only_files_carry_leave_kexec_load_out() -> None:
    found = route(Allowed(), own_image=True, no_kexec_load="the keys")
    assert found.rungs == (Rung.FILE,)
    assert told(found.above(Rung.FILE)) == ("delta, full: the keys",)


def test_the_ladder_may_end_before_it_begins() -> None:
    found = route(Allowed(REFUSED, Access("no files", 38)), own_image=True)
    assert found.rungs == ()
    assert told(found.ruled_out) == (
        "delta, full: refused",
        "file: no files",
        "command: none is configured ([update] command)",
    )


def test_rungs_that_share_a_reason_share_a_clause() -> None:
    found = route(Allowed(REFUSED, REFUSED), own_image=True, command=True)
    assert told(found.ruled_out) == ("delta, full, file: refused",)


def test_what_was_tried_and_what_was_ruled_out_is_told_in_the_ladders_order() -> None:
    tried = ((Rung.FILE, "not signed"),)
    assert told((*tried, (Rung.COMMAND, "none"), (Rung.FULL, "refused"))) == (
        "full: refused",
        "file: not signed",
        "command: none",
    )


def test_fadump_leaves_the_command_alone() -> None:
    dump = Allowed(firmware_dump="fadump")
    assert route(dump, own_image=True, command=True).rungs == (Rung.COMMAND,)
    assert route(dump, own_image=True).rungs == ()
    assert ("file", "fadump") in [
        (rung.value, why) for rung, why in route(dump, own_image=True).ruled_out
    ]


@given(ACCESS, ACCESS, st.booleans(), st.sampled_from(["", "the keys"]), st.booleans())
def test_every_route_keeps_the_order_and_says_why_it_leaves_out(
    load: Access, file: Access, own: bool, needs: str, command: bool
) -> None:
    found = route(Allowed(load, file), own_image=own, no_kexec_load=needs, command=command)
    assert list(found.rungs) == sorted(found.rungs, key=list(Rung).index)
    assert (Rung.FULL in found.rungs) == bool(load and not needs)
    assert (Rung.DELTA in found.rungs) == (own and Rung.FULL in found.rungs)
    assert (Rung.FILE in found.rungs) == bool(file)
    assert (Rung.COMMAND in found.rungs) == command
    ruled_out = {rung for rung, why in found.ruled_out if why}
    nothing_to_build_on = {Rung.DELTA} if Rung.FULL in found.rungs and not own else set()
    assert ruled_out == set(Rung) - set(found.rungs) - nothing_to_build_on
