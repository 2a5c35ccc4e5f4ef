"""The schema language: what is read is what was written, and errors point at the column."""

import keyword

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit.custom_ops.engine import schema, schema_parser, schema_tokens

RMS_NORM = (
    "<T: f32 | bf16 | f16>(x: T[... d], gamma: T[d], *, epsilon: f32 = 1e-06) -> (y: T[... d], inv_rms: f32[...])"
)


def test_reads_every_part():
    parsed = schema_parser.parse(RMS_NORM)
    assert parsed.dtype_vars == {"T": ("f32", "bf16", "f16")}
    assert parsed.inputs == (schema.Argument("x", "T", ("...", "d")), schema.Argument("gamma", "T", ("d",)))
    assert parsed.attributes == (schema.Attribute("epsilon", "f32", 1e-6),)
    assert parsed.outputs == (schema.Argument("y", "T", ("...", "d")), schema.Argument("inv_rms", "f32", ("...",)))
    assert parsed.dim_names == ("d",)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("f32 = -inf", float("-inf")), ("f64 = 1", 1.0), ("i32 = -3", -3), ("i64 = 9000000000", 9_000_000_000),
        ("f32[] = [1, -inf]", (1.0, float("-inf"))), ("str[] = ['a]', \"b\"]", ("a]", "b")), ("i64[] = []", ()),
        ("bool = true", True), ("bool = False", False), ("str = 'a, b) -> \\'c'", "a, b) -> 'c"), ('str = ""', ""),
    ],
)  # fmt: skip
def test_attribute_defaults(text, value):
    (attribute,) = schema_parser.parse(f"(x: f32[], *, a: {text}) -> (y: f32[])").attributes
    assert attribute.default == value
    assert type(attribute.default) is type(value)


def test_o9_an_attribute_that_is_a_dtype():
    text = "<T: f32 | f64, Out: f32 | bf16>(x: T[n], *, k: i64 = 1, dtype: Out = bf16) -> (y: Out[n])"
    parsed = schema_parser.parse(text)
    assert str(parsed) == text
    (attribute,) = parsed.dtype_attributes
    assert attribute.default == "bfloat16"
    assert attribute.convert("f32") == "float32"


def test_o3_o5_words_after_the_outputs():
    text = "(x: f32[... d], bias?: f32[d]) -> (y: f32[... d], size: f32[...])"
    assert not schema_parser.parse(text).batchable
    assert not schema_parser.parse(text).stateful
    both = schema_parser.parse(f"{text} stateful batchable")
    assert both.batchable
    assert both.stateful
    assert str(both) == f"{text} batchable stateful"


