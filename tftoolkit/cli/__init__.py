"""The command line. One module here per command, each with ``run(arguments) -> exit code``."""

import difflib
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence

COMMANDS = {
    "train": "train RECIPE [--directory=DIR] [--config.OPTION=VALUE ...]: train, export, report; resumes",
    "launch": "launch [--workers=N] [--hosts=A,B --host_index=I --port=P] [--max_restarts=N] [--heartbeat_timeout=S] "
    "[--start_timeout=S] [--grace=S] [--backoff=S] [--log_dir=DIR] -- train RECIPE ...|FILE.py ...|PROGRAM ...: run a "
    "gang of workers; when one dies or hangs, all start again from the last checkpoint",
    "export": "export RUN|SAVED_MODEL [--output=FILE.tflite|FILE.onnx] [--quantize=float16|dynamic|int8|int16x8] "
    "[--keep_float=PATTERN ...] [--integer_io] [--overwrite]: write another format, proven",
    "verify": "verify FILE [--golden=SAVED_MODEL] [--native]: run an exported file in its own runtime and compare it",
    "web": "web FILE.tflite FOLDER [--title=TEXT] [--overwrite] | FOLDER [--port=N]: make a web page in which the "
    "model runs, proven in headless Chromium; serve it on this machine",
    "data": "data inspect SOURCE|FILE.py:NAME [--page=inspect.html] | index FILE ... | profile RECIPE|FILE.py:NAME | "
    "write SOURCE ... DESTINATION [--format=tfrecord|array_record] [--shards=N]: look into data and write a page of "
    "examples (--page= for none), index TFRecord files, find the slowest stage, write sharded files; "
    "SOURCE: files, a folder, tfds:NAME/SPLIT",
    "ops": "ops list|build|check [--compile_commands=FILE]: show or compile the built-in ops and the op host; "
    "check LIBRARY.so|SOURCE.cc|OP: opcheck of all ops in it",
    "doctor": "doctor: what is installed, what is missing, and how to mend it",
}


class UsageError(Exception):
    """The command line is wrong; the message says what to write instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted (run again to go on)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # what follows is for another program
    debug = "--debug" in own
    arguments = [argument for argument in own if argument != "--debug"] + arguments[len(own) :]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's own chatter
    try:
        return _dispatch(arguments)
    except UsageError as error:
        print(f"tftoolkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\ntftoolkit: interrupted. {interrupt}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug or not _is_expected(error):
            raise
        print(f"tftoolkit: {type(error).__name__}: {error}\n(--debug shows where)", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: tftoolkit COMMAND ...\n\n" + "\n".join(f"  {text}" for text in COMMANDS.values()))
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"unknown command {command!r}: {hint}There are: {', '.join(COMMANDS)}")
    if {"-h", "--help"} & set(rest[: rest.index("--")] if "--" in rest else rest):
        print(f"usage: tftoolkit {COMMANDS[command]}")
        return 0
    return int(importlib.import_module(f"tftoolkit.cli.{command}").run(rest))


def import_tensorflow() -> None:
    """Imports TensorFlow without the notices it prints about itself; they are shown if it fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for a GPU, with notices of its own
        except BaseException:
            notices.seek(0)
            os.write(saved, notices.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _is_expected(error: Exception) -> bool:
    """Errors with a message for the user: our own types, files, and values out of range. Others are bugs."""
    return isinstance(error, OSError | ValueError) or type(error).__module__.startswith("tftoolkit.")
