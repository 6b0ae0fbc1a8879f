"""Runs the audit in two or three processes at once, over a registry in memory, in every order up to a bound.

Each process is a greenlet that stops before each of its calls to MLflow. A schedule says which process continues, which
write is lost or late, which process dies, and when a person sets the alias. A schedule is cut short when it reaches a
state that an earlier schedule has been in (the registry, what each process has read so far, what may still happen). At
the end of a schedule, all late writes arrive and one more process settles the rest. Then the audit must tell the truth.

    python -m tests.registry.interleavings                 # all schedules within the bounds of CASES
    git show COMMIT:pspnet/registry/audit.py > old.py
    python -m tests.registry.interleavings --audit old.py  # the same with a different audit, such as an older one
"""

import argparse
import importlib.util
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from mlflow.exceptions import MlflowException

from pspnet.registry import audit as shipped
from pspnet.registry.versions import CHAMPION, Versions
from pspnet.tracking.connection import RETRIES
from tests.registry.memory import WRITES, Registry

MODEL = "streets"
WRITE_ALIAS = "set_registered_model_alias"
SLOW = 100.0  # virtual seconds that pass in a second of sleep, so that no schedule waits for long
LONGEST = 1500  # number of calls in a schedule; a longer schedule would never end
NAMES = "ABC"


class Process:
    """A process that promotes a version, or settles what others left behind if the version is None. For the audit, the
    process is MLflow's client.
    """

    def __init__(self, world: "World", name: str, version: int | None) -> None:
        self.world, self.name, self.version = world, name, version
        self.read = 0  # a digest of all answers that the process has received so far
        self.pending = ""  # the next call of the process
        self.moved: Any = None
        self._retries = ""  # each process has its own environment
        self._body = greenlet(self._work)
        self._body.name = name
        self._resume()

    @property
    def ended(self) -> bool:
        return bool(self._body.dead)

    def step(self, fate: str = "ok") -> None:
        """Make the pending call and continue until the next call."""
        self._resume(fate)

    def die(self) -> None:
        self._body.throw(GreenletExit)

    def until(self, call: str) -> None:
        """Continue until just before this call."""
        while self.pending != call:
            assert not self.ended, f"{self.name} never reaches {call}"
            self.step()

    def finish(self) -> None:
        for _ in range(LONGEST):
            if self.ended:
                return
            self.step()
        raise RecursionError

    def sleep(self, seconds: float) -> None:
        self.pending = "sleep"
        self._stop()
        self.world.seconds += seconds * SLOW
        self.read = hash((self.read, self.world.seconds))

    def _work(self) -> None:
        module = self.world.module
        audit = _audit(self)
        with suppress(MlflowException, module.Busy):
            if self.version is None:
                audit.settle()
            else:
                self.moved = _promote(module, audit, self.version)

    def _resume(self, *fate: str) -> None:
        ours = os.environ.get(RETRIES, "")
        _set_retries(self._retries)
        self._body.switch(*fate)
        self._retries = os.environ.get(RETRIES, "")
        _set_retries(ours)

    def _stop(self) -> str:
        return str(getcurrent().parent.switch())

    def __getattr__(self, call: str) -> Any:
        if call.startswith("_") or not hasattr(Registry, call):
            raise AttributeError(call)
        return partial(self._call, call)

    def _call(self, call: str, *arguments: Any, **named: Any) -> Any:
        self.pending = call
        fate = self._stop()
        act = partial(getattr(self.world.registry, call), *arguments, **named)
        try:
            if fate in ("late", "twice"):
                self.world.in_flight.append(act)
                self.world.repeated |= fate == "twice"
            if fate in ("late", "lost") and os.environ.get(RETRIES) == "0":
                raise MlflowException(f"{call}: no answer")
            result = act()  # the first attempt, or a retry of MLflow's client
        except MlflowException as error:
            self.read = hash((self.read, call, error.error_code))
            raise
        self.read = hash((self.read, call, repr(result)))
        return result


