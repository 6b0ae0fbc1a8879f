"""The flow that creates one part of a stage. The run that waits for the part (flows.team.parts) pulls it with DVC."""

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.command import run
from flows.dag import Stage, read_dag
from flows.failure import Failure, failure_of
from flows.flow_attempt import attempt, result_of
from flows.progress import Progress
from flows.sources import bring_up_to_date, dvc
from flows.tasks import as_task
from flows.team.parts import part_folder
from flows.workplace import Workplace


@flow(name="part", persist_result=False)
def part(name: str, number: int, of: int, files: dict[str, str]) -> State[Any]:
    """Create a part and push it. The message of the returned state is the part's .dvc file.

    `files`: params.yaml, dvc.lock and .dvc files of the waiting run.
    """

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        workplace.write(files)
        dag = read_dag(workplace.folder)
        stage = dag.named(name)
        sources, folder = dag.sources_of(stage), part_folder(number, of)
        for source in sources:
            update = as_task(source.name, bring_up_to_date, retries=5)
            result_of(update(workplace, source, environment, files, dag.has_remote))
        make = as_task(f"part {number}/{of}", make_part, stage.retries)
        result_of(make(workplace, stage, f"{number}/{of}", folder, environment))
        result_of(as_task("push", share, retries=3)(workplace, folder, environment))
        for path in (folder, *(Path(source.name) for source in sources)):  # a machine may have many of these worktrees
            shutil.rmtree(workplace.folder / path, ignore_errors=True)
        return Completed(message=(workplace.folder / f"{folder}.dvc").read_text(encoding="utf-8"))

    return attempt(work)


def make_part(
    workplace: Workplace, stage: Stage, which: str, folder: Path, environment: Mapping[str, str]
) -> Failure | None:
    """Run the stage's command for one part. The last --out wins. If an earlier attempt was killed, it is resumed."""
    command = [*shlex.split(stage.command), "--part", which, "--out", str(folder)]
    progress, log = Progress(stage.name), get_run_logger().info
    ended = run(command, workplace.folder, environment, log, stage.timeout_seconds, progress.show)
    failure = failure_of(ended, stage.timeout_seconds)
    if not failure:
        progress.finish()
    return failure


def share(workplace: Workplace, folder: Path, environment: Mapping[str, str]) -> Failure | None:
    failure = dvc(workplace.folder, environment, "add", str(folder))
    return failure or dvc(workplace.folder, environment, "push", f"{folder}.dvc")
