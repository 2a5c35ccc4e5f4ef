// Calls the handlers of op libraries that are linked in, without Python and TensorFlow, so that sanitizers see nothing
// but the ops. It is a host of its own: the XLA_FFI_Api table below is all that a handler gets.
//
//   driver list            prints "name<TAB>schema<TAB>source" of every op with a CPU kernel
//   driver floats STRIDE   checks float_types.h on all 65,536 halves and bfloat16s, and on every STRIDE-th float
//   driver < calls         runs calls, one per line, and ends with an error when one gives two results
//
// A call, separated by spaces: op, number of attributes, {name, type, count, values (strings in hex)}, number of
// inputs, {dtype, bytes per element, in-place output or -1, rank, dimensions}, number of outputs, {the same}.
//
// Buffers have exactly the size they should have, so that AddressSanitizer sees the first byte behind. Each call runs
// with one thread and with several, over outputs that hold other garbage every time.
//
// A long file: a whole host, which must link with nothing but the ops.

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tftoolkit/op.h"

void CheckFloatTypes(uint64_t stride);  // float_types.cc

// Opaque in the C API: each host defines its own.
struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

  int64_t size() const { return static_cast<int64_t>(threads_.size()); }

 private:
  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return ended_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

using Memory = std::unique_ptr<char, decltype(&free)>;

Memory Allocate(size_t size) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, size) != 0) std::abort();
  return Memory(static_cast<char*>(memory), free);
}

struct XLA_FFI_ExecutionContext {
  Pool* pool;
  std::vector<Memory> scratch;
};

namespace {

XLA_FFI_Error* AllocateScratch(XLA_FFI_DeviceMemory_Allocate_Args* args) {
  args->ctx->scratch.push_back(Allocate(args->size));
  args->data = args->ctx->scratch.back().get();
  return nullptr;
}

const XLA_FFI_Api* Api() {
  static const XLA_FFI_Api api = [] {
    XLA_FFI_Api api{};
    api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
      return new XLA_FFI_Error{args->errc, args->message};
    };
    api.XLA_FFI_Error_GetMessage = [](XLA_FFI_Error_GetMessage_Args* args) {
      args->message = args->error->message.c_str();
    };
    api.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
    api.XLA_FFI_DeviceMemory_Allocate = AllocateScratch;
    api.XLA_FFI_DeviceMemory_Free = [](XLA_FFI_DeviceMemory_Free_Args*) -> XLA_FFI_Error* { return nullptr; };
    api.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
      args->ctx->pool->Schedule([task = args->task, data = args->data] { task(data); });
      return nullptr;
    };
    api.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
      *args->num_threads = args->ctx->pool->size();
      return nullptr;
    };
    return api;
  }();
  return &api;
}

[[noreturn]] void Die(const std::string& reason) {
  std::cerr << reason << std::endl;
  std::_Exit(1);
}

struct Attribute {
  std::string name, type, text;
  bool is_list = false;
  std::vector<char> bytes;
  size_t count = 0;
  XLA_FFI_ByteSpan name_span{}, text_span{};
  XLA_FFI_Scalar scalar{};
  XLA_FFI_Array array{};

  template <typename T>
  void Append(T value) {
    const char* begin = reinterpret_cast<const char*>(&value);
    bytes.insert(bytes.end(), begin, begin + sizeof value);
  }

  void Read(std::istream& in) {
    in >> name >> type >> count;
    is_list = type.size() > 2 && type.substr(type.size() - 2) == "[]";
    if (is_list) type.resize(type.size() - 2);
    std::string word;
    for (size_t i = 0; i < count; ++i) {
      in >> word;
      if (type == "f32") Append(std::stof(word));
      if (type == "f64") Append(std::stod(word));
      if (type == "i32") Append(static_cast<int32_t>(std::stoll(word)));
      if (type == "i64") Append(static_cast<int64_t>(std::stoll(word)));
      if (type == "bool") Append(static_cast<int8_t>(word == "1"));
      if (type == "str") {
        for (size_t at = 1; at + 1 < word.size(); at += 2) {  // the first letter is there for empty strings
          text.push_back(static_cast<char>(std::stoi(word.substr(at, 2), nullptr, 16)));
        }
        if (is_list) text.push_back('\0');
      }
    }
  }

