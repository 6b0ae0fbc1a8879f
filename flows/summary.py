"""Shows a retraining run in the Prefect UI: a table of the stages, and the decision with its reasons and pictures."""

from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.markdown import escaped
from flows.pictures import data_url
from flows.progress import harmless
from flows.tasks import StageResult

LONGEST_PX = 1280  # the picture's longest side


class RetrainSummary:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results: dict[str, StageResult] = {}
        self.registered: dict[str, Any] = {}  # the result of `pspnet register --promote`

    def add(self, result: StageResult) -> None:
        self._results[result.stage] = result

    def is_new(self, stage: str) -> bool:
        return stage in self._results and self._results[stage].how != "unchanged"

    @property
    def headline(self) -> str:
        return str(self.registered["headline"])

    def publish(self) -> None:
        with harmless():
            headline = escaped(self.headline)
            create_table_artifact([self._row(result) for result in self._results.values()], "stages", headline)
            create_markdown_artifact("\n\n".join(self._paragraphs()), "summary", headline)

    def _row(self, result: StageResult) -> dict[str, Any]:
        page = self.registered["pages"].get(result.stage)
        run = f"[MLflow run]({page})" if page else ""
        seconds = round(result.seconds, 1)
        return {"stage": result.stage, "": result.how, "seconds": seconds, "where": result.where, "run": run}

    def _paragraphs(self) -> list[str]:
        facts = self.registered
        decision = facts["promotion"]["decision"]
        paragraphs = [f"# {escaped(self.headline)}", f"Test mIoU **{facts['test_mean_iou']:.3f}**"]
        if decision:
            marks = {True: "passed", False: "**not passed**"}
            reasons = [
                f"| {marks[reason['passed']]} | {escaped(reason['rule'])} | {escaped(reason['text'])} |"
                for reason in decision["reasons"]
            ]
            paragraphs.append("\n".join(["| | rule | found |", "|---|---|---|", *reasons]))
        rows = [self._row(result) for result in self._results.values()]
        table = [
            f"| {escaped(row['stage'])} | {row['']} | {row['seconds']} | {escaped(row['where'])} | {row['run']} |"
            for row in rows
        ]
        paragraphs.append("\n".join(["| stage | | seconds | where | |", "|---|---|---|---|---|", *table]))
        links = [f"[{escaped(name)}]({page})" for name, page in facts["pages"].items() if name not in self._results]
        paragraphs.append(" · ".join(links))
        if (picture := self._folder / facts["picture"]).exists():
            paragraphs.append("A test image, its mask, the prediction, the errors:")
            paragraphs.append(f"![]({data_url(picture, LONGEST_PX)})")
        return [paragraph for paragraph in paragraphs if paragraph]
