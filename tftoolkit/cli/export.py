"""``tftoolkit export RUN``: another file from what a run (or anybody else) saved."""

import argparse
from pathlib import Path
from typing import Any

from tftoolkit.cli import UsageError, import_tensorflow
from tftoolkit.cli.parser import Parser, path

QUANTIZE = ("float16", "dynamic", "int8", "int16x8")


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "RUN|SAVED_MODEL [OPTION ...]",
        "Writes another format of a run's model, or of any SavedModel, after the file was run in its own runtime and "
        "computed the same. Prints the table of size, latency and memory.",
        "tftoolkit export runs/digits --quantize=int8 --integer_io",
        "tftoolkit export my_saved_model --output=model.onnx",
    )
    parser.add_argument("source", type=path, metavar="RUN", help="a run folder, or a SavedModel")
    parser.add_argument(
        "--output", type=path, metavar="FILE",
        help="the .tflite or .onnx file to write (default: model[_QUANTIZE].tflite beside the SavedModel)",
    )  # fmt: skip
    parser.add_argument("--quantize", choices=QUANTIZE, help="a .tflite file of smaller numbers (default: float32)")
    parser.add_argument(
        "--keep_float", action="append", metavar="PATTERN", default=[],
        help="regular expression: layers of such names stay in float; may be given several times",
    )  # fmt: skip
    parser.add_switch("--integer_io", "inputs and outputs are integers, too (int8 and int16x8)")
    parser.add_switch("--overwrite", "replace an existing file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exports the SavedModel of a run folder, or any SavedModel, and prints the table."""
    source = _saved_model(Path(options.source))
    suffix = f"_{options.quantize}" if options.quantize else ""
    output = Path(options.output or source.parent / f"model{suffix}.tflite")
    if output.suffix == ".onnx" and (options.quantize or options.keep_float or options.integer_io):
        raise UsageError("--quantize, --keep_float and --integer_io are for .tflite files")
    import_tensorflow()
    from tftoolkit import export

    # The real inputs that the SavedModel was proven on calibrate the new file and prove it too.
    arguments_for_both: dict[str, Any] = {"representative": _real_inputs(source), "overwrite": options.overwrite}
    try:
        if output.suffix == ".onnx":
            report = export.onnx(source, output, **arguments_for_both)
        else:
            report = export.tflite(
                source, output, quantize=options.quantize, keep_float=options.keep_float, integer_io=options.integer_io,
                **arguments_for_both,
            )  # fmt: skip
    except FileExistsError as error:
        raise FileExistsError(str(error).replace("overwrite=True", "--overwrite")) from None
    print(report)
    return 0


def _saved_model(folder: Path) -> Path:
    candidates = [folder, folder / "export" / "saved_model"]
    for candidate in candidates:
        if (candidate / "saved_model.pb").is_file():
            return candidate
    raise FileNotFoundError(f"{folder} is neither a SavedModel nor a run that has one in export/saved_model")


def _real_inputs(source: Path) -> dict[str, list[Any]] | None:
    from tftoolkit.export.proof import golden

    known = golden.load(source)
    real: dict[str, list[Any]] = {}
    for item in known[0] if known else []:
        if item.case.kind == "real":
            real.setdefault(item.case.signature, []).append(item.case.inputs)
    return real or None