  XLA_FFI_AttrType ffi_type() const {
    return type == "str" ? XLA_FFI_AttrType_STRING : is_list ? XLA_FFI_AttrType_ARRAY : XLA_FFI_AttrType_SCALAR;
  }

  void* Fill() {
    static const std::map<std::string, XLA_FFI_DataType> kTypes = {{"f32", XLA_FFI_DataType_F32},
                                                                   {"f64", XLA_FFI_DataType_F64},
                                                                   {"i32", XLA_FFI_DataType_S32},
                                                                   {"i64", XLA_FFI_DataType_S64}};
    name_span = {name.data(), name.size()};
    text_span = {text.data(), text.size()};
    if (type == "str") return &text_span;
    const XLA_FFI_DataType dtype = type != "bool" ? kTypes.at(type)
                                   : is_list      ? XLA_FFI_DataType_S8
                                                  : XLA_FFI_DataType_PRED;
    scalar = {dtype, bytes.data()};
    array = {dtype, count, bytes.data()};
    return is_list ? static_cast<void*>(&array) : &scalar;
  }
};

struct Buffer {
  int dtype = 0;
  size_t element = 0;
  int alias = -1;
  std::vector<int64_t> dims;
  std::string content;
  Memory memory{nullptr, free};

  void Read(std::istream& in) {
    size_t rank = 0;
    in >> dtype >> element >> alias >> rank;
    dims.resize(rank);
    for (int64_t& dim : dims) in >> dim;
  }

  int64_t Count() const {
    int64_t count = 1;
    for (int64_t dim : dims) count *= dim;
    return count;
  }

  size_t bytes() const { return Count() * element; }

  // Any bit pattern is a number of any type, save bool: NaN, infinities, subnormals and all. Or small ones only.
  void Fill(std::mt19937_64& random, bool any) {
    content.resize(bytes());
    for (size_t i = 0; i < bytes(); i += sizeof(uint64_t)) {
      const uint64_t bits = random();
      std::memcpy(&content[i], &bits, std::min(sizeof bits, bytes() - i));
    }
    for (size_t i = 0; i < bytes() && (dtype == XLA_FFI_DataType_PRED || !any); i += element) {
      char* value = &content[i];
      if (dtype == XLA_FFI_DataType_PRED) {
        *value &= 1;
      } else if (dtype == XLA_FFI_DataType_F32 || dtype == XLA_FFI_DataType_C64) {
        const float small[2] = {static_cast<float>(*value) / 128, 0.25f};
        std::memcpy(value, small, element);
      } else if (dtype == XLA_FFI_DataType_F64 || dtype == XLA_FFI_DataType_C128) {
        const double small[2] = {static_cast<double>(*value) / 128, 0.25};
        std::memcpy(value, small, element);
      } else if (dtype == XLA_FFI_DataType_F16 || dtype == XLA_FFI_DataType_BF16) {
        value[1] = dtype == XLA_FFI_DataType_F16 ? 0x38 : 0x3f;
      } else if (element > 1) {  // integers; bytes may be any
        const char low = *value & 15;
        std::memset(value, 0, element);
        *value = low;
      }
    }
  }

  // Integers that rise from 0 to `last` in equal steps: where rows of different lengths begin.
  void FillBorders(int64_t last) {
    const int64_t count = Count();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t border = i + 1 == count ? last : i * (last / std::max<int64_t>(1, count));
      std::memcpy(&content[i * element], &border, element);  // little-endian
    }
  }

  char* Copy() {
    memory = Allocate(bytes());
    if (bytes() > 0) std::memcpy(memory.get(), content.data(), bytes());
    return memory.get();
  }
};

struct Call {
  std::string line, op;
  std::vector<Attribute> attributes;
  std::vector<Buffer> inputs, outputs;

  explicit Call(const std::string& line) : line(line) {
    std::istringstream in(line);
    size_t count = 0;
    in >> op >> count;
    attributes.resize(count);
    for (Attribute& attribute : attributes) attribute.Read(in);
    for (std::vector<Buffer>* buffers : {&inputs, &outputs}) {
      in >> count;
      buffers->resize(count);
      for (Buffer& buffer : *buffers) buffer.Read(in);
    }
    if (!in) Die("cannot read the call: " + line);
  }

  void FillInputs(uint64_t seed, bool any) {
    std::mt19937_64 random(seed);
    for (Buffer& input : inputs) input.Fill(random, any);
    if (!any && op.rfind("EmbeddingBag", 0) == 0) inputs[2].FillBorders(inputs[1].Count());
  }

