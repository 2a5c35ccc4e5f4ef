"""Arrow's types, and how tensors hold what is of them."""

from typing import Any

import numpy as np
import tensorflow as tf

Layout = tuple[list[int], list[int]]  # shape in memory, order of the axes


def column_spec(path: str, name: str, kind: Any) -> tf.TensorSpec:
    from pyarrow import types

    shape: list[int | None] = []
    leaf = _value_type(kind)
    while True:
        if types.is_fixed_size_list(leaf):
            shape.append(leaf.list_size)
        elif not shape and _is_list(leaf):
            shape.append(None)
        elif _is_tensor(leaf):
            shape += leaf.shape if leaf.permutation is None else [leaf.shape[axis] for axis in leaf.permutation]
        else:
            break
        leaf = _value_type(leaf.value_type)
    if _is_text(leaf):
        dtype = tf.string
    elif types.is_integer(leaf) or types.is_floating(leaf) or types.is_boolean(leaf):
        dtype = tf.as_dtype(leaf.to_pandas_dtype())
    else:
        raise TypeError(f"columns: {name!r} of {path} is {kind}, which no tensor can hold; leave it out, or convert it")
    if dtype == tf.string and shape[:1] == [None] and len(shape) > 1:
        raise TypeError(f"columns: {name!r} of {path} is {kind}; lists of lists can only hold numbers")
    return tf.TensorSpec(shape, dtype)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in (*tests, types.is_binary_view, types.is_fixed_size_binary))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _is_tensor(kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.fixed_shape_tensor"


def _value_type(kind: Any) -> Any:
    """That of what a dictionary encodes, and of what stands for the types that Arrow adds to its own."""
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        return _value_type(kind.value_type)
    if getattr(kind, "extension_name", "") == "arrow.bool8":
        return pyarrow.bool_()
    if getattr(kind, "extension_name", "") in ("arrow.json", "arrow.uuid"):
        return kind.storage_type
    return kind


def layout(kind: Any) -> Layout | None:
    """Shape in memory and order of the axes, of tensors whose axes are stored in another order."""
    while hasattr(kind, "value_type") and not _is_tensor(kind):
        kind = kind.value_type
    return (kind.shape, kind.permutation) if _is_tensor(kind) and kind.permutation else None


def plain(column: Any) -> Any:
    """One array instead of chunks, of a type from which rows can be taken."""
    from pyarrow import types

    array = stored(column.combine_chunks())
    if types.is_list_view(array.type) or types.is_large_list_view(array.type):
        array = _list_of(array)
    plain = _without_views(array.type)
    return array if plain == array.type else array.cast(plain)


def _list_of(views: Any) -> Any:
    """Lists of the same values; pyarrow's own cast (26.0) gives arrays that end before their last offset."""
    import pyarrow

    valid = views.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.where(valid, views.sizes.to_numpy(zero_copy_only=False), 0).astype(np.int64)
    ends = np.cumsum([0, *sizes])
    places = np.repeat(views.offsets.to_numpy(zero_copy_only=False) - ends[:-1], sizes) + np.arange(ends[-1])
    values = views.values.cast(_without_views(views.values.type)).take(pyarrow.array(places))
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(ends), values, mask=pyarrow.array(~valid))


def _without_views(kind: Any) -> Any:
    import pyarrow
    from pyarrow import types

    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pyarrow.large_string() if types.is_string_view(kind) else pyarrow.large_binary()
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(_without_views(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return (pyarrow.list_ if types.is_list(kind) else pyarrow.large_list)(_without_views(kind.value_type))
    return kind


def stored(array: Any) -> Any:
    """The array without dictionary and without a type that Arrow adds to its own."""
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        return stored(array.dictionary_decode())
    if not isinstance(array.type, pyarrow.BaseExtensionType):
        return array
    return array.storage.cast(pyarrow.bool_()) if array.type.extension_name == "arrow.bool8" else array.storage
