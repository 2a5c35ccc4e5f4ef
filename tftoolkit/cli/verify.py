"""``tftoolkit verify FILE``. A .tflite or .onnx file with its proof beside it needs neither TensorFlow nor absl."""

from pathlib import Path

from tftoolkit.cli import UsageError, import_tensorflow


def run(arguments: list[str]) -> int:
    """Proves a SavedModel, .tflite or .onnx file and prints the table."""
    options = [argument for argument in arguments if argument.startswith("-")]
    files = [argument for argument in arguments if not argument.startswith("-")]
    goldens = [option for option in options if option.startswith("--golden=")]
    unknown = [option for option in options if option not in goldens and option != "--native"]
    if unknown or len(goldens) > 1:
        raise UsageError(f"option {(unknown or goldens)[-1]}: the options are --golden=SAVED_MODEL and --native")
    if len(files) != 1:
        raise UsageError(f"verify needs one file, got {files or 'none'}")
    golden = goldens[0].partition("=")[2] if goldens else None
    if golden is not None or Path(files[0]).is_dir():
        import_tensorflow()
    from tftoolkit import export

    try:
        report = export.verify(files[0], golden=golden, native="--native" in options)
    except ValueError as error:
        raise UsageError(str(error).replace("native=True", "--native")) from None
    print(report)
    if report.rows[0].checks:
        with_what = golden or "the golden outputs stored beside it"
        print(f"It computes the same as {with_what}: {len(report.rows[0].checks)} checks, each within its bound.")
    else:
        print("Nothing to compare with (no proof beside it, no --golden=SAVED_MODEL): it runs, but parity is unproven.")
    return 0
