"""From a model to a SavedModel on disk that holds exactly the asked signatures and the variables they read."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.checkpoint import graph_view
from tensorflow.python.trackable import resource

from tftoolkit.export.report import ExportError
from tftoolkit.export.staging import quiet

# A tf.function with an input_signature, a ConcreteFunction, or a callable with the specs of its positional arguments.
Signatures = Mapping[str, Any | tuple[Callable[..., Any], Sequence[tf.TensorSpec]]]


def is_saved_model_path(model: object) -> bool:
    return isinstance(model, str | os.PathLike)


def saved_model_path(
    path: str | os.PathLike[str], signatures: Signatures | None, aliases: Mapping[str, str] | None = None
) -> Path:
    """The folder of an existing SavedModel, checked."""
    folder = Path(path)
    if aliases is not None:
        raise ValueError("aliases must be None for a SavedModel on disk: it keeps its own")
    if signatures is not None:
        raise ValueError("signatures must be None for a SavedModel on disk: it has its own, and all are exported")
    if folder.suffix in (".keras", ".h5", ".hdf5") and folder.is_file():
        raise ValueError(f"{folder} is a Keras file: give the model, keras.models.load_model({str(folder)!r})")
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give a model, or the folder of a SavedModel")
    if not (folder / "saved_model.pb").is_file():
        raise FileNotFoundError(f"{folder} is not a SavedModel: it has no saved_model.pb")
    return folder


def trace(model: Any, signatures: Signatures | None, folder: Path, aliases: Mapping[str, str] | None = None) -> Path:
    """Writes the model natively (custom ops stay) into ``folder`` and returns it.

    ``aliases``: further names of functions, from alias to signature. Raises ValueError where the signatures are missing
    or unusable, ExportError where TensorFlow cannot save them.
    """
    if isinstance(model, type):
        raise ValueError(f"model is the class {model.__name__}; give an object of it, with its trained weights")
    if signatures is None:
        signatures = _own_signatures(model)
    if not isinstance(signatures, Mapping) or not signatures:
        raise ValueError(f"signatures must be a dict from name to function with at least one entry, got {signatures!r}")
    aliases = {} if aliases is None else aliases
    _check_aliases(aliases, signatures)
    functions = {name: _concrete(name, entry) for name, entry in signatures.items()}
    aliased = {alias: functions[name] for alias, name in aliases.items()}
    holder = tf.Module()
    holder.aliased = list(aliased.values())  # TensorFlow restores what a function reads only if an object holds it
    # Only what the signatures read: saving the model itself would drag in every other function traced on it.
    holder.variables_read = list({id(v): v for cf in functions.values() for v in cf.variables}.values())
    holder.resources = _resources(model)
    namespaces = sorted(_namespaces(functions.values()))
    options = tf.saved_model.SaveOptions(namespace_whitelist=namespaces, function_aliases=aliased)
    try:
        with quiet():
            tf.saved_model.save(holder, str(folder), signatures=functions, options=options)
    except (AssertionError, ValueError, TypeError, tf.errors.OpError) as error:
        raise ExportError("trace", f"TensorFlow could not save the model: {error}") from error
    return folder


def _check_aliases(aliases: Mapping[str, str], signatures: Signatures) -> None:
    if not isinstance(aliases, Mapping):
        raise ValueError(f"aliases must be a dict from alias to the name of a signature, got {aliases!r}")
    for alias, name in aliases.items():
        if not isinstance(alias, str) or not alias or name not in signatures:
            raise ValueError(f"aliases: {alias!r} is to mean {name!r}; the signatures are {sorted(signatures)}")
    if len(set(aliases.values())) < len(aliases):
        raise ValueError(f"aliases: TensorFlow stores one alias for each function, got {dict(aliases)}")


def separate(saved_model: Path, folder: Path) -> Path:
    """The SavedModel with a function of its own for each signature, without custom ops.

    TensorFlow's TFLite converter needs that of SavedModels that others wrote: Keras 3 gives one function two signatures
    ("serve" and "serving_default"), of which it loses one; where a module holds a Keras 3 model, it loses the weights.
    """
    loaded = tf.saved_model.load(str(saved_model))
    holder = tf.Module()
    holder.loaded = loaded

    def alone(function: Any) -> Any:
        specs = function.structured_input_signature[1]
        return tf.function(lambda **inputs: function(**inputs), autograph=False).get_concrete_function(**specs)

    functions = {name: alone(function) for name, function in loaded.signatures.items()}
    with quiet():
        tf.saved_model.save(holder, str(folder), signatures=functions)
    return folder


def _concrete(name: str, entry: Any) -> tf.types.experimental.ConcreteFunction:
    if not isinstance(name, str) or not name:
        raise ValueError(f"signatures: a name must be a non-empty string, got {name!r}")
    if isinstance(entry, tf.types.experimental.ConcreteFunction):
        return _flat(name, entry)
    if isinstance(entry, tuple) and len(entry) == 2 and callable(entry[0]):
        function, specs = entry
        if isinstance(function, type):
            raise ValueError(f"signatures[{name!r}] is the class {function.__name__}; give an object of it")
        specs = [specs] if isinstance(specs, tf.TensorSpec) else specs
        _check_specs(name, specs)
        return _traced(name, tf.function(_undecorated(function), input_signature=None), list(specs))
    if isinstance(entry, tf.types.experimental.GenericFunction):
        if entry.input_signature is None:
            raise ValueError(
                f"signatures[{name!r}]: the tf.function has no input_signature, so what it accepts is not known; "
                f"give (function, [tf.TensorSpec(shape, dtype, name), ...])"
            )
        _check_specs(name, [spec for spec in tf.nest.flatten(entry.input_signature) if isinstance(spec, tf.TensorSpec)])
        return _traced(name, entry, [])
    raise ValueError(
        f"signatures[{name!r}] is {type(entry).__name__}; expected a tf.function with an input_signature, "
        f"a ConcreteFunction, or (callable, [tf.TensorSpec(shape, dtype, name), ...])"
    )


def _check_specs(name: str, specs: Any) -> None:
    if not isinstance(specs, list | tuple):
        raise ValueError(
            f"signatures[{name!r}]: the specs are {type(specs).__name__}; expected a list of tf.TensorSpec"
        )
    for position, spec in enumerate(specs):
        if not isinstance(spec, tf.TensorSpec):
            raise ValueError(
                f"signatures[{name!r}]: spec {position} is {spec!r}; expected tf.TensorSpec(shape, dtype, name)"
            )
    names = [spec.name for spec in specs if spec.name is not None]
    for given in names:
        if ":" in given:
            raise ValueError(
                f"signatures[{name!r}]: an input is named {given!r}, and TensorFlow takes what follows a colon for the "
                f"number of an output; call it {given.partition(':')[0]!r}"
            )
    twice = sorted({given for given in names if names.count(given) > 1})
    if twice:
        raise ValueError(f"signatures[{name!r}]: more than one input is named {', '.join(twice)}")


def _undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    # A tf.function keeps its traces: one made earlier under another flag or in training mode would be served again.
    return function.python_function if isinstance(function, tf.types.experimental.GenericFunction) else function


def _traced(name: str, function: Any, specs: list[Any]) -> tf.types.experimental.ConcreteFunction:
    made = []

    def remember(creator: Callable[..., tf.Variable], **arguments: Any) -> tf.Variable:
        made.append(creator(**arguments))
        return made[-1]

    try:
        with tf.variable_creator_scope(remember):
            concrete = function.get_concrete_function(*specs)
    except Exception as error:  # the model's own code runs here: anything can come
        raise ExportError("trace", f"{type(error).__name__}: {error}", signature=name) from error
    # Those of optimizers are not trainable, and start at zero wherever they are made.
    fresh = [variable for variable in made if variable.trainable]
    if fresh:
        reason = (
            f"{len(fresh)} trainable variables are made only now, with random values: the model was never called (or "
            f"its weights never loaded)"
        )
        raise ExportError("trace", reason, signature=name)
    return _flat(name, concrete)


def _flat(name: str, concrete: Any) -> tf.types.experimental.ConcreteFunction:
    """Raises ExportError where what it returns is not a tensor, or a list or dict of them."""
    outputs = concrete.structured_outputs
    if isinstance(outputs, Mapping):
        values = dict(outputs)
    else:
        values = dict(enumerate(outputs if isinstance(outputs, list | tuple) else [outputs]))
    for key, value in values.items():
        if not isinstance(value, tf.TensorSpec | tf.Tensor):
            reason = f"returns {type(value).__name__} as output {key!r}; expected one tensor, or a flat dict of tensors"
            raise ExportError("trace", reason, signature=name)
    return concrete


def _own_signatures(model: Any) -> Signatures:
    if not callable(model) and not isinstance(model, tf.__internal__.tracking.Trackable):
        raise ValueError(f"model is {model!r}; expected a tf.Module, a Keras model or the folder of a SavedModel")
    inputs = getattr(model, "inputs", None)
    if callable(model) and isinstance(inputs, list) and inputs:
        return {"serving_default": _keras_function(model, inputs)}
    call = model.__call__ if callable(model) else None
    if isinstance(call, tf.types.experimental.GenericFunction) and call.input_signature is not None:
        return {"serving_default": call}
    raise ValueError(
        f"signatures is None and {type(model).__name__} does not say what it accepts; give "
        f"signatures={{'serving_default': (model, [tf.TensorSpec(shape, dtype, name), ...])}}"
    )


def _keras_function(model: Any, inputs: list[Any]) -> tuple[Callable[..., Any], list[tf.TensorSpec]]:
    """A functional or sequential model of Keras 3 or tf_keras: its inputs by their names, in inference mode."""
    try:
        structure = model.input
    except AttributeError:  # a Keras 3 Sequential that was never called
        structure = inputs[0]
    tensors = tf.nest.flatten(structure)
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in tensors]

    def call(*values: tf.Tensor) -> Any:
        return model(tf.nest.pack_sequence_as(structure, values), training=False)

    return call, specs


def _resources(model: Any) -> list[Any]:
    """Lookup tables and the like: tf.saved_model.save wants them tracked."""
    if not isinstance(model, tf.__internal__.tracking.Trackable):
        return []
    trackables = graph_view.ObjectGraphView(model).breadth_first_traversal()
    return [item for item in trackables[0] if isinstance(item, resource.CapturableResource)]


def _namespaces(functions: Any) -> set[str]:
    """The part before ">" of op names such as TfToolkit>RmsNorm: TensorFlow saves those only when told so."""
    found = set()
    for function in functions:
        definition = function.graph.as_graph_def()
        nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]
        found |= {node.op.rpartition(">")[0] for node in nodes if ">" in node.op}
    return found
