"""A library beside a native SavedModel that registers its custom ops: for programs without Python.

``TF_LoadLibrary("MODEL/assets.extra/register.so")`` of TensorFlow's C API, or whatever another language calls that. The
declarations are written into its source at export, so that nothing in it reads the grammar of schemas.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tftoolkit.custom_ops.engine import builder, compiling, ops, tf_host, toolchain

NAME, HOST = "register.so", "host.so"

_SOURCE = r"""// Made by tftoolkit's export: registers custom ops with TensorFlow when it is loaded.
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace {

struct Kernel {  // TK_KernelDeclaration and TK_Library of tftoolkit/op.h
  const char* op;
  const char* platform;
  void* handler;
  const char* file;
  int32_t line;
  const Kernel* next;
};
struct Library {
  int32_t abi, ffi_major, ffi_minor;
  const void* ops;
  const Kernel* kernels;
};

struct Op {
  const char* type;
  const char* name;
  const char* library;
  const char* definition;
  size_t size;
  const char* text;
  const char* wire;
};
const Op kOps[] = {
OPS};

template <typename Function>
Function* Find(const std::string& file, const char* symbol) {
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* found = library == nullptr ? nullptr : dlsym(library, symbol);
  if (found == nullptr) std::fprintf(stderr, "register.so: %s\n", dlerror());
  return reinterpret_cast<Function*>(found);
}

void Tell(const char* type, const char* error) {
  if (error != nullptr) std::fprintf(stderr, "register.so: %s: %s\n", type, error);
}

__attribute__((constructor)) void Register() {
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&Register), &self) == 0) return;
  std::string folder(self.dli_fname);
  folder.resize(folder.rfind('/') + 1);
  const std::string host = folder + "host.so";
  auto* add_op = Find<char*(const char*, size_t, const char*, const char*)>(host, "tk_register_op");
  auto* add_kernel = Find<char*(const char*, const char*, void*)>(host, "tk_register_kernel");
  if (add_op == nullptr || add_kernel == nullptr) return;
  for (const Op& op : kOps) {
    auto* library = Find<const Library*()>(folder + op.library, "tk_library");
    if (library == nullptr) return;
    Tell(op.type, add_op(op.definition, op.size, op.text, op.wire));
    for (const Kernel* kernel = library()->kernels; kernel != nullptr; kernel = kernel->next) {
      if (std::strcmp(kernel->op, op.name) == 0) Tell(op.type, add_kernel(op.type, kernel->platform, kernel->handler));
    }
  }
}

}  // namespace
"""


def pack(folder: Path, custom: Mapping[str, ops.Op]) -> None:
    """Puts ``register.so`` and the op host into ``folder``, where the libraries of the ops (op type -> op) lie.

    Raises BuildError where it cannot be compiled.
    """
    rows = []
    for op_type, op in sorted(custom.items()):
        definition, text, wire = tf_host.declaration(op_type, op)
        strings = [_literal(value.encode()) for value in (op_type, op.name, op.library.path.name)]
        strings += [_literal(definition), str(len(definition)), _literal(text), _literal(wire)]
        rows.append(f"    {{{', '.join(strings)}}},\n")
    compiler = toolchain.cxx()
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "register.cc"
        source.write_text(_SOURCE.replace("OPS", "".join(rows)))
        unit = compiling.Unit((source,), (*compiler.command, "-std=c++17", "-O1", "-fPIC"))
        recipe = builder.Recipe("register", (unit,), (*compiler.command, "-shared", "-ldl"), (), (compiler.version,))
        shutil.copyfile(builder.build(recipe, cache_dir=temporary), folder / NAME)
    shutil.copyfile(tf_host.host_path(), folder / HOST)


def _literal(value: bytes) -> str:
    """Of C++; three octal digits can't take in a character that follows."""
    return '"' + "".join(f"\\{byte:03o}" for byte in value) + '"'
