// An external delegate for TensorFlow Lite: runs custom ops of a .tflite file by the handlers of op libraries, the same
// that TensorFlow, XLA and JAX call. It needs none of them, only these libraries.
//
// Options of the delegate: namespace -> paths of op libraries, separated by colons ("TfToolkit" -> "/x/rms_norm.so").
// What a node's handler needs beyond its tensors stands in the node's custom options, in the form that
// tftoolkit/export/runtimes/delegate.py writes; shapes are fixed there.
//
// A long file: a delegate is one table of functions over the same few types.

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tflite.h"
#include "tftoolkit/op.h"

// Opaque in the C API: each host defines its own.
struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

struct XLA_FFI_ExecutionContext {
  std::vector<void*> scratch;

  ~XLA_FFI_ExecutionContext() {
    for (void* memory : scratch) std::free(memory);
  }
};

namespace tftoolkit {
namespace {

// --- what handlers may ask of their host ----------------------------------------------------------------------------

template <typename Args>
XLA_FFI_Error* Unimplemented(Args*) {
  return new XLA_FFI_Error{XLA_FFI_Error_Code_UNIMPLEMENTED, "this XLA FFI service does not exist in TensorFlow Lite"};
}

XLA_FFI_Api MakeApi() {
  XLA_FFI_Api api{};
  api.struct_size = sizeof api;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
    return new XLA_FFI_Error{args->errc, args->message ? args->message : ""};
  };
  api.XLA_FFI_Error_GetMessage = [](XLA_FFI_Error_GetMessage_Args* args) {
    args->message = args->error->message.c_str();
  };
  api.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
  api.XLA_FFI_Handler_Register = Unimplemented<XLA_FFI_Handler_Register_Args>;
  api.XLA_FFI_Stream_Get = Unimplemented<XLA_FFI_Stream_Get_Args>;
#if XLA_FFI_API_MINOR >= 2
  api.XLA_FFI_Type_Register = Unimplemented<XLA_FFI_Type_Register_Args>;
#else
  api.XLA_FFI_TypeId_Register = Unimplemented<XLA_FFI_TypeId_Register_Args>;
#endif
  api.XLA_FFI_ExecutionContext_Get = Unimplemented<XLA_FFI_ExecutionContext_Get_Args>;
  api.XLA_FFI_State_Set = Unimplemented<XLA_FFI_State_Set_Args>;
  api.XLA_FFI_State_Get = Unimplemented<XLA_FFI_State_Get_Args>;
  api.XLA_FFI_DeviceMemory_Allocate = [](XLA_FFI_DeviceMemory_Allocate_Args* args) -> XLA_FFI_Error* {
    const size_t alignment = std::max<size_t>(args->alignment, 64);
    args->data = std::aligned_alloc(alignment, (args->size + alignment - 1) / alignment * alignment);
    if (args->data == nullptr) return new XLA_FFI_Error{XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no scratch memory"};
    args->ctx->scratch.push_back(args->data);
    return nullptr;
  };
  api.XLA_FFI_DeviceMemory_Free = [](XLA_FFI_DeviceMemory_Free_Args*) -> XLA_FFI_Error* { return nullptr; };
  // One thread: TensorFlow Lite lends its own threads to nobody.
  api.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
    args->task(args->data);
    return nullptr;
  };
  api.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
    *args->num_threads = 1;
    return nullptr;
  };
  api.XLA_FFI_Future_Create = Unimplemented<XLA_FFI_Future_Create_Args>;
  api.XLA_FFI_Future_SetAvailable = Unimplemented<XLA_FFI_Future_SetAvailable_Args>;
  api.XLA_FFI_Future_SetError = Unimplemented<XLA_FFI_Future_SetError_Args>;
  api.XLA_FFI_RunId_Get = Unimplemented<XLA_FFI_RunId_Get_Args>;
  api.XLA_FFI_DeviceOrdinal_Get = Unimplemented<XLA_FFI_DeviceOrdinal_Get_Args>;
  return api;
}

