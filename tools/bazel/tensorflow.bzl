"""Makes the TensorFlow that pip installed a Bazel repository: headers, libraries, flags and the interpreter itself."""

def _interpreter(repository_ctx, root):
    wanted = repository_ctx.os.environ.get("PYTHON_BIN_PATH")
    if wanted:
        path = repository_ctx.path(wanted if wanted.startswith("/") else "%s/%s" % (root, wanted))
        if not path.exists:
            fail("PYTHON_BIN_PATH=%s: there is no %s. Name an interpreter that has TensorFlow." % (wanted, path))
        return path
    venv = root.get_child(".venv").get_child("bin").get_child("python")
    path = venv if venv.exists else repository_ctx.which("python3")
    if not path:
        fail("There is neither .venv/bin/python nor python3 on PATH. Set PYTHON_BIN_PATH to an interpreter.")
    return path

def _tensorflow_impl(repository_ctx):
    root = repository_ctx.path(Label("//:WORKSPACE")).dirname
    python = _interpreter(repository_ctx, root)
    for source in ["builder.py", "compiling.py", "toolchain.py"]:
        repository_ctx.path(Label("//:custom_ops/engine/" + source))  # a change there asks Python again
    answer = repository_ctx.execute(
        [python, repository_ctx.path(Label("//:tools/bazel/describe.py"))],
        environment = {"PYTHONPATH": str(root)},
    )
    if answer.return_code != 0:
        fail("%s cannot be used: %s\nPYTHON_BIN_PATH names another interpreter." % (python, answer.stderr.strip()))
    description = json.decode(answer.stdout)

    for name in ["include", "libtensorflow_cc.so.2", "libtensorflow_framework.so.2"]:
        repository_ctx.symlink(description["folder"] + "/" + name, name)
    repository_ctx.symlink(Label("//:tools/bazel/tensorflow.BUILD"), "BUILD")
    repository_ctx.file("description.bzl", "".join([
        "%s = %s\n" % (name.upper(), repr(value))
        for name, value in description.items()
    ]))

tensorflow_repository = repository_rule(
    implementation = _tensorflow_impl,
    doc = """The installed TensorFlow as @<name>//:headers, :ffi_headers, :libraries and :python_toolchain.

PYTHON_BIN_PATH names the interpreter whose TensorFlow is meant: .venv/bin/python of the checkout by default, else
python3 on PATH.""",
    environ = ["PYTHON_BIN_PATH", "PATH"],
    local = True,  # looks again whenever a Bazel server starts: pip does not tell Bazel about upgrades
)
