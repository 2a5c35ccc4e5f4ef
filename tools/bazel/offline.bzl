"""Stand-ins for what Bazel 4 would download although it only needs it to read its own BUILD files."""

def _stub_impl(repository_ctx):
    for path, content in repository_ctx.attr.files.items():
        repository_ctx.file(path, content)

_stub = repository_rule(implementation = _stub_impl, attrs = {"files": attr.string_dict()})

def _rules(package, names):
    """The files of a repository whose rules are the ones built into Bazel."""
    lines = ["%s = native.%s\n" % (name, name) for name in names]
    return {package + "/BUILD": "", package + "/defs.bzl": "".join(lines)}

def offline_repositories():
    """Declares the stand-ins. Debian's bazel-bootstrap package contains everything else."""
    _stub(
        name = "rules_cc",
        files = _rules("cc", ["cc_binary", "cc_library", "cc_test", "cc_toolchain", "cc_toolchain_suite"]),
    )
    _stub(
        name = "rules_java",
        files = _rules("java", ["java_import", "java_runtime", "java_toolchain"]),
    )
    _stub(
        name = "remote_coverage_tools",
        files = {"BUILD": """
filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])
filegroup(name = "lcov_merger", visibility = ["//visibility:public"])
"""},
    )
