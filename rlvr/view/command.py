"""``rlvr view``: start the server or export a file, as the arguments say."""

from __future__ import annotations

import argparse
import sys

from rlvr.view.export import export
from rlvr.view.runs import Run, RunError, name_runs
from rlvr.view.server import serve


def view(arguments: argparse.Namespace) -> int:
    """Serve the runs until Ctrl-C, or write them to one file; the exit status is 2 for what cannot be shown."""
    try:
        runs = [Run(folder.path, folder.label) for folder in name_runs(arguments.runs)]
        if arguments.export is not None:
            print(export(runs, arguments.export, arguments.export_rollouts))
        else:
            serve(runs, arguments.port, open_browser=not arguments.no_browser)
    except KeyboardInterrupt:
        print("rlvr view: closed")
    except RunError as error:
        print(f"rlvr: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = arguments.export or f"port {arguments.port} (--port 0 takes a free one)"
        print(f"rlvr: {where}: {error}", file=sys.stderr)
        return 1
    return 0
