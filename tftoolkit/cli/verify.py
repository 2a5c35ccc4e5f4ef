"""``tftoolkit verify FILE``. A .tflite or .onnx file with its proof beside it needs neither TensorFlow nor absl."""

from pathlib import Path

from tftoolkit.cli import UsageError, import_tensorflow


def run(arguments: list[str]) -> int:
    """Proves a SavedModel, .tflite or .onnx file and prints the table."""
    options = [argument for argument in arguments if argument.startswith("-")]
    files = [argument for argument in arguments if not argument.startswith("-")]
    unknown = [option for option in options if not option.startswith("--golden=")]
    if unknown or len(options) > 1:
        raise UsageError(f"unknown option {(unknown or options)[-1]}. The only option is --golden=SAVED_MODEL")
    if len(files) != 1:
        raise UsageError(f"verify needs one file, got {files or 'none'}")
    golden = options[0].partition("=")[2] if options else None
    if golden is not None or Path(files[0]).is_dir():
        import_tensorflow()
    from tftoolkit import export

    report = export.verify(files[0], golden=golden)
    print(report)
    if report.rows[0].checks:
        with_what = golden or "the golden outputs stored beside it"
        print(f"It computes the same as {with_what}: {len(report.rows[0].checks)} checks, each within its bound.")
    else:
        print("Nothing to compare with (no proof beside it, no --golden=SAVED_MODEL): it runs, but parity is unproven.")
    return 0
