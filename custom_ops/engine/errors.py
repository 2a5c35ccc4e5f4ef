"""What can go wrong with compiled ops, as types."""

from tftoolkit.errors import CodedError


class BuildError(CodedError, RuntimeError):
    """Compiling or linking failed, or a compiler or header is missing; the message says what to do."""

    error_code = "op-compile"


class LoadError(CodedError, RuntimeError):
    """A library was found but cannot be used: not an op library, made for other versions, or a clash of names."""

    error_code = "op-load"
