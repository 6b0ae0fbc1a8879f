"""The champion alias, and the tags that tell a late write of the alias from a change made outside pspnet."""

from pspnet.registry.versions import CHAMPION, Versions
from pspnet.tracking.connection import without_retries

WRITING = "pspnet.writing."  # prefix of the model tags that announce a write of the alias, which may arrive late


class ChampionAlias:
    """The alias as read and written by one process. Version 0 means that there is no alias."""

    def __init__(self, versions: Versions, process: str) -> None:
        self._versions, self._process = versions, process
        self._writes = 0
        self._answered: dict[str, int] = {}  # our writes that may have arrived late: tag -> version

    def read(self) -> int:
        return self._versions.alias(CHAMPION) or 0

    def write(self, version: int) -> None:
        """Set the alias, or remove it if `version` is 0."""
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
        """Remove the tags of our writes. Call this once the alias agrees with the audit."""
        for tag in self._answered:
            self._versions.remove_model_tag(tag)
        self._answered.clear()

    def may_be_late(self, version: int) -> bool:
        """Return whether the alias may have been set to this version by a late write of a pspnet process.

        Call this after reading the alias, because a write sets its tag before the alias.
        """
        tags = self._versions.model_tags()
        return str(version) in [written for tag, written in tags.items() if tag.startswith(WRITING)]
