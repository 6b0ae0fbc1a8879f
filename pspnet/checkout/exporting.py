"""`pspnet data export`: write a prepared set as a folder of files. Preparing that folder gives the same set again."""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.shards import open_shard
from pspnet.dataset.store.splits import SPLITS
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_folder
from pspnet.raw.files import is_hidden
from pspnet.raw.grouping import SPLITS_CSV
from pspnet.raw.problems import shortened


class _Row(NamedTuple):
    id: str
    split: str
    group: str
    image: Any  # a pyarrow.Buffer; the same goes for the mask
    mask: Any | None


def export(prepared: Path, out: Path, splits: Collection[str], tick: terminal.Tick) -> None:
    dataset = PreparedDataset.open(prepared)
    index = dataset.index()
    chosen = index[index["split"].isin(splits or SPLITS)]
    if problems := [*_command_problems(prepared, out, splits), *_id_problems(chosen["id"])]:
        raise UserError(shortened(problems))
    with whole_folder(out) as folder, (folder / SPLITS_CSV).open("w", encoding="utf-8", newline="") as file:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        listed = csv.writer(file, lineterminator="\n")
        listed.writerow(["id", "split", "group"])
        for done, row in enumerate(_rows(dataset, {*chosen["split"]}), start=1):
            suffix = "png" if row.image[:4].to_pybytes() == b"\x89PNG" else "jpg"
            _write(folder / "images" / f"{row.id}.{suffix}", row.image)
            if row.mask is not None:
                _write(folder / "masks" / f"{row.id}.png", row.mask)
            listed.writerow([row.id, row.split, row.group])
            tick(done, len(chosen), row.id)
        classes = {
            "classes": {name: value for value, name in enumerate(dataset.classes)},
            "colors": {name: list(color) for name, color in zip(dataset.classes, dataset.colors, strict=True)},
            "ignore_values": [dataset.ignore],
        }
        text = yaml.safe_dump(classes, sort_keys=False, allow_unicode=True, default_flow_style=None)
        (folder / "classes.yaml").write_text(text, encoding="utf-8")
    masks = int(chosen["has_mask"].sum())
    terminal.out.print(f"{out}: {len(chosen):,} images, {masks:,} masks, classes.yaml, {SPLITS_CSV}", markup=False)


def _command_problems(prepared: Path, out: Path, splits: Collection[str]) -> Iterator[Problem]:
    for split in splits:
        if split not in SPLITS:
            yield Problem(f"--split {split}", "is not a split", "one of " + ", ".join(SPLITS))
    if out.resolve().is_relative_to(prepared.resolve()):
        yield Problem(str(out), f"is inside {prepared}", "a folder elsewhere")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        yield Problem(str(out), "already exists", "an empty or missing folder", "Choose another folder.")


def _id_problems(ids: Collection[str]) -> Iterator[Problem]:
    for name in ids:
        path = PurePosixPath(name)
        if str(path) != name or path.is_absolute() or any(map(is_hidden, path.parts)):
            yield Problem(f"id '{name}'", "is not a path that `prepare` would find again", "folders and a name")


def _rows(dataset: PreparedDataset, splits: Collection[str]) -> Iterator[_Row]:
    for shard in dataset.shards:
        batch = open_shard(dataset.folder / "shards" / shard.name)
        for row, split in enumerate(batch.column("split").to_pylist()):
            if split in splits:
                name, group = (batch.column(column)[row].as_py() for column in ("id", "group"))
                yield _Row(name, split, group, *(batch.column(column)[row].as_buffer() for column in ("image", "mask")))


def _write(path: Path, data: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:  # two ids may differ only in case, or one may be a folder in the path of the other
        raise UserError(
            Problem(str(path), "already exists for another id", "names that this disk can distinguish")
        ) from None
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be written ({error.strerror})")) from None
