"""The champion alias, and the tags that distinguish a late write of it from a change made outside pspnet."""

from pspnet.registry.versions import CHAMPION, Versions
from pspnet.tracking.connection import without_retries

WRITING = "pspnet.writing."  # prefix of a model tag for a write of the alias that may still arrive


class ChampionAlias:
    """The alias as one process reads and writes it; version 0 means no alias."""

    def __init__(self, versions: Versions, process: str) -> None:
        self._versions, self._process = versions, process
        self._writes = 0
        self._answered: dict[str, int] = {}  # our writes that may have arrived late: tag -> version

    def read(self) -> int:
        return self._versions.alias(CHAMPION) or 0

    def write(self, version: int) -> None:
        """Set the alias, or remove it for version 0."""
        self._writes += 1
        tag = f"{WRITING}{self._process}.{self._writes}"
        self._versions.set_model_tag(tag, str(version))
        with without_retries():
            if version:
                self._versions.set_alias(CHAMPION, version)
            else:
                self._versions.remove_alias(CHAMPION)
        self._answered[tag] = version

    def wrote(self, version: int) -> bool:
        """Return whether this process has set the alias to this version since it last forgot its writes."""
        return version in self._answered.values()

    def has_answered_writes(self) -> bool:
        return bool(self._answered)

    def forget_writes(self) -> None:
        """Remove the tags of our writes, because the alias agrees with the audit."""
        for tag in self._answered:
            self._versions.remove_model_tag(tag)
        self._answered.clear()

    def may_be_late(self, version: int) -> bool:
        """Return whether a pspnet process may have set the alias to this version late.

        Call it after reading the alias: a write sets its tag first.
        """
        tags = self._versions.model_tags()
        return str(version) in [written for tag, written in tags.items() if tag.startswith(WRITING)]