const XLA_FFI_Api* FfiApi() {
  static const XLA_FFI_Api api = MakeApi();
  return &api;
}

XLA_FFI_DataType FfiType(TfLiteType type) {
  switch (type) {
    case kTfLiteFloat32:
      return XLA_FFI_DataType_F32;
    case kTfLiteInt32:
      return XLA_FFI_DataType_S32;
    case kTfLiteUInt8:
      return XLA_FFI_DataType_U8;
    case kTfLiteInt64:
      return XLA_FFI_DataType_S64;
    case kTfLiteBool:
      return XLA_FFI_DataType_PRED;
    case kTfLiteInt16:
      return XLA_FFI_DataType_S16;
    case kTfLiteInt8:
      return XLA_FFI_DataType_S8;
    case kTfLiteFloat16:
      return XLA_FFI_DataType_F16;
    case kTfLiteFloat64:
      return XLA_FFI_DataType_F64;
    case kTfLiteUInt64:
      return XLA_FFI_DataType_U64;
    case kTfLiteUInt32:
      return XLA_FFI_DataType_U32;
    case kTfLiteUInt16:
      return XLA_FFI_DataType_U16;
    case kTfLiteBFloat16:
      return XLA_FFI_DataType_BF16;
  }
  return XLA_FFI_DataType_INVALID;
}

// --- a node
// -----------------------------------------------------------------------------------------------------------

// Reads the custom options: little-endian 64-bit numbers, and bytes behind their number. Reading past the end gives
// zeros and `ok()` false.
class Reader {
 public:
  Reader(const void* data, size_t size) : data_(static_cast<const char*>(data)), left_(size) {}

  int64_t Number() {
    int64_t number = 0;
    Take(&number, sizeof number);
    return number;
  }

  // A number of things of at least one byte each.
  size_t Count() {
    const int64_t count = Number();
    if (count < 0 || static_cast<uint64_t>(count) > left_) ok_ = false;
    return ok_ ? static_cast<size_t>(count) : 0;
  }

  std::string Bytes() {
    std::string bytes(Count(), '\0');
    Take(bytes.data(), bytes.size());
    return bytes;
  }

  bool ok() const { return ok_; }

 private:
  void Take(void* target, size_t size) {
    ok_ = ok_ && size <= left_;
    if (!ok_ || size == 0) return;
    std::memcpy(target, data_, size);
    data_ += size;
    left_ -= size;
  }

  const char* data_;
  size_t left_;
  bool ok_ = true;
};

constexpr int64_t kFormat = 0x31444b54;  // "TKD1"

using Dims = std::vector<int64_t>;

struct Attribute {
  std::string name;
  int64_t type = 0;   // XLA_FFI_AttrType
  int64_t dtype = 0;  // XLA_FFI_DataType
  int64_t count = 0;
  std::vector<int64_t> values;  // aligned memory for the bytes
  std::string string;
  XLA_FFI_ByteSpan name_span{};
  XLA_FFI_ByteSpan string_span{};
  XLA_FFI_Scalar scalar{};
  XLA_FFI_Array array{};
};

struct Node {
  std::string op;
  XLA_FFI_Handler* handler = nullptr;
  std::vector<int> inputs, outputs;  // tensors
  std::vector<Dims> input_dims, output_dims;
  std::vector<std::pair<size_t, size_t>> aliases;  // output, input in place of which it stands
  std::vector<std::unique_ptr<Attribute>> attributes;
  std::vector<XLA_FFI_ByteSpan*> names;
  std::vector<XLA_FFI_AttrType> types;
  std::vector<void*> values;

  bool Parse(Reader reader);
  std::string Call(const std::vector<TfLiteTensor>& in, const std::vector<TfLiteTensor>& out);
};

std::vector<Dims> ReadDims(Reader* reader) {
  std::vector<Dims> dims(reader->Count());
  for (Dims& one : dims) {
    one.resize(reader->Count());
    for (int64_t& size : one) size = reader->Number();
  }
  return dims;
}

