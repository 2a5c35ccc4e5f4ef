"""The schema language: what is read is what was written, and errors point at the column."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tftoolkit.custom_ops import schema

RMS_NORM = (
    "<T: f32 | bf16 | f16>(x: T[... d], gamma: T[d], *, epsilon: f32 = 1e-06) -> (y: T[... d], inv_rms: f32[...])"
)


def test_reads_every_part():
    parsed = schema.parse(RMS_NORM)
    assert parsed.dtype_vars == {"T": ("f32", "bf16", "f16")}
    assert parsed.inputs == (schema.Argument("x", "T", ("...", "d")), schema.Argument("gamma", "T", ("d",)))
    assert parsed.attributes == (schema.Attribute("epsilon", "f32", 1e-6),)
    assert parsed.outputs == (schema.Argument("y", "T", ("...", "d")), schema.Argument("inv_rms", "f32", ("...",)))
    assert parsed.dim_names == ("d",)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("f32 = -inf", float("-inf")), ("f64 = 1", 1.0), ("i32 = -3", -3), ("i64 = 9000000000", 9_000_000_000),
        ("bool = true", True), ("bool = False", False), ("str = 'a, b) -> \\'c'", "a, b) -> 'c"), ('str = ""', ""),
    ],
)  # fmt: skip
def test_attribute_defaults(text, value):
    (attribute,) = schema.parse(f"(x: f32[], *, a: {text}) -> (y: f32[])").attributes
    assert attribute.default == value
    assert type(attribute.default) is type(value)


@pytest.mark.parametrize(
    ("text", "marked", "reason"),
    [
        ("(x: f32[n]) -> (y: f32[m])", "y: f32[m]", "appears in no input"),
        ("(x: f33[n]) -> (y: f32[n])", "f33", "unknown dtype"),
        ("<T: f32 | g16>(x: T[n]) -> (y: T[n])", "g16", "unknown dtype"),
        ("<t: f32>(x: f32[n]) -> (y: f32[n])", "t:", "capital letter"),
        ("(x: f32[... a ...]) -> (y: f32[])", "...]", "once"),
        ("(x: f32[-1]) -> (y: f32[])", "-1", "whole number"),
        ("(x: f32[2.5]) -> (y: f32[])", "2.5", "whole number"),
        ("(x: f32[n] -> (y: f32[])", "->", "expected ','"),
        ("(x: f32[n], *) -> (y: f32[])", ") ->", "attribute after '*'"),
        ("(x: f32[n], *, a: f16) -> (y: f32[])", "f16", "unknown attribute type"),
        ("(x: f32[n], *, a: i32 = 1.5) -> (y: f32[])", "1.5", "not a i32"),
        ("(x: f32[n], *, a: i32 = 4294967296) -> (y: f32[])", "4294967296", "32 bits"),
        ("(x: f32[n], *, a: bool = 1) -> (y: f32[])", "1)", "not a bool"),
        ("(x: f32[n], x: f32[n]) -> (y: f32[])", "x: f32[n])", "used twice"),
        ("(name: f32[n]) -> (y: f32[])", "name", "cannot be a parameter name"),
        ("(X: f32[n]) -> (y: f32[])", "X", "cannot be a parameter name"),
        ("() -> (y: f32[])", "()", "at least one input"),
        ("(x: f32[n]) -> ()", ") ->", "expected a name"),
        ("(x: f32[n]) -> (y: f32[]) z", "z", "expected a end"),
        ("(x: f32[n]) -> (y: f32[]);", ";", "unexpected character"),
        ("<T: f32, S: f64>(x: T[n]) -> (y: S[n])", "y: S", "appears in no input"),
    ],
)
def test_errors_name_the_column(text, marked, reason):
    with pytest.raises(schema.SchemaError, match="column") as caught:
        schema.parse(text)
    assert reason in caught.value.reason
    if marked != ") ->":
        assert caught.value.column == text.rindex(marked)


names = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(lambda name: name not in schema._RESERVED)
attribute_defaults = {
    "f32": st.none() | st.floats(allow_nan=False), "f64": st.none() | st.floats(allow_nan=False),
    "i32": st.none() | st.integers(-(2**31), 2**31 - 1), "i64": st.none() | st.integers(-(2**63), 2**63 - 1),
    "bool": st.none() | st.booleans(), "str": st.none() | st.text(st.characters(codec="utf-8")),
}  # fmt: skip


@st.composite
def schemas(draw):
    """Any schema the grammar allows."""
    n_in, n_attr, n_out = draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(1, 3))
    unique = draw(st.lists(names, min_size=n_in + n_attr + n_out, max_size=n_in + n_attr + n_out, unique=True))
    choices = st.lists(st.sampled_from(sorted(schema.DTYPES)), min_size=1, max_size=3).map(tuple)
    dtype_vars = draw(st.dictionaries(st.sampled_from(["T", "S", "Index"]), choices, max_size=2))
    dims = st.lists(st.integers(0, 2**40) | names, max_size=3)

    def argument(name, dtypes, some_dims):
        found = draw(some_dims)
        if draw(st.booleans()):
            found.insert(draw(st.integers(0, len(found))), "...")
        return schema.Argument(name, draw(st.sampled_from(dtypes)), tuple(found))

    inputs = tuple(argument(name, [*dtype_vars, *schema.DTYPES], dims) for name in unique[:n_in])
    known = [dim for item in inputs for dim in item.dims if dim != "..."] + [1]
    has_rest = any("..." in item.dims for item in inputs)
    attributes = []
    for name in unique[n_in : n_in + n_attr]:
        kind = draw(st.sampled_from(sorted(attribute_defaults)))
        attributes.append(schema.Attribute(name, kind, draw(attribute_defaults[kind])))
    dtypes = [*{item.dtype for item in inputs}, *schema.DTYPES]
    outputs = []
    for name in unique[n_in + n_attr :]:
        output = argument(name, dtypes, st.lists(st.sampled_from(known), max_size=3))
        kept = output.dims if has_rest else tuple(dim for dim in output.dims if dim != "...")
        outputs.append(schema.Argument(name, output.dtype, kept))
    return schema.Schema(dtype_vars, inputs, tuple(attributes), tuple(outputs))


@given(schemas())
def test_what_is_printed_is_read_back(written):
    assert schema.parse(str(written)) == written


@given(st.text(alphabet="<>()[]:,|=*.->TSxydf32bi64 '\"\\1e", max_size=60))
def test_any_text_is_read_or_refused_with_a_column(text):
    column = 0
    try:
        schema.parse(text)
    except schema.SchemaError as error:
        column = error.column
    assert 0 <= column <= len(text)
