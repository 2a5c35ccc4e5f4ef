"""``tftoolkit export RUN``: another file from what a run (or anybody else) saved."""

from pathlib import Path
from typing import Any

from absl import flags

from tftoolkit.cli import UsageError, import_tensorflow


def run(arguments: list[str]) -> int:
    """Exports the SavedModel of a run folder, or any SavedModel, and prints the table."""
    values = flags.FlagValues()
    flags.DEFINE_string("output", None, "the file to write (.tflite or .onnx)", flag_values=values)
    flags.DEFINE_string("quantize", None, "float16, dynamic, int8 or int16x8", flag_values=values)
    flags.DEFINE_multi_string("keep_float", [], "pattern of layers that stay in float", flag_values=values)
    flags.DEFINE_boolean("integer_io", False, "inputs and outputs are integers too", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "replace an existing file", flag_values=values)
    try:
        sources = values(["tftoolkit", *arguments])[1:]
    except flags.Error as error:
        options = ", ".join(f"--{name}" for name in ("output", "quantize", "keep_float", "integer_io", "overwrite"))
        raise UsageError(f"{error}. The options are {options}") from error
    if len(sources) != 1:
        raise UsageError(f"export needs one run folder or SavedModel, got {sources or 'none'}")
    source = _saved_model(Path(sources[0]))
    output = Path(values.output or source.parent / f"model{'_' + values.quantize if values.quantize else ''}.tflite")
    import_tensorflow()
    from tftoolkit import export

    # The real inputs that the SavedModel was proven on calibrate the new file and prove it too.
    arguments_for_both: dict[str, Any] = {"representative": _real_inputs(source), "overwrite": values.overwrite}
    if output.suffix == ".onnx":
        if values.quantize or values.keep_float or values.integer_io:
            raise UsageError("--quantize, --keep_float and --integer_io are for .tflite files")
        print(export.onnx(source, output, **arguments_for_both))
        return 0
    print(
        export.tflite(
            source, output, quantize=values.quantize, keep_float=values.keep_float, integer_io=values.integer_io,
            **arguments_for_both,
        )
    )  # fmt: skip
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
