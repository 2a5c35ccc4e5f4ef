"""Launches and shared arrays of CUDA source become C++ in the same lines, and what can't be read is refused."""

from pathlib import Path

import pytest

from tftoolkit.custom_ops import BuildError
from tftoolkit.custom_ops.emulation import rewriting

PATH = Path("/somewhere/kernel.cu")


def rewrite(text: str) -> str:
    first, _, rest = rewriting.rewrite(text, PATH).partition("\n")
    assert first == '#line 1 "/somewhere/kernel.cu"'
    assert rest.count("\n") == text.count("\n")
    return rest


@pytest.mark.parametrize(
    ("launch", "kernel", "configuration"),
    [
        ("K<<<1, 32>>>(x);", "K", "1, 32"),
        ("Sum<T, (N > 2)><<<dim3(1, 2), f<int>(3), 0, s>>>(x);", "Sum<T, (N > 2)>", "dim3(1, 2), f<int>(3), 0, s"),
        ("a::b<int>::K<3> <<<n >> 2, 32>>>(x);", "a::b<int>::K<3>", "n >> 2, 32"),
        ("(odd ? A<T> : B<T>)<<<1, 2>>>(x);", "(odd ? A<T> : B<T>)", "1, 2"),
        ("if (n) K<<<1, sizes[0]>>>();", "K", "1, sizes[0]"),
    ],
)
def test_launches(launch, kernel, configuration):
    text = rewrite(launch)
    assert f'Launch("{kernel}", __FILE__, __LINE__, [&](auto... tk_arguments)' in text
    assert f"{{ {kernel}(tk_arguments...); }},{configuration})" in text
    assert text.endswith(launch[launch.index(">>>(") + 3 :])


def test_launches_over_several_lines_keep_the_lines():
    text = rewrite("int before;\nK<T>\n    <<<grid,\n   block>>>(\n  x);\nint after;\n")
    assert text.splitlines()[0] == "int before;"
    assert text.splitlines()[5] == "int after;"


@pytest.mark.parametrize(
    "text", ['"K<<<1, 2>>>(x)"', "// K<<<1, 2>>>(x)", "/* __shared__\n float a[2]; */", '\'"\'; "__noinline__"']
)
def test_comments_and_strings_stay(text):
    assert rewrite(text) == text
    assert not rewriting.is_cuda(text)


@pytest.mark.parametrize(
    ("declaration", "kind", "arguments"),
    [
        ("__shared__ float a[8][N / (2)];", "typedef float tk_type_of_a[8][N / (2)];", "alignof(tk_type_of_a)"),
        ("__shared__ alignas(16) Pair<int, 3> a[4];", "typedef Pair<int, 3> tk_type_of_a[4];", ", 16)"),
        ("__shared__ __align__(8) char a[N];", "typedef char tk_type_of_a[N];", ", 8)"),
        ("static __shared__ unsigned long a;", "typedef unsigned long tk_type_of_a;", '"a"'),
        ("extern __shared__ float a[];", "float* const a = ", "alignof(float)"),
        ("extern __shared__ __align__(16) unsigned char a[];", "unsigned char* const a = ", "(16)"),
    ],
)
def test_shared_arrays(declaration, kind, arguments):
    text = rewrite(f"void f() {{ {declaration} }}")
    assert kind in text
    assert arguments in text
    assert "__shared__" not in text


def test_several_arrays_in_one_statement():
    text = rewrite("namespace a { void f() {\n__shared__ float a[4],\n    b[N]  /* as many */;\n} }")
    assert "typedef float tk_type_of_a[4];" in text
    assert "typedef float tk_type_of_b[N];" in text


def test_digits_in_groups_are_no_characters():
    assert "Launch(" in rewrite("int n = 1'000; K<<<1, 1'000>>>(n);")


def test_noinline():
    assert rewrite("__device__ __noinline__ int f();") == "__device__ __attribute__((noinline)) int f();"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n[]{}<<<1, 2>>>(x);", r"/somewhere/kernel\.cu:2: this launch cannot be read: write kernel<<<"),
        ("K<<<1, 2>>(x);", r"kernel\.cu:1: this launch cannot be read"),
        ("void f() {\n\n__shared__ struct { int a; } b; }", r"kernel\.cu:3: .*__shared__ cannot be read"),
        (
            'namespace { extern "C" {\nextern __shared__ float a[];',
            r"kernel\.cu:2: a shared array outside of functions",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(BuildError, match=message):
        rewriting.rewrite(text, PATH)