@pytest.mark.parametrize(
    ("text", "marked", "reason"),
    [
        ("(x: f32[n]) -> (y: f32[m])", "y: f32[m]", "appears in no input"),
        ("(x: f33[n]) -> (y: f32[n])", "f33", "unknown dtype"),
        ("<T: f32 | g16>(x: T[n]) -> (y: T[n])", "g16", "unknown dtype"),
        ("<t: f32>(x: f32[n]) -> (y: f32[n])", "t:", "capital letter"),
        ("<f64: f32>(x: f32[n]) -> (y: f32[n])", "f64", "the name is taken"),
        ("<T: f32, T: f64>(x: f32[n]) -> (y: f32[n])", "T: f64", "the name is taken"),
        ("<N: f32>(x: f32[n]) -> (y: f32[n])", "N", "the name is taken"),
        ("(x: f32[... a ...]) -> (y: f32[])", "...]", "once"),
        ("(x: f32[-1]) -> (y: f32[])", "-1", "expected a dimension"),
        ("(x: f32[n 2*n]) -> (y: f32[])", "2*n", "only a name plus or minus a number, as n+1"),
        ("(x: f32[n n+m]) -> (y: f32[])", "n+m", "only a name plus or minus a number, as n+1"),
        ("(x: f32[n]) -> (*y?: f32[])", "*y", "can be optional"),
        ("(x: f32[n]) -> (y?: f32[])", "", "at least one output that is not optional"),
        ("(x: f32[n]) -> (y: f32[], x?: f32[n])", "x?", "used twice"),
        ("(x: f32[n], *, has_y: bool) -> (z: f32[], y?: f32[n])", "y?", "'has_y' is used twice"),
        ("(x: f32[n]) -> (z: f32[], y?: f32[n] = x)", "y?", "can be optional"),
        ("(x: f32[...]) -> (y: f32[...], z?: f32[...]) batchable", "batchable", "with optional outputs, such as z"),
        ("(x: f32[n]) -> (y: f32[n-k])", "y: f32", "'k' of output y appears in no input"),
        ("(x: f32[n], *, k: f32) -> (y: f32[n-k])", "y: f32", "'k' of output y appears in no input"),
        ("(x: f32[n]) -> (y: f32[(n-1])", "]", "expected ')'"),
        ("(x: f32[n]) -> (y: f32[2 99999999999999999999])", "99999999999999999999", "63 bits"),
        ("(*x: f32[n], y: f32[]) -> (z: f32[])", "y: f32", "lists come after"),
        ("(x: f32[n]) -> (*y: f32[])", "*y", "needs a list as input"),
        ("(*x: f32[n]) -> (y: f32[n])", "y: f32", "'n' of output y appears in no input"),
        ("(*x: f32[n]) -> (*y: f32[n], z: f32[])", "z: f32", "lists come after"),
        ("(*x?: f32[n]) -> (y: f32[])", "*x", "cannot be optional"),
        ("(x?: f32[n]) -> (y: f32[])", "(x", "not optional"),
        ("(x: f32[], b?: f32[n]) -> (y: f32[n])", "y: f32", "'n' of output y appears in no input"),
        ("(x: f32[], b?: f32[n], *, has_b: i32) -> (y: f32[])", "has_b: i32", "used twice"),
        ("(x: f32[], has_b: f32[], b?: f32[n]) -> (y: f32[])", "b?", "the name 'has_b' is used twice"),
        ("(x: f32[n]) -> (y: f32[n] = z)", "z", "is no input"),
        ("(x: f32[n]) -> (y: f32[n] = x, z: f32[n] = x)", "x)", "already has an output"),
        ("(x: f32[n]) -> (y: f64[n] = x)", "y: f64", "declared just like it"),
        ("(x: f32[n], *, a: i32[2]) -> (y: f32[])", "2]", "expected ']'"),
        ("(x: f32[n], *, a: i32[] = 5) -> (y: f32[])", "5", "must be a list"),
        ("(x: f32[n], *, a: i32[] = [5, 'a']) -> (y: f32[])", "[5", "must be i32[]"),
        ("(x: f32[2.5]) -> (y: f32[])", "2.5", "whole number"),
        ("(x: f32[_], z: f32[n]) -> (y: f32[])", "_]", "'_' is no wildcard"),
        ("(x: f32[n] -> (y: f32[])", "->", "expected ','"),
        ("(x: f32[n], *) -> (y: f32[])", ") ->", "attribute after '*'"),
        ("(x: f32[n], *, a: f16) -> (y: f32[])", "f16", "unknown attribute type"),
        ("(x: f32[n], *, a: i32 = 1.5) -> (y: f32[])", "1.5", "must be i32"),
        ("(x: f32[n], *, a: i32 = 4294967296) -> (y: f32[])", "4294967296", "32 bits"),
        ("(x: f32[n], *, a: bool = 1) -> (y: f32[])", "1)", "must be bool"),
        ("(x: f32[n], x: f32[n]) -> (y: f32[])", "x: f32[n])", "used twice"),
        ("(name: f32[n]) -> (y: f32[])", "name", "cannot be a parameter name"),
        ("(X: f32[n]) -> (y: f32[])", "X", "cannot be a parameter name"),
        ("() -> (y: f32[])", "()", "at least one input"),
        ("(x: f32[n]) -> ()", ") ->", "expected a name"),
        ("(x: f32[n]) -> (y: f32[]) z", "z", "expected the end or one of batchable, stateful, found 'z'"),
        ("(x: f32[n]) -> (y: f32[]) stateful stateful", "stateful", "'stateful' is said twice"),
        ("(x: f32[... n]) -> (y: f32[n]) batchable", "batchable", "begins with '...', but y does not"),
        ("(x: f32[n ...], z: f32[...]) -> (y: f32[...]) batchable", "batchable", "comes first, but in x it does not"),
        ("(*x: f32[...]) -> (*y: f32[...]) batchable", "batchable", "with lists, such as x, cannot be"),
        ("(x: f32[n]) -> (y: f32[]);", ";", "unexpected character"),
        ("<T: f32, S: f64>(x: T[n]) -> (y: S[n])", "y: S", "appears in no input, nor is it an attribute"),
        ("<T: f32>(x: T[n], *, dtype: T) -> (y: T[n])", "T) ->", "what T stands for is known already"),
        ("<T: f32>(x: f32[n], *, a: T, b: T) -> (y: T[n])", "T) ->", "what T stands for is known already"),
        ("<T: f32 | f64>(x: f32[n], *, a: T = f16) -> (y: T[n])", "f16", "f16 is none of f32 | f64"),
    ],
)
def test_errors_name_the_column(text, marked, reason):
    with pytest.raises(schema_tokens.SchemaError, match="column") as caught:
        schema_parser.parse(text)
    assert reason in caught.value.reason
    if marked != ") ->":
        assert caught.value.column == text.rindex(marked)


names = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name) and name != "name"
)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
scalars = {
    "f32": st.floats(allow_nan=False), "f64": st.floats(allow_nan=False), "i32": st.integers(-(2**31), 2**31 - 1),
    "i64": st.integers(-(2**63), 2**63 - 1), "bool": st.booleans(), "str": text,
}  # fmt: skip


