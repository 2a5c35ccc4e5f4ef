"""``tftoolkit verify FILE``."""

from absl import flags

from tftoolkit.cli import UsageError, import_tensorflow


def run(arguments: list[str]) -> int:
    """Proves a SavedModel or .tflite file and prints the table."""
    values = flags.FlagValues()
    flags.DEFINE_string("golden", None, "the SavedModel that it must compute the same as", flag_values=values)
    try:
        files = values(["tftoolkit", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{error}. The only option is --golden=SAVED_MODEL") from error
    if len(files) != 1:
        raise UsageError(f"verify needs one file, got {files or 'none'}")
    import_tensorflow()
    from tftoolkit import export

    print(export.verify(files[0], golden=values.golden))
    if values.golden is None:
        print("Nothing to compare with was given (--golden=SAVED_MODEL): the file runs, but parity is unproven.")
    return 0
