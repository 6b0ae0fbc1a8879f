"""Moves the champion for tests, without the gate."""

from pspnet.registry.audit import Audit
from pspnet.registry.records import Move, ProposedMove


def make_move(audit: Audit, proposed: ProposedMove, contended: bool = False) -> Move:
    """Make the move. Unless the alias is `contended`, no other process may get there first."""
    for position in audit.attempts():
        applied = audit.apply(proposed, position)
        if isinstance(applied, Move):
            return applied
        assert contended, applied.why
    raise audit.busy()
