"""Stores claims and records of moves in MLflow.

A claim is the experiment `MODEL.promotion.N`, a record is a run in the experiment `MODEL.promotions`, and the
experiment `MODEL.promotion.N.closed` says how move N ended. `audit.py` explains why all three are needed.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pspnet.errors import Problem, UserError
from pspnet.registry.records import DONE, PENDING, Move
from pspnet.registry.seal import KEY
from pspnet.tracking.connection import experiment

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

REMOVE_CLAIM = "delete this experiment in MLflow"


class Ledger:
    """The claims and records of one model."""

    def __init__(self, client: "MlflowClient", state: Path, model: str) -> None:
        self._client, self._state, self._model = client, state, model
        self._home = f"{model}.promotions"
        self._claim_prefix = f"{model}.promotion."

    def moves(self) -> list[Move]:
        """Return all moves, oldest first, including unfinished ones."""
        found = {move.number: move for _, move in self.claims()} | self.records()
        return [found[number] for number in sorted(found)]

    def unfinished(self) -> "tuple[Experiment | None, Move] | None":
        """Return the oldest claimed move or, if there is no claim, an open record, whose claim was deleted."""
        records = self.records()
        if claims := self.claims():
            return claims[0]
        newest = records[max(records)] if records else None
        return (None, newest) if newest and newest.state == PENDING else None

    def champion(self) -> int:
        """Return the champion according to the records, or 0 if there is none."""
        done = ((number, move.to_version) for number, move in self.records().items() if move.state == DONE)
        return max(done, default=(0, 0))[1]

    def claim(self, move: Move) -> "tuple[Experiment, Move] | None":
        """Claim the number of a move. Return None if another process has already claimed it."""
        from mlflow.exceptions import MlflowException

        name = f"{self._claim_prefix}{move.number}"
        try:
            return self._client.get_experiment(self._client.create_experiment(name, tags=move.tags())), move
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        taken = self._client.get_experiment_by_name(name)
        if taken is None:
            return None
        if Move.from_tags(taken.tags) == move:  # the claim is ours: only the response to our request was lost
            return taken, move
        if taken.lifecycle_stage == "deleted" and not self._runs(move.number):
            after = replace(move, number=move.number + 1)
            return self.claim(after.signed(self._model))  # someone has deleted an unfinished claim
        return None

    def claims(self) -> "list[tuple[Experiment, Move]]":
        """Return the claims of unfinished moves, oldest first."""
        prefix = self._claim_prefix
        found = self._client.search_experiments(filter_string=f"name LIKE '{prefix}%'", max_results=1000)
        # MLflow reads the tags in a second query. An experiment that was deleted between the two queries has none.
        claims = [claim for claim in found if claim.name == f"{prefix}{claim.tags.get('number')}"]
        moves = [Move.from_tags(claim.tags) for claim in claims]
        for move in moves:
            if not move.is_signed(self._model):
                raise _forged(f"{prefix}{move.number}", REMOVE_CLAIM)
        return sorted(zip(claims, moves, strict=True), key=lambda pair: pair[1].number)

    def winner(self, number: int) -> str:
        """Describe the move that has this number."""
        claim = self._client.get_experiment_by_name(f"{self._claim_prefix}{number}")
        if claim is None:
            return f"move {number} was claimed by another process"
        move = Move.from_tags(claim.tags)
        return f"{move.kind} {number} (to version {move.to_version}) was won by {move.who} on {move.host}"

    def remove(self, experiment_id: str) -> None:
        """Delete a claim. Its name stays taken and cannot be reused."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_experiment(experiment_id)
        except MlflowException:  # another process finished this move at the same time
            if self._client.get_experiment(experiment_id).lifecycle_stage != "deleted":
                raise

    def record(self, move: Move) -> None:
        """Create a record for this move, unless it already has one."""
        if not self._runs(move.number):
            home = experiment(self._client, self._state, self._home)
            tags = replace(move, state=PENDING).tags()
            name = f"{move.number}: {move.kind} of version {move.to_version}"
            self._client.create_run(home, tags=tags, run_name=name)

    def records(self, number: int | None = None) -> dict[int, Move]:
        """Return the records by number. Of two records with the same number, a closed one wins, otherwise the older."""
        found: dict[int, Move] = {}
        for move in (Move.from_tags(run.data.tags) for run in self._runs(number)):
            if move.number not in found or (found[move.number].state == PENDING and move.state != PENDING):
                found[move.number] = move
        if number is None:
            self._refuse_forged(found.values())
        return found

    def closed(self, move: Move) -> Move | None:
        """Return the move in its closed form if some process has closed it, otherwise None."""
        found = self.records(move.number).get(move.number)
        return found if found and found.state != PENDING else None

    def close(self, move: Move) -> tuple[Move, bool]:
        """Return how the move ended, and whether this process was the first to record it."""
        from mlflow.exceptions import MlflowException

        name = f"{self._claim_prefix}{move.number}.closed"
        try:
            self.remove(self._client.create_experiment(name, tags=move.tags()))
            return move, True
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self._client.get_experiment_by_name(name)
        assert found is not None
        if found.lifecycle_stage != "deleted":
            self.remove(found.experiment_id)
        closed = Move.from_tags(found.tags)
        if not closed.is_signed(self._model):
            raise _forged(name, REMOVE_CLAIM)
        return closed, False

    def file(self, move: Move) -> None:
        """Copy a closed move to its record, and delete duplicate records that others created at the same time."""
        from mlflow.exceptions import MlflowException

        oldest, *others = self._runs(move.number)
        try:
            for key in ("note", "finished", "closing", "state"):  # the state is set last, because it closes the record
                self._client.set_tag(oldest.info.run_id, key, getattr(move, key))
            self._client.set_terminated(oldest.info.run_id, "FINISHED" if move.state == DONE else "KILLED")
        except MlflowException:
            if self._client.get_run(oldest.info.run_id).info.lifecycle_stage != "deleted":
                raise
            self.file(move)  # another process saw an older record and deleted this one
            return
        for run in others:
            self._client.delete_run(run.info.run_id)

    def _refuse_forged(self, records: Collection[Move]) -> None:
        """With a key, reject unsigned records, except those older than all signed ones, which predate the key."""
        signed = {move.number for move in records if move.is_signed(self._model)}
        for move in records:
            if signed and move.number > min(signed) and move.number not in signed:
                raise _forged(f"{self._home}, move {move.number}", "delete its run in MLflow")

    def _runs(self, number: int | None = None) -> "list[MlflowRun]":
        """Return the MLflow runs of all records, or of the records with one number, oldest first."""
        home = self._client.get_experiment_by_name(self._home)
        if home is None:
            return []
        if home.lifecycle_stage == "deleted":  # someone deleted the experiment; restoring it restores its runs
            self._client.restore_experiment(home.experiment_id)
        found: list[MlflowRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [home.experiment_id],
                filter_string=f"tags.number = '{number}'" if number else "",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += [run for run in page if "number" in run.data.tags]  # as above, a deleted run may have no tags
            token = page.token
            if not token:
                return found


def _forged(where: str, remedy: str) -> UserError:
    fix = f"Every process that promotes needs the key. If someone else wrote this move, {remedy}."
    return UserError(Problem(where, f"is not signed with {KEY}", fix=fix))
