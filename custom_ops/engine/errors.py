"""What can go wrong with compiled ops, as types."""


class BuildError(RuntimeError):
    """Compiling or linking failed, or a compiler or header is missing; the message says what to do."""


class LoadError(RuntimeError):
    """A library was found but cannot be used: not an op library, made for other versions, or a clash of names."""
