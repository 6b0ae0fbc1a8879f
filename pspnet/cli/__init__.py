"""The `pspnet` command. There is one file per help panel; each command is its options and a single call, with no logic.

May import every room, and also `flows` where a command starts a flow, but only inside the command, so that
`pspnet --help` loads neither torch nor MLflow. Start at `app.py`. Safe to change: help texts, and the names of options
(together with their tests).
"""

# In the order of the panels in the help.
from pspnet.cli import pipeline, stages, versions, prediction, data, tools  # noqa: F401, I001
from pspnet.cli.app import PIPELINE_FILE, app, state
from pspnet.machine import terminal
from pspnet.machine.credentials import hide_in_output
from pspnet.machine.offline import configure_dvc, go_offline
from pspnet.machine.process import collect_less_garbage


def main() -> None:
    collect_less_garbage()
    go_offline()
    hide_in_output()
    if PIPELINE_FILE.exists():
        configure_dvc(state())
    terminal.run(lambda: app(prog_name="pspnet"))