  // The error, or the bytes of all outputs.
  std::string Run(XLA_FFI_Handler* handler, Pool* pool, char garbage) {
    std::vector<XLA_FFI_Buffer> descriptions;
    descriptions.reserve(inputs.size() + outputs.size());
    std::vector<void*> arguments, results, values;
    std::vector<XLA_FFI_ByteSpan*> names;
    std::vector<XLA_FFI_AttrType> types;
    const auto describe = [&](Buffer& buffer, void* data) {
      descriptions.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, static_cast<XLA_FFI_DataType>(buffer.dtype), data,
                              static_cast<int64_t>(buffer.dims.size()), buffer.dims.data()});
      return &descriptions.back();
    };
    for (Buffer& input : inputs) arguments.push_back(describe(input, input.Copy()));
    for (Buffer& output : outputs) {
      if (output.alias < 0) {
        output.memory = Allocate(output.bytes());
        std::memset(output.memory.get(), garbage, output.bytes());
      }
      results.push_back(describe(output, Data(output)));
    }
    for (Attribute& attribute : attributes) {
      values.push_back(attribute.Fill());
      names.push_back(&attribute.name_span);
      types.push_back(attribute.ffi_type());
    }
    const std::vector<XLA_FFI_ArgType> argument_types(inputs.size(), XLA_FFI_ArgType_BUFFER);
    const std::vector<XLA_FFI_RetType> result_types(outputs.size(), XLA_FFI_RetType_BUFFER);
    XLA_FFI_ExecutionContext context{pool, {}};
    XLA_FFI_CallFrame frame{};
    frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.api = Api();
    frame.ctx = &context;
    frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
    frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(inputs.size()),
                  const_cast<XLA_FFI_ArgType*>(argument_types.data()), arguments.data()};
    frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(outputs.size()),
                  const_cast<XLA_FFI_RetType*>(result_types.data()), results.data()};
    frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE,
                   nullptr,
                   static_cast<int64_t>(attributes.size()),
                   types.data(),
                   names.data(),
                   values.data()};
    const std::unique_ptr<XLA_FFI_Error> error(handler(&frame));
    if (error != nullptr) return error->message;
    std::string all;
    for (Buffer& output : outputs) all.append(Data(output), output.bytes());
    return all;
  }

 private:
  char* Data(Buffer& output) { return (output.alias < 0 ? output : inputs[output.alias]).memory.get(); }
};

std::map<std::string, XLA_FFI_Handler*> Handlers() {
  std::map<std::string, XLA_FFI_Handler*> handlers;
  for (const TK_KernelDeclaration* kernel = tk_library()->kernels; kernel != nullptr; kernel = kernel->next) {
    if (std::string(kernel->platform) == "CPU") handlers[kernel->op] = kernel->handler;
  }
  return handlers;
}

void RunAll(const std::vector<std::string>& lines, Pool* one, Pool* several) {
  static const std::map<std::string, XLA_FFI_Handler*> handlers = Handlers();
  for (size_t i = 0; i < lines.size(); ++i) {
    Call call(lines[i]);
    XLA_FFI_Handler* handler = handlers.at(call.op);
    for (bool any : {false, true}) {
      call.FillInputs(i, any);
      for (Pool* pool : {one, several}) {
        if (call.Run(handler, pool, 0) != call.Run(handler, pool, -1)) Die("garbage in outputs shows: " + call.line);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "list") {
    const auto handlers = Handlers();
    for (const TK_OpDeclaration* op = tk_library()->ops; op != nullptr; op = op->next) {
      if (handlers.count(op->name)) std::cout << op->name << '\t' << op->schema << '\t' << op->file << '\n';
    }
    return 0;
  }
  if (argc > 2 && std::string(argv[1]) == "floats") {
    CheckFloatTypes(std::strtoull(argv[2], nullptr, 10));
    return 0;
  }
  std::vector<std::string> lines;
  for (std::string line; std::getline(std::cin, line);) lines.push_back(line);
  Pool one(1), several(4);
  // Two callers at once: handlers may share nothing but the pool.
  std::thread other([&] { RunAll(lines, &one, &several); });
  RunAll(lines, &one, &several);
  other.join();
  std::cout << lines.size() << " calls\n";
  return 0;
}
