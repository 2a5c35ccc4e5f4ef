// Runs an exported SavedModel through TensorFlow's C API, without Python.
//
//   serve [--library FILE] SAVED_MODEL INPUT OUTPUT DIM... < input.bin > output.bin
//
// FILE registers custom ops: SAVED_MODEL/assets.extra/register.so of a model exported with ops="native". INPUT and OUTPUT are the tensors of the signature as `saved_model_cli show --dir SAVED_MODEL --all` names them, such
// as serving_default_image:0 and StatefulPartitionedCall:0. Standard input holds the float32 values of one tensor of
// shape DIM...; the output's go to standard output, and its shape to standard error.
//
// Build it against the library and the headers of TensorFlow's wheel:
//
//   TF=$(python -c 'import importlib.util as u; print(u.find_spec("tensorflow").submodule_search_locations[0])')
//   g++ -std=c++17 -O2 -Wall -Wextra serve.cc -isystem "$TF/include" -L"$TF" -l:libtensorflow_cc.so.2
//       -l:libtensorflow_framework.so.2 -Wl,-rpath,"$TF" -o serve        (all on one line)

#include <tensorflow/c/c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

template <auto Delete>
struct Deleter {
  template <typename T>
  void operator()(T* pointer) const {
    Delete(pointer);
  }
};
using Status = std::unique_ptr<TF_Status, Deleter<TF_DeleteStatus>>;
using Graph = std::unique_ptr<TF_Graph, Deleter<TF_DeleteGraph>>;
using Options = std::unique_ptr<TF_SessionOptions, Deleter<TF_DeleteSessionOptions>>;
using Tensor = std::unique_ptr<TF_Tensor, Deleter<TF_DeleteTensor>>;

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "serve: %s\n", message.c_str());
  std::exit(1);
}

void Check(const Status& status) {
  if (TF_GetCode(status.get()) != TF_OK) Fail(TF_Message(status.get()));
}

// "name:0" in the graph.
TF_Output Find(TF_Graph* graph, const std::string& name) {
  const size_t colon = name.rfind(':');
  if (colon == std::string::npos) Fail(name + " is no tensor's name, such as serving_default_image:0");
  TF_Operation* operation = TF_GraphOperationByName(graph, name.substr(0, colon).c_str());
  if (operation == nullptr) Fail("the model has no tensor " + name);
  const int index = std::atoi(name.c_str() + colon + 1);
  if (index < 0 || index >= TF_OperationNumOutputs(operation)) Fail("the model has no tensor " + name);
  return {operation, index};
}

Tensor ReadInput(const std::vector<int64_t>& dims) {
  size_t bytes = sizeof(float);
  for (int64_t dim : dims) bytes *= dim;
  Tensor tensor(TF_AllocateTensor(TF_FLOAT, dims.data(), static_cast<int>(dims.size()), bytes));
  const size_t read = std::fread(TF_TensorData(tensor.get()), 1, bytes, stdin);
  if (read != bytes || std::fgetc(stdin) != EOF) {
    Fail("standard input must hold " + std::to_string(bytes) + " bytes, as many as the shape asks for");
  }
  return tensor;
}

void Serve(const char* folder, const char* input, const char* output, const std::vector<int64_t>& dims) {
  Status status(TF_NewStatus());
  Graph graph(TF_NewGraph());
  Options options(TF_NewSessionOptions());
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options.get(), nullptr, folder, tags, 1, graph.get(), nullptr, status.get());
  Check(status);

  const TF_Output inputs[] = {Find(graph.get(), input)}, outputs[] = {Find(graph.get(), output)};
  Tensor value = ReadInput(dims);
  TF_Tensor* values[] = {value.get()};
  TF_Tensor* results[] = {nullptr};
  TF_SessionRun(session, nullptr, inputs, values, 1, outputs, results, 1, nullptr, 0, nullptr, status.get());
  Check(status);
  Tensor result(results[0]);
  if (TF_TensorType(result.get()) != TF_FLOAT) Fail(std::string(output) + " is not float32");

  std::fprintf(stderr, "shape");
  for (int i = 0; i < TF_NumDims(result.get()); ++i) {
    std::fprintf(stderr, " %lld", static_cast<long long>(TF_Dim(result.get(), i)));
  }
  std::fprintf(stderr, "\n");
  std::fwrite(TF_TensorData(result.get()), 1, TF_TensorByteSize(result.get()), stdout);
  TF_CloseSession(session, status.get());
  TF_DeleteSession(session, status.get());
  Check(status);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2 && std::strcmp(argv[1], "--library") == 0) {
    Status status(TF_NewStatus());
    TF_LoadLibrary(argv[2], status.get());
    Check(status);
    argc -= 2, argv += 2;
  }
  if (argc < 4) Fail("usage: serve [--library FILE] SAVED_MODEL INPUT OUTPUT DIM... < input.bin > output.bin");
  std::vector<int64_t> dims;
  for (int i = 4; i < argc; ++i) {
    char* end = nullptr;
    dims.push_back(std::strtoll(argv[i], &end, 10));
    if (*end != '\0' || dims.back() < 0) Fail(std::string(argv[i]) + " is no dimension");
  }
  Serve(argv[1], argv[2], argv[3], dims);
}
