"""``tftoolkit web``: makes a web page of a proven .tflite file, or serves one on this machine."""

import argparse
from pathlib import Path

from tftoolkit.cli import UsageError
from tftoolkit.cli.parser import Parser, integer, path


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "[FILE.tflite] FOLDER [OPTION ...]",
        "With FILE.tflite and FOLDER: makes a web page in which the model runs, proven in headless Chromium. With "
        "FOLDER alone: serves it on this machine until Ctrl-C.",
        "tftoolkit web runs/digits/export/model.tflite page",
        "tftoolkit web page --port=8080",
    )
    parser.add_argument(
        "paths", type=path, nargs="+", metavar="PATH", help="the model and the folder to make, or the folder to serve"
    )
    parser.add_argument("--title", metavar="TEXT", help="the page's heading")
    parser.add_switch("--overwrite", "replace an existing folder")
    parser.add_argument(
        "--port", type=integer(0, 65535), metavar="N", default=8000, help="where to serve; 0: any that is free"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """``FILE.tflite FOLDER`` exports; ``FOLDER`` serves until Ctrl-C."""
    if len(options.paths) == 2:
        from tftoolkit import export

        file, folder = options.paths
        print(export.web(file, folder, title=options.title, overwrite=options.overwrite))
        return 0
    if len(options.paths) != 1:
        raise UsageError("web needs FILE.tflite FOLDER to make a page, or FOLDER to serve one")
    return _serve(Path(options.paths[0]), options.port)


def _serve(folder: Path, port: int) -> int:
    from tftoolkit.export.web import serving

    with serving.server(folder, port) as running:
        print(f"http://{serving.HOST}:{running.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