bool Node::Parse(Reader reader) {
  if (reader.Number() != kFormat) return false;
  input_dims = ReadDims(&reader);
  output_dims = ReadDims(&reader);
  aliases.resize(reader.Count());
  for (auto& [output, input] : aliases) output = reader.Number(), input = reader.Number();
  attributes.resize(reader.Count());
  for (auto& attribute : attributes) {
    attribute = std::make_unique<Attribute>();
    attribute->name = reader.Bytes();
    attribute->type = reader.Number();
    attribute->dtype = reader.Number();
    attribute->count = reader.Number();
    attribute->string = reader.Bytes();
    attribute->values.resize(attribute->string.size() / sizeof(int64_t) + 1);
    std::memcpy(attribute->values.data(), attribute->string.data(), attribute->string.size());
    attribute->name_span = {attribute->name.data(), attribute->name.size()};
    attribute->string_span = {attribute->string.data(), attribute->string.size()};
    attribute->scalar = {static_cast<XLA_FFI_DataType>(attribute->dtype), attribute->values.data()};
    attribute->array = {static_cast<XLA_FFI_DataType>(attribute->dtype), static_cast<size_t>(attribute->count),
                        attribute->values.data()};
    names.push_back(&attribute->name_span);
    types.push_back(static_cast<XLA_FFI_AttrType>(attribute->type));
    values.push_back(attribute->type == XLA_FFI_AttrType_STRING  ? static_cast<void*>(&attribute->string_span)
                     : attribute->type == XLA_FFI_AttrType_ARRAY ? static_cast<void*>(&attribute->array)
                                                                 : static_cast<void*>(&attribute->scalar));
  }
  const bool matches = input_dims.size() == inputs.size() && output_dims.size() == outputs.size();
  const bool all_there = std::all_of(inputs.begin(), inputs.end(), [](int tensor) { return tensor >= 0; });
  const bool aliases_fit = std::all_of(aliases.begin(), aliases.end(), [&](const auto& alias) {
    return alias.first < outputs.size() && alias.second < inputs.size();
  });
  return reader.ok() && matches && all_there && aliases_fit;
}

// The buffer descriptors of a call's inputs or outputs. Filled once, then pointed into.
struct Buffers {
  std::vector<XLA_FFI_Buffer> buffers;
  std::vector<void*> pointers;

  Buffers(const std::vector<TfLiteTensor>& tensors, std::vector<Dims>& dims) : buffers(tensors.size()) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      buffers[i] = {XLA_FFI_Buffer_STRUCT_SIZE,           nullptr,       FfiType(tensors[i].type), tensors[i].data,
                    static_cast<int64_t>(dims[i].size()), dims[i].data()};
      pointers.push_back(&buffers[i]);
    }
  }
};

// Returns what went wrong, or nothing.
std::string Node::Call(const std::vector<TfLiteTensor>& in, const std::vector<TfLiteTensor>& out) {
  Buffers arguments(in, input_dims), results(out, output_dims);
  for (const auto& [output, input] : aliases) {
    if (in[input].bytes) std::memcpy(out[output].data, in[input].data, in[input].bytes);
    arguments.buffers[input].data = out[output].data;
  }
  const std::vector<XLA_FFI_ArgType> argument_types(in.size(), XLA_FFI_ArgType_BUFFER);
  const std::vector<XLA_FFI_RetType> result_types(out.size(), XLA_FFI_RetType_BUFFER);
  XLA_FFI_ExecutionContext execution;
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = FfiApi();
  frame.ctx = &execution;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(in.size()),
                const_cast<XLA_FFI_ArgType*>(argument_types.data()), arguments.pointers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(out.size()),
                const_cast<XLA_FFI_RetType*>(result_types.data()), results.pointers.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE,
                 nullptr,
                 static_cast<int64_t>(values.size()),
                 types.data(),
                 names.data(),
                 values.data()};
  try {
    const std::unique_ptr<XLA_FFI_Error> error(handler(&frame));
    return error ? error->message.empty() ? "failed" : error->message : "";
  } catch (const std::exception& exception) {
    return std::string("the kernel threw: ") + exception.what();
  } catch (...) {
    return "the kernel threw an exception";
  }
}

