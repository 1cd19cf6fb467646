"""Which rungs are tried, in which order, and why others are not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdumphpd.load.ladder import Route, Rung, route
from kdumphpd.load.probe import Access, Allowed

REFUSED = Access("refused", 1)
ACCESS = st.sampled_from([Access(), REFUSED, Access("not there", 38)])


def test_a_free_host_begins_with_a_delta_where_there_is_one_to_make() -> None:
    assert route(Allowed(), own_image=True) == Route((Rung.DELTA, Rung.FULL, Rung.FILE))
    assert route(Allowed(), own_image=False) == Route((Rung.FULL, Rung.FILE))


def test_without_kexec_load_the_kernel_makes_the_image() -> None:
    found = route(Allowed(kexec_load=REFUSED), own_image=True, command=True)
    assert found == Route((Rung.FILE, Rung.COMMAND), ("refused",))


def test_keys_that_only_files_carry_leave_kexec_load_out() -> None:
    found = route(Allowed(), own_image=True, needs_file_load="the keys")
    assert found == Route((Rung.FILE,), ("the keys",))


def test_the_ladder_may_end_before_it_begins() -> None:
    found = route(Allowed(REFUSED, Access("no files", 38)), own_image=True)
    assert found.rungs == ()
    assert found.reasons == ("refused", "no files", "no command is configured ([update] command)")


def test_fadump_leaves_the_command_alone() -> None:
    dump = Allowed(firmware_dump="fadump")
    assert route(dump, own_image=True, command=True) == Route((Rung.COMMAND,), ("fadump",))
    assert route(dump, own_image=True).rungs == ()


@given(ACCESS, ACCESS, st.booleans(), st.sampled_from(["", "the keys"]), st.booleans())
def test_every_route_keeps_the_order_and_says_why_it_leaves_out(
    load: Access, file: Access, own: bool, needs: str, command: bool
) -> None:
    found = route(Allowed(load, file), own_image=own, needs_file_load=needs, command=command)
    assert list(found.rungs) == sorted(found.rungs, key=list(Rung).index)
    assert (Rung.FULL in found.rungs) == bool(load and not needs)
    assert (Rung.DELTA in found.rungs) == (own and Rung.FULL in found.rungs)
    assert (Rung.FILE in found.rungs) == bool(file)
    assert (Rung.COMMAND in found.rungs) == command
    ordinary = bool(found.rungs) and found.rungs[0] in (Rung.DELTA, Rung.FULL)
    assert bool(found.reasons) != ordinary
    assert all(found.reasons)