class World:
    """A registry whose champion is version 1, and the processes that work on it."""

    def __init__(self, versions: Sequence[int | None], module: ModuleType = shipped) -> None:
        self.module, self.seconds = module, 0.0
        self.registry = _start(module).copy()
        self.in_flight: list[partial[Any]] = []
        self.repeated = False  # whether the network has repeated a write
        self.set_by_persons: list[int] = []
        self.warnings: list[str] = []
        self.processes = [Process(self, name, version) for name, version in zip(NAMES, versions, strict=False)]

    @property
    def champion(self) -> int:
        return self.registry.aliases.get(CHAMPION, 0)

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def land(self) -> None:
        with suppress(MlflowException):
            self.in_flight.pop(0)()

    def set_by_person(self, version: int) -> None:
        self.set_by_persons.append(version)
        self.registry.aliases[CHAMPION] = version

    def end(self) -> list[str]:
        """Settle what is left. Returns what is wrong afterwards."""
        while self.in_flight:
            self.land()
        last = Process(self, "last", None)
        try:
            last.finish()
        except RecursionError:
            last.die()
            return ["settling never finishes"]
        return list(self._wrong())

    def clear(self) -> None:
        for process in self.processes:
            process.die()

    def moves(self) -> list[Any]:
        """Return the moves as the audit shows them."""
        found: dict[int, Any] = {}
        read = self.module._move if hasattr(self.module, "_move") else self.module.Move.from_tags
        for move in (read(run.tags) for run in self.registry.runs if run.stage == "active"):
            if move.number and (move.number not in found or found[move.number].state == "pending"):
                found[move.number] = move
        return [found[number] for number in sorted(found)]

    def state(self) -> int:
        processes = tuple((process.read, process.pending, process.ended) for process in self.processes)
        in_flight = tuple(repr((act.args, act.keywords)) for act in self.in_flight)
        return hash((self.registry.content(), processes, in_flight, tuple(self.set_by_persons)))

    def _wrong(self) -> Iterator[str]:
        moves = self.moves()
        done = [move for move in moves if move.state == "done"]
        claims = [e for e in self.registry.experiments if e.stage == "active" and ".promotion." in e.name]
        if claims or len(done) + sum(move.state == "abandoned" for move in moves) < len(moves):
            yield "a move is unfinished"
        if [move.number for move in moves] != list(range(1, len(moves) + 1)):
            yield "a number is missing"
        if [move.from_version for move in done] != [0, *(move.to_version for move in done)][: len(done)]:
            yield "a move does not start where the previous move ended"
        if self.champion != done[-1].to_version:
            yield "the champion is not the last version on record"
        for move in done:
            if move.kind == "outside" and move.to_version not in self.set_by_persons and not self._warned(move):
                yield "a late write counts as a write by a person"
        for process in self.processes:
            if process.moved and process.moved.number not in [
                m.number for m in done if m.to_version == process.version
            ]:
                yield "a process believes its version became champion, but according to the audit it never did"

    def _warned(self, move: Any) -> bool:
        """A repeated write goes unnoticed by design, but if it sets an earlier version, the audit warns."""
        text = f"went from version {move.from_version} to version {move.to_version} outside pspnet"
        return self.repeated and any(text in warning for warning in self.warnings)


@dataclass(frozen=True)
class Bounds:
    """Limits on what may happen in one schedule."""

    switches: int  # switches away from a process that could continue
    deaths: int = 0  # deaths before a write; a process that is never resumed represents a death anywhere else
    faults: int = 0  # writes lost or late; the network may also repeat writes of the alias
    persons: int = 0

    def covers(self, other: "Bounds") -> bool:
        ours, others = vars(self).values(), vars(other).values()
        return all(mine >= its for mine, its in zip(ours, others, strict=True))


@dataclass(frozen=True)
class Case:
    name: str
    versions: tuple[int | None, ...]  # the version that each process promotes; None: the process settles
    bounds: Bounds
    person: int = 5  # the version that a person sets
    most: int | None = None  # number of schedules, chosen at random, because running all would take days


CASES = (
    Case("two promote, one may die", (2, 3), Bounds(switches=2, deaths=1)),
    Case("two promote, a write may be lost or late", (2, 3), Bounds(switches=1, faults=1)),
    Case("one promotes, one settles, a person sets a new version", (2, None), Bounds(switches=2, persons=1)),
    Case("one promotes, one settles, a person sets the version before", (2, None), Bounds(switches=1, persons=1), 1),
    Case("two promote, one settles", (2, 3, None), Bounds(switches=1, deaths=1), most=100_000),
)

Choice = tuple[str, int]  # (what happens, the process it happens to)


@dataclass
class Found:
    schedules: int = 0
    states: int = 0
    all: bool = True  # whether all schedules within the bounds were run
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Choice]] = field(default_factory=dict)


def explore(case: Case, module: ModuleType = shipped, limit: int | None = None) -> Found:
    """Run all schedules, or `limit` of them in a random order that is the same in each run."""
    found, chance = Found(), random.Random(0)
    seen: dict[int, list[Bounds]] = {}
    todo: list[list[Choice]] = [[]]
    while todo:
        if limit and found.schedules == limit:
            found.all = False
            break
        if limit:
            other = chance.randrange(len(todo))
            todo[other], todo[-1] = todo[-1], todo[other]
        world = World(case.versions, module)
        taken, ended = _follow(world, case, todo.pop(), todo, seen)
        found.schedules += 1
        for text in world.end() if ended else ():
            found.wrong[text] += 1
            found.examples.setdefault(text, taken)
        world.clear()
    found.states = len(seen)
    return found


def _follow(
    world: World, case: Case, prefix: list[Choice], todo: list[list[Choice]], seen: dict[int, list[Bounds]]
) -> tuple[list[Choice], bool]:
    """Take the choices in `prefix`, then always the first; add the other choices to `todo`.

    Returns the choices taken, and whether the schedule was followed to its end. Otherwise, an earlier schedule has
    reached its state.
    """
    left, current = case.bounds, 0
    taken: list[Choice] = []
    while not all(process.ended for process in world.processes) and len(taken) < LONGEST:
        options = dict(_choices(world, current, left))
        if len(taken) < len(prefix):
            choice = prefix[len(taken)]
        else:
            before = seen.setdefault(hash((world.state(), current)), [])
            if any(bounds.covers(left) for bounds in before):
                return taken, False
            before.append(left)
            choice, *others = options
            todo += [[*taken, other] for other in others]
        left, current = options[choice], choice[1]
        _perform(world, case, choice)
        taken.append(choice)
    return taken, True