// --- a part of the graph --------------------------------------------------------------------------------------------

struct Handlers : TfLiteDelegate {
  std::map<std::string, XLA_FFI_Handler*> by_op;  // "TfToolkit>RmsNorm"
};

// The nodes that TensorFlow Lite has put into one kernel of this delegate, in their order.
struct Part {
  std::vector<Node> nodes;
  std::map<int, std::vector<char>> inner;  // tensors that pass between them: nobody else provides memory for these

  TfLiteTensor Tensor(TfLiteContext* context, int index) {
    TfLiteTensor tensor = context->tensors[index];
    const auto found = inner.find(index);
    if (found != inner.end()) tensor.data = found->second.data();
    return tensor;
  }

  std::vector<TfLiteTensor> Tensors(TfLiteContext* context, const std::vector<int>& indices) {
    std::vector<TfLiteTensor> tensors;
    for (int index : indices) tensors.push_back(Tensor(context, index));
    return tensors;
  }
};

std::vector<int> AsVector(const TfLiteIntArray* array) { return {array->data, array->data + array->size}; }

bool Contains(const TfLiteIntArray* array, int value) {
  return std::find(array->data, array->data + array->size, value) != array->data + array->size;
}

void* Init(TfLiteContext* context, const char* buffer, size_t) {
  const auto* params = reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  const auto& handlers = *static_cast<const Handlers*>(params->delegate);
  auto part = std::make_unique<Part>();
  for (int index : AsVector(params->nodes_to_replace)) {
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
    if (context->GetNodeAndRegistration(context, index, &node, &registration) != kTfLiteOk) return nullptr;
    Node& mine = part->nodes.emplace_back();
    mine.op = registration->custom_name;
    mine.handler = handlers.by_op.at(mine.op);
    mine.inputs = AsVector(node->inputs);
    mine.outputs = AsVector(node->outputs);
    if (!mine.Parse({node->custom_initial_data, static_cast<size_t>(node->custom_initial_data_size)})) {
      context->ReportError(context, "%s: its custom options are not those of a file for this delegate",
                           mine.op.c_str());
      return nullptr;
    }
    for (int output : mine.outputs) {
      if (!Contains(params->output_tensors, output)) part->inner[output].resize(context->tensors[output].bytes);
    }
  }
  return part.release();
}

void Free(TfLiteContext*, void* part) { delete static_cast<Part*>(part); }

bool SameDims(const TfLiteTensor& tensor, const Dims& dims) {
  const std::vector<int> actual = AsVector(tensor.dims);
  return std::equal(actual.begin(), actual.end(), dims.begin(), dims.end());
}

TfLiteStatus Prepare(TfLiteContext* context, TfLiteNode* node) {
  const auto* part = static_cast<const Part*>(node->user_data);
  if (part == nullptr) return kTfLiteError;  // Init has told why
  for (const Node& one : part->nodes) {
    for (const auto& [tensors, dims] : {std::pair(&one.inputs, &one.input_dims), {&one.outputs, &one.output_dims}}) {
      for (size_t i = 0; i < tensors->size(); ++i) {
        const TfLiteTensor& tensor = context->tensors[(*tensors)[i]];
        if (FfiType(tensor.type) != XLA_FFI_DataType_INVALID && SameDims(tensor, (*dims)[i])) continue;
        context->ReportError(context, "%s: tensor %s is not of the shape that the file was exported for: it is fixed",
                             one.op.c_str(), tensor.name);
        return kTfLiteError;
      }
    }
  }
  return kTfLiteOk;
}

