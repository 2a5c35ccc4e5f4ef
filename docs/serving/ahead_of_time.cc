// Runs a model that XLA compiled to machine code ahead of time: no graph, no session, no interpreter.
//
//   TF=$(python -c 'import importlib.util as u; print(u.find_spec("tensorflow").submodule_search_locations[0])')
//   saved_model_cli aot_compile_cpu --dir=exported --tag_set=serve --signature_def_key=serving_default
//       --cpp_class=Model --output_prefix=model                           # all on one line; makes model.h and model*.o
//   g++ -std=c++17 -O2 -I. ahead_of_time.cc model*.o "$TF"/xla_aot_runtime_src/tensorflow/compiler/tf2xla/*.cc
//       -isystem "$TF/include" -L"$TF" -l:libtensorflow_cc.so.2 -l:libtensorflow_framework.so.2 -Wl,-rpath,"$TF"
//       -o ahead_of_time
//   ./ahead_of_time < input.bin > output.bin
//
// The names of the feed and of the fetch, here x and y, are those of the signature. All shapes must be fixed.

#include <cstdio>

#include "model.h"

int main() {
  Model model;
  const size_t wanted = model.arg_feed_x_count(), made = model.result_fetch_y_count();
  if (std::fread(model.arg_feed_x_data(), sizeof(float), wanted, stdin) != wanted) {
    std::fprintf(stderr, "ahead_of_time: standard input must hold %zu float32 values\n", wanted);
    return 1;
  }
  if (!model.Run()) {
    std::fprintf(stderr, "ahead_of_time: %s\n", model.error_msg().c_str());
    return 1;
  }
  return std::fwrite(model.result_fetch_y_data(), sizeof(float), made, stdout) == made ? 0 : 1;
}
