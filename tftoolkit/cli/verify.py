"""``tftoolkit verify FILE``. A .tflite or .onnx file with its proof beside it needs neither TensorFlow nor absl."""

import argparse
from pathlib import Path

from tftoolkit.cli import UsageError, import_tensorflow
from tftoolkit.cli.parser import Parser, path


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "FILE [OPTION ...]",
        "Runs an exported file in its own runtime, compares it with the outputs stored beside it or with a SavedModel, "
        "and prints the table of size, latency and memory.",
        "tftoolkit verify runs/digits/export/model_int8.tflite",
        exit_codes="0 it computes the same, 1 it does not or nothing says what it must compute, 130 interrupted",
    )
    parser.add_argument("file", type=path, metavar="FILE", help="a SavedModel folder, a .tflite or an .onnx file")
    parser.add_argument(
        "--golden", type=path, metavar="SAVED_MODEL",
        help="compare with this SavedModel (default: the outputs stored beside the file)",
    )  # fmt: skip
    parser.add_switch("--native", "run the native code that lies beside the file, which you trust")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Proves a SavedModel, .tflite or .onnx file and prints the table."""
    if options.golden is not None or Path(options.file).is_dir():
        import_tensorflow()
    from tftoolkit import export

    try:
        report = export.verify(options.file, golden=options.golden, native=options.native)
    except ValueError as error:
        raise UsageError(str(error).replace("native=True", "--native")) from None
    print(report)
    if not report.rows[0].checks:  # it runs; but who asks for proof must not take that for one
        print("Nothing to compare with (no proof beside it, no --golden=SAVED_MODEL): it runs, but parity is unproven.")
        return 1
    with_what = options.golden or "the golden outputs stored beside it"
    print(f"It computes the same as {with_what}: {len(report.rows[0].checks)} checks, each within its bound.")
    return 0
