"""``tftoolkit web``: makes a web page of a proven .tflite file, or serves one on this machine."""

from pathlib import Path

from absl import flags

from tftoolkit.cli import UsageError


def run(arguments: list[str]) -> int:
    """``FILE.tflite FOLDER`` exports; ``FOLDER`` serves until Ctrl-C."""
    values = flags.FlagValues()
    flags.DEFINE_string("title", "Draw a digit", "the page's heading", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "replace an existing folder", flag_values=values)
    flags.DEFINE_integer("port", 8000, "where to serve; 0: any that is free", 0, 65535, flag_values=values)
    try:
        paths = values(["tftoolkit", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{error}. The options are --title, --overwrite and --port") from error
    if len(paths) == 2:
        from tftoolkit import export

        print(export.web(paths[0], paths[1], title=values.title, overwrite=values.overwrite))
        return 0
    if len(paths) != 1:
        raise UsageError("web needs FILE.tflite FOLDER to make a page, or FOLDER to serve one")
    return _serve(Path(paths[0]), values.port)


def _serve(folder: Path, port: int) -> int:
    from tftoolkit.export.web import serving

    with serving.server(folder, port) as running:
        print(f"http://{serving.HOST}:{running.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
