"""Registered versions, their aliases, and the folders to which versions are downloaded."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import yaml

from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_file, whole_folder
from pspnet.model.backbone.digest import digest
from pspnet.registry.seal import CONTENT, KEY, content_digest, has_key, is_signed, seal

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
FOLDERS, SHORT = "versions", 16  # folders in the state: MODEL-NUMBER-BUNDLE, with 16 characters of the bundle digest
MEMORY = "content"  # name of the file next to a downloaded version that contains the digest of its files
BUNDLE = "pspnet.bundle"  # tag that contains the digest of a version's bundle


@dataclass(frozen=True)
class Version:
    number: int
    bundle: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: datetime
    run_id: str
    source: str

    @property
    def content(self) -> str:
        """Return the digest of the version's files, or an empty string if the version predates seals."""
        return self.tags.get(CONTENT, "")

    @property
    def mean_iou(self) -> float | None:
        value = self.tags.get("test_mean_iou")
        return float(value) if value else None


def has_folder(state: Path, bundle: str) -> bool:
    """Return whether a version with this bundle was downloaded to this machine. Does not ask MLflow."""
    return any((state / FOLDERS).glob(f"*-{bundle[:SHORT]}"))


class Versions:
    """The versions of one registered model."""

    def __init__(self, client: "MlflowClient", state: Path, model: str) -> None:
        self.client, self.model = client, model
        self._folders = state / FOLDERS

    def all(self) -> list[Version]:
        """Return all versions, oldest first."""
        aliases = self._aliases()
        found: list[Version] = []
        token = None
        while True:
            page = self.client.search_model_versions(f"name = '{self.model}'", max_results=200, page_token=token)
            found += [_version(item, aliases) for item in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda version: version.number)

    def get(self, which: str) -> Version:
        """Return a version by number or alias."""
        versions = self.all()
        for version in versions:
            if which in (str(version.number), *version.aliases):
                return version
        if not versions:
            raise UserError(Problem(self.model, "has no versions yet", fix=HOW_TO_REGISTER))
        if which == CHAMPION:
            raise UserError(_no_champion(self.model, versions))
        known = ", ".join(str(v.number) + "".join(f" ({alias})" for alias in v.aliases) for v in versions)
        raise UserError(Problem(self.model, f"has no version '{which}'", known))

    def exists(self, number: int) -> bool:
        return any(version.number == number for version in self.all())

    def alias(self, alias: str) -> int | None:
        return self._aliases().get(alias)

    def add(self, source: str, run_id: str, bundle: str, content: str, tags: Mapping[str, str]) -> Version:
        """Add a version and its tags in a single write. If two hosts add the same bundle at once, the first wins."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # it already exists; if not, the next call reports why
            self.client.create_registered_model(self.model)
        self.client.create_model_version(
            self.model, source, run_id, tags={**tags, BUNDLE: bundle, **seal(self.model, bundle, content)}
        )
        added = self.by_bundle(bundle)
        assert added is not None
        return added

    def by_bundle(self, bundle: str) -> Version | None:
        """Return a bundle's version, and delete later ones that other hosts added for it at the same time."""
        from mlflow.exceptions import MlflowException

        found = [version for version in self.all() if version.bundle == bundle]
        for version in found[1:]:
            if not version.aliases:
                with contextlib.suppress(MlflowException):  # the other host has deleted it
                    self.client.delete_model_version(self.model, str(version.number))
        return found[0] if found else None

    def set_tags(self, number: int, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_model_version_tag(self.model, str(number), key, value)

    def set_alias(self, alias: str, number: int) -> None:
        self.client.set_registered_model_alias(self.model, alias, str(number))

    def remove_alias(self, alias: str) -> None:
        self.client.delete_registered_model_alias(self.model, alias)

    def model_tags(self) -> dict[str, str]:
        model = self._registered_model()
        return dict(model.tags) if model else {}

    def set_model_tag(self, key: str, value: str) -> None:
        self.client.set_registered_model_tag(self.model, key, value)

    def remove_model_tag(self, key: str) -> None:
        self.client.delete_registered_model_tag(self.model, key)

    def folder(self, version: Version) -> Path:
        """Return a version's folder on this machine, after downloading the version if needed and checking its seal."""
        folder = self._downloaded(version)
        self._check_seal(version, content_of(folder))
        return folder

    def seal(self, version: Version) -> Version:
        """Seal a version with the digest of its current files."""
        content = content_of(self._downloaded(version))
        if version.content:
            self._check_content(version, content)
        self.set_tags(version.number, seal(self.model, version.bundle, content))
        return self.get(str(version.number))

    def _downloaded(self, version: Version) -> Path:
        if not version.bundle:
            fix = "Register the bundle with `pspnet register`."
            raise UserError(Problem(self._name(version), "was not registered by pspnet", fix=fix))
        folder = self._folders / f"{self.model}-{version.number}-{version.bundle[:SHORT]}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):  # another process in this checkout may be downloading it
            if not folder.exists():
                self._download(version, folder)
            if not (folder / MEMORY).exists():  # downloaded before versions had seals
                _remember(folder)
        return folder / "model"

    def _download(self, version: Version, folder: Path) -> None:
        from mlflow.artifacts import download_artifacts

        with whole_folder(folder) as partial:
            try:
                download_artifacts(artifact_uri=version.source, dst_path=str(partial / "download"))
                (files,) = [path.parent for path in (partial / "download").rglob("MLmodel")]
                found = digest(part(files, "bundle"))
            except Exception as error:  # each kind of store raises its own errors
                reason = (str(error) or type(error).__name__).splitlines()[0]
                problem = f"cannot be downloaded from {version.source} ({reason})"
                raise UserError(Problem(self._name(version), problem)) from error
            files.rename(partial / "model")
            if version.content:
                self._check_content(version, content_digest(partial / "model"))
            if found != version.bundle:
                problem = f"contains the bundle {found[:SHORT]} (from {version.source})"
                expected = f"{version.bundle[:SHORT]}, as registered"
                raise UserError(Problem(self._name(version), problem, expected, CHANGED))
            _remember(partial)

    def _check_seal(self, version: Version, content: str) -> None:
        if version.content:
            self._check_content(version, content)
        fix = f"If you trust its files, `pspnet models seal {version.number}` seals them."
        if has_key() and not version.content:
            raise UserError(Problem(self._name(version), "has no seal", f"a seal, since {KEY} is set", fix))
        if not is_signed(self.model, version.bundle, version.tags):
            raise UserError(Problem(self._name(version), f"has a seal that was not signed with {KEY}", fix=fix))

    def _check_content(self, version: Version, content: str) -> None:
        if content != version.content:
            digest = f"digest {content[:SHORT]}, from {version.source}"
            problem = f"has files that differ from when it was registered ({digest})"
            raise UserError(Problem(self._name(version), problem, f"the digest {version.content[:SHORT]}", CHANGED))

    def _name(self, version: Version) -> str:
        return f"{self.model} version {version.number}"

    def _aliases(self) -> dict[str, int]:
        model = self._registered_model()
        return {alias: int(number) for alias, number in model.aliases.items()} if model else {}

    def _registered_model(self) -> "RegisteredModel | None":
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_registered_model(self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def _no_champion(model: str, versions: list[Version]) -> Problem:
    waiting = [version.number for version in versions if version.tags.get("approval") == "waiting"]
    numbers = ", ".join(str(version.number) for version in versions)
    if waiting:
        found = f"; version {waiting[-1]} passed the gate and is waiting for approval"
        command = f"{waiting[-1]} --approve"
    else:
        found, command = "", str(versions[-1].number)
    fix = f"Run `pspnet promote {command}`, or give the number of a version: {numbers}."
    return Problem(model, f"has no champion yet{found}", fix=fix)


CHANGED = "Someone has changed the files. Use another version, and find out who can write there."
HOW_TO_REGISTER = "`make retrain` registers what it trains."


def content_of(folder: Path) -> str:
    """Return the digest of the files of the version in `folder`, as computed when the version was downloaded."""
    return (folder.parent / MEMORY).read_text(encoding="utf-8").strip()


def _remember(folder: Path) -> None:
    with whole_file(folder / MEMORY) as partial:
        partial.write_text(content_digest(folder / "model") + "\n", encoding="utf-8")


def part(folder: Path, name: str) -> Path:
    """Return the path of one part of a version: its bundle, report, expected predictions or provenance."""
    try:
        model: dict[str, Any] = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        found = folder / str(model["flavors"]["python_function"]["artifacts"][name]["path"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        found = None
    if found is None or not found.exists() or not found.resolve().is_relative_to(folder.resolve()):
        fix = f"Remove {folder.parent}; it will be downloaded again."
        raise UserError(Problem(str(folder), f"contains no {name}", "the files of a version", fix))
    return found


def _version(item: "ModelVersion", aliases: Mapping[str, int]) -> Version:
    number = int(item.version)
    return Version(
        number=number,
        bundle=item.tags.get(BUNDLE, ""),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        tags=dict(item.tags),
        created=datetime.fromtimestamp(item.creation_timestamp / 1000, UTC),
        run_id=item.run_id or "",
        source=item.source or "",
    )