@st.composite
def attributes(draw, name):
    kind = draw(st.sampled_from(sorted(scalars)))
    is_list = draw(st.booleans())
    values = st.lists(scalars[kind], max_size=3).map(tuple) if is_list else scalars[kind]
    return schema.Attribute(name, kind + "[]" * is_list, draw(st.none() | values))


@st.composite
def expressions(draw, known):
    """A size, a name, or an expression over names."""
    leaves = st.integers(0, 2**40).map(lambda n: (n,)) | st.sampled_from(sorted(known) or [1]).map(lambda n: (n,))
    postfix = draw(
        st.recursive(
            leaves, lambda inner: st.tuples(inner, inner, st.sampled_from("+-*/")).map(lambda t: (*t[0], *t[1], t[2])),
            max_leaves=4,
        )
    )  # fmt: skip
    return postfix[0] if len(postfix) == 1 else schema.Expression(postfix)


@st.composite
def dims(draw, one):
    found = draw(st.lists(one, max_size=3))
    if draw(st.booleans()):
        found.insert(draw(st.integers(0, len(found))), "...")
    return tuple(found)


@st.composite
def schemas(draw):
    """Any schema the grammar allows."""
    n_in, n_list, n_attr, n_out = (draw(st.integers(*limits)) for limits in ((1, 3), (0, 2), (0, 3), (1, 3)))
    fresh = iter(draw(st.lists(names, min_size=14, max_size=14, unique_by=lambda name: name.removeprefix("has_"))))
    choices = st.lists(st.sampled_from(sorted(schema.DTYPES)), min_size=1, max_size=3).map(tuple)
    dtype_vars = draw(st.dictionaries(st.sampled_from(["T", "S", "Index"]), choices, max_size=2))
    dtypes = st.sampled_from([*dtype_vars, *sorted(schema.DTYPES)])
    shifted = st.tuples(names, st.integers(0, 9), st.sampled_from("+-")).map(schema.Expression)
    input_dims = dims(st.integers(0, 2**40) | names | shifted)
    inputs = [
        schema.Argument(next(fresh), draw(dtypes), draw(input_dims), optional=i > 0 and draw(st.booleans()))
        for i in range(n_in)
    ]
    inputs += [schema.Argument(next(fresh), draw(dtypes), draw(input_dims), variadic=True) for _ in range(n_list)]
    attrs = [draw(attributes(next(fresh))) for _ in range(n_attr)]
    integers = {attribute.name for attribute in attrs if attribute.type in ("i32", "i64")}
    outputs = []
    for i in range(n_out):
        variadic = bool(n_list) and (any(output.variadic for output in outputs) or (i > 0 and draw(st.booleans())))
        sources = [item for item in inputs if not item.optional and (variadic or not item.variadic)]
        source = draw(st.sampled_from(sources))
        if source.variadic == variadic and source.name not in {o.alias for o in outputs} and draw(st.booleans()):
            outputs.append(schema.Argument(next(fresh), source.dtype, source.dims, variadic, alias=source.name))
            continue
        known = {(schema.named(dim) or (dim,))[0] for item in sources for dim in item.dims if not isinstance(dim, int)}
        known |= integers
        found = draw(dims(expressions(known - {"..."})))
        found = found if "..." in known else tuple(dim for dim in found if dim != "...")
        always = [item.dtype for item in inputs if not item.optional and item.dtype in dtype_vars]
        dtype = draw(st.sampled_from([*always, *sorted(schema.DTYPES)]))
        optional = i > 0 and not variadic and draw(st.booleans())
        outputs.append(schema.Argument(next(fresh), dtype, found, variadic, optional))
        attrs += [schema.Attribute(schema.presence(outputs[-1]), "bool", False)] * optional
    first = all("..." not in item.dims[1:] and not item.variadic for item in (*inputs, *outputs))
    can = first and all("..." in item.dims and not item.optional for item in outputs)
    words = draw(st.booleans()) and can, draw(st.booleans())
    return schema.Schema(dtype_vars, tuple(inputs), tuple(attrs), tuple(outputs), *words)


@settings(max_examples=60, deadline=None)
@given(schemas())
def test_what_is_printed_is_read_back(written):
    assert schema_parser.parse(str(written)) == written


@given(expressions({"a", "b", "c"}), st.lists(st.integers(-5, 5), min_size=3, max_size=3))
def test_an_expression_means_what_it_says(expression, values):
    """Python reads the printed form in the same way."""
    expression = expression if isinstance(expression, schema.Expression) else schema.Expression((expression,))
    sizes = dict(zip("abc", values, strict=True))
    try:
        expected = eval(str(expression).replace("/", "//"), {}, sizes)
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by zero"):
            expression.evaluate(sizes)
    else:
        assert expression.evaluate(sizes) == expected


@given(st.text(alphabet="<>()[]:,|=*.->?+/TSxydf32bi64 '\"\\1e", max_size=60))
def test_any_text_is_read_or_refused_with_a_column(text):
    column = 0
    try:
        schema_parser.parse(text)
    except schema_tokens.SchemaError as error:
        column = error.column
    assert 0 <= column <= len(text)
