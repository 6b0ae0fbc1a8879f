"""The receipt, a file next to a journal that says how far the journal has been delivered."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pspnet.machine.outputs import whole_file

RECEIPT = "receipt.json"


@dataclass
class Receipt:
    """How far a journal has been delivered, and to which server."""

    journal: str = ""
    server: str = ""  # see connection.server_identity
    run_id: str = ""
    offsets: dict[str, int] = field(default_factory=dict)  # file of the journal -> bytes delivered
    ended: bool = False  # whether the whole journal is delivered and the latest attempt has ended
    trouble: str = ""  # why delivery is stuck

    @classmethod
    def of(cls, folder: Path) -> "Receipt":
        try:
            return cls(**json.loads((folder / RECEIPT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        with whole_file(folder / RECEIPT) as partial:
            partial.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