def _choices(world: World, current: int, left: Bounds) -> Iterator[tuple[Choice, Bounds]]:
    """Yield each possible next event, the most common first, with the bounds that are left after it."""
    alive = [number for number, process in enumerate(world.processes) if not process.ended]
    process = world.processes[current]
    if current in alive:
        yield ("ok", current), left
    waits = process.ended or process.pending == "sleep"
    if waits or left.switches:
        for number in alive:
            if number != current:
                yield ("ok", number), left if waits else replace(left, switches=left.switches - 1)
    if process.pending in WRITES and not process.ended:
        if left.deaths:
            yield ("die", current), replace(left, deaths=left.deaths - 1)
        if left.faults:
            for fate in ("lost", "late", "twice") if process.pending == WRITE_ALIAS else ("lost", "late"):
                yield (fate, current), replace(left, faults=left.faults - 1)
    if world.in_flight:
        yield ("land", current), left
    if left.persons:
        yield ("person", current), replace(left, persons=left.persons - 1)


def _perform(world: World, case: Case, choice: Choice) -> None:
    event, number = choice
    if event == "land":
        world.land()
    elif event == "person":
        world.set_by_person(case.person)
    elif event == "die":
        world.processes[number].die()
    else:
        world.processes[number].step(event)


@cache
def _start(module: ModuleType) -> Registry:
    world = World.__new__(World)
    world.module, world.seconds, world.in_flight, world.warnings = module, 0.0, [], []
    world.registry = Registry(MODEL, versions={number: {} for number in range(1, 8)})
    Process(world, "first", 1).finish()
    assert world.champion == 1
    return world.registry


def _promote(module: Any, audit: Any, version: int) -> Any:
    """Promote the version. Returns the move, or None if the audit gave up."""
    if hasattr(audit, "move"):  # only an older audit has `move`
        proposed = module.Wish("promotion", version, "")
        return audit.move(lambda _: proposed, lambda _: None)
    for position in audit.attempts():
        applied = audit.apply(module.ProposedMove("promotion", version, ""), position)
        if isinstance(applied, module.Move):
            return applied
    return None


def _audit(process: Process) -> Any:
    world, client = process.world, process
    versions = Versions(client, Path(), MODEL)  # type: ignore[arg-type]
    if not hasattr(world.module, "Clock"):
        return _old_audit(process, versions)
    clock = world.module.Clock(lambda: world.seconds, process.sleep, world.now)
    return world.module.Audit(client, Path(), versions, world.warnings.append, clock, process.name)


def _old_audit(process: Process, versions: Versions) -> Any:
    """Return an audit from before `Clock`, with its module's time replaced. Each process is on a separate host."""
    module: Any = process.world.module

    class Time:
        monotonic = staticmethod(lambda: getcurrent().process.world.seconds)
        sleep = staticmethod(lambda seconds: getcurrent().process.sleep(seconds))  # noqa: PLW0108

    getcurrent().process = process
    module.time, module._now = Time, lambda: "2030"
    module._process_name = lambda: f"{getcurrent().process.name}@0"
    module._is_gone = lambda move: False
    return module.Audit(process, Path(), versions)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("other_audit", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def _set_retries(value: str) -> None:
    if value:
        os.environ[RETRIES] = value
    else:
        os.environ.pop(RETRIES, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--audit", type=Path, help="a different audit.py, such as an older version")
    parser.add_argument("--case", default="", help="only the cases that contain this text in their name")
    parser.add_argument("--limit", type=int, help="run only this many schedules of each case, chosen at random")
    options = parser.parse_args()
    module = _load(options.audit) if options.audit else shipped
    schedules, wrong = 0, False
    for case in (case for case in CASES if options.case in case.name):
        start = time.monotonic()
        found = explore(case, module, options.limit or case.most)
        seconds = time.monotonic() - start
        schedules, wrong = schedules + found.schedules, wrong or bool(found.wrong)
        which = "all" if found.all else "some of the"
        print(
            f"{case.name}: {which} {found.schedules:,} schedules, {found.states:,} states, {seconds:.0f} s", flush=True
        )
        for text, times in found.wrong.most_common():
            print(f"  {times:,} times {text}: {_shown(found.examples[text])}", flush=True)
    print(f"{schedules:,} schedules")
    return int(wrong)


def _shown(schedule: list[Choice]) -> str:
    return ", ".join(
        f"{NAMES[number]} {what}" + (f" x{len(steps)}" if (steps := list(same)) and len(steps) > 1 else "")
        for (what, number), same in groupby(schedule)
    )


if __name__ == "__main__":
    sys.exit(main())
