"""``tftoolkit serve DIR``. Needs no TensorFlow."""

import argparse
from pathlib import Path

from tftoolkit.cli.parser import Parser, integer, path


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "[DIR] [OPTION ...]",
        "Shows the curves of the runs below a folder in the browser, as they grow, until Ctrl-C. The page is served to "
        "this machine alone (127.0.0.1) and asks nobody else; it changes nothing in the runs.",
        "tftoolkit serve",
        "tftoolkit serve runs/digits --port=0",
        exit_codes="0 done, 1 failed",
    )
    parser.add_argument(
        "folder", type=path, nargs="?", metavar="DIR", default="runs", help="a run, or a folder of runs (default: runs)"
    )
    parser.add_argument(
        "--port", type=integer(0, 65535), metavar="N", default=8001, help="where to serve; 0: any that is free"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    from tftoolkit.watch import server

    with server.server(Path(options.folder), options.port) as running:
        print(f"http://{server.HOST}:{running.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