TfLiteStatus Invoke(TfLiteContext* context, TfLiteNode* node) {
  auto* part = static_cast<Part*>(node->user_data);
  for (Node& one : part->nodes) {
    const std::vector<TfLiteTensor> outputs = part->Tensors(context, one.outputs);
    if (std::all_of(outputs.begin(), outputs.end(), [](const TfLiteTensor& t) { return t.bytes == 0; })) continue;
    const std::string problem = one.Call(part->Tensors(context, one.inputs), outputs);
    if (problem.empty()) continue;
    context->ReportError(context, "%s: %s", one.op.c_str(), problem.c_str());
    return kTfLiteError;
  }
  return kTfLiteOk;
}

TfLiteStatus TakeNodes(TfLiteContext* context, TfLiteDelegate* delegate) {
  const auto& handlers = *static_cast<const Handlers*>(delegate);
  TfLiteIntArray* plan = nullptr;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) return kTfLiteError;
  std::vector<int> mine{0};  // laid out as a TfLiteIntArray: the number of nodes, and the nodes
  for (int index : AsVector(plan)) {
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
    if (context->GetNodeAndRegistration(context, index, &node, &registration) != kTfLiteOk) return kTfLiteError;
    const bool custom = registration->builtin_code == kTfLiteBuiltinCustom && registration->custom_name != nullptr;
    if (custom && handlers.by_op.count(registration->custom_name)) mine.push_back(index);
  }
  mine[0] = static_cast<int>(mine.size()) - 1;
  TfLiteRegistration kernel{};
  kernel.init = Init;
  kernel.free = Free;
  kernel.prepare = Prepare;
  kernel.invoke = Invoke;
  kernel.builtin_code = kTfLiteBuiltinDelegate;
  kernel.custom_name = "tftoolkit";
  kernel.version = 1;
  return context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel,
                                                        reinterpret_cast<const TfLiteIntArray*>(mine.data()), delegate);
}

// --- op libraries
// -----------------------------------------------------------------------------------------------------

// Returns what went wrong, or nothing.
std::string Open(const std::string& name_space, const std::string& path, Handlers* handlers) {
  void* file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open: handlers may be in use until the end
  if (file == nullptr) return dlerror();
  const auto find = reinterpret_cast<const TK_Library* (*)()>(dlsym(file, "tk_library"));
  const TK_Library* library = find ? find() : nullptr;
  if (library == nullptr || library->abi != TK_LIBRARY_ABI) return path + " is no op library of this version";
  if (library->ffi_major != XLA_FFI_API_MAJOR || library->ffi_minor > XLA_FFI_API_MINOR) {
    return path + " was compiled against newer XLA FFI headers than this delegate";
  }
  for (const TK_KernelDeclaration* kernel = library->kernels; kernel != nullptr; kernel = kernel->next) {
    if (std::strcmp(kernel->platform, "CPU") == 0) handlers->by_op[name_space + ">" + kernel->op] = kernel->handler;
  }
  return "";
}

}  // namespace
}  // namespace tftoolkit

// The two functions by which TensorFlow Lite finds an external delegate.

extern "C" TK_EXPORT TfLiteDelegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                                                   void (*report_error)(const char*)) {
  auto handlers = std::make_unique<tftoolkit::Handlers>();
  static_cast<TfLiteDelegate&>(*handlers) = {};
  handlers->Prepare = tftoolkit::TakeNodes;
  // Without it the runtime would first prepare every node by itself, and it does not know ours.
  handlers->flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  for (size_t i = 0; i < count; ++i) {
    std::istringstream paths(values[i]);
    for (std::string path; std::getline(paths, path, ':');) {
      const std::string problem = tftoolkit::Open(keys[i], path, handlers.get());
      if (problem.empty()) continue;
      if (report_error != nullptr) report_error(problem.c_str());
      return nullptr;
    }
  }
  return handlers.release();
}

extern "C" TK_EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  delete static_cast<tftoolkit::Handlers*>(delegate);
}
