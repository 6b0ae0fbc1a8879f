"""Schedules that once lost a champion, and a sample of the schedules that `tests.registry.interleavings` runs."""

import pytest

from tests.registry.interleavings import CASES, WRITE_ALIAS, Case, World, explore


def test_a_process_suspended_before_its_write_and_before_its_repair_changes_nothing() -> None:
    world = World([2, 3])
    sleeper, other = world.processes
    sleeper.until(WRITE_ALIAS)
    other.finish()
    sleeper.step()
    assert world.champion == 2  # the sleeper is suspended again before its repair
    assert world.end() == []
    assert world.champion == 3
    assert "was set to version 2 by a late write; it is put back to version 3" in world.warnings[0]
    sleeper.finish()
    assert (world.end(), world.champion) == ([], 3)


def test_a_process_that_was_suspended_repairs_its_write_itself() -> None:
    world = World([2, 3])
    sleeper, other = world.processes
    sleeper.until(WRITE_ALIAS)
    other.finish()
    sleeper.finish()
    assert (world.champion, world.warnings) == (3, [])
    assert world.end() == []


def test_a_write_that_arrives_after_a_later_move_is_put_back() -> None:
    world = World([2, 3])
    first, other = world.processes
    first.until(WRITE_ALIAS)
    first.step("late")
    first.finish()
    other.finish()
    world.land()
    assert world.champion == 2
    assert (world.end(), world.champion) == ([], 3)


def test_an_abandoned_move_does_not_replace_what_a_person_set() -> None:
    world = World([2, None])
    sleeper, other = world.processes
    sleeper.until(WRITE_ALIAS)
    world.set_by_person(5)
    other.finish()
    sleeper.step()
    assert world.champion == 2
    sleeper.die()
    assert (world.end(), world.champion) == ([], 5)
    assert [(move.kind, move.state) for move in world.moves()[1:]] == [("promotion", "abandoned"), ("outside", "done")]


def test_a_late_abandoned_move_does_not_hide_what_a_person_set() -> None:
    """The process writes after another process has seen the person's version, but before that
    process has recorded it.
    """
    world = World([2, None])
    sleeper, other = world.processes
    sleeper.until(WRITE_ALIAS)
    world.set_by_person(5)
    while len(world.moves()) < 2 or world.moves()[1].state == "pending":
        other.step()
    sleeper.step()
    sleeper.die()
    assert world.champion == 2
    other.finish()
    assert (world.end(), world.champion) == ([], 5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-").replace(",", ""))
def test_the_audit_tells_the_truth_in_every_order_of_calls(case: Case) -> None:
    found = explore(case, limit=100)
    assert found.schedules == 100
    assert not found.wrong
