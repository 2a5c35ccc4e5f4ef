// One call of a handler: its buffers are copied to the emulated device and back, and the services that it asks its
// host for (a stream, scratch memory) are the device's. Nothing of this is known to the host.

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"
#include "tftoolkit/emulation/kernel.h"

namespace tftoolkit::emulation {
namespace {

constexpr size_t kAlignment = 64;  // of buffers: what TensorFlow and XLA promise on a GPU, at least

size_t Bytes(const XLA_FFI_Buffer& buffer) {
  size_t size = ffi::ByteWidth(static_cast<ffi::DataType>(buffer.dtype));
  for (int64_t i = 0; i < buffer.rank; ++i) size *= static_cast<size_t>(buffer.dims[i]);
  return size;
}

// The names of the inputs (or outputs) in the op's schema, "(x: …, gamma: …, *, epsilon: …) -> (y: …)"; none of those
// that have a list or an optional one, whose numbers shift.
std::vector<std::string> Names(const TK_Library& library, const char* op, bool outputs, size_t count) {
  const TK_OpDeclaration* declared = library.ops;
  while (declared != nullptr && std::strcmp(declared->name, op) != 0) declared = declared->next;
  std::string schema = declared == nullptr ? "" : declared->schema;
  const size_t arrow = schema.find("->");
  if (arrow == std::string::npos) return {};
  schema = outputs ? schema.substr(arrow) : schema.substr(0, arrow);
  std::vector<std::string> names;
  for (size_t i = schema.find('('); i < schema.size(); ++i) {
    const size_t begin = i + 1 + std::strspn(schema.c_str() + i + 1, " ");
    if (begin >= schema.size() || schema.compare(begin, 2, "*,") == 0) break;
    const size_t end = schema.find(':', begin);
    if (end == std::string::npos) break;
    names.push_back(schema.substr(begin, end - begin));
    for (int depth = 0; i + 1 < schema.size(); ++i) {  // to the next comma that is not in brackets
      const char next = schema[i + 1];
      depth += next == '[' ? 1 : next == ']' ? -1 : 0;
      if (depth == 0 && (next == ',' || next == ')')) break;
    }
    if (schema[++i] == ')') break;
  }
  if (names.size() != count) names.clear();
  return names;
}

struct Copied {
  XLA_FFI_Buffer* original;
  XLA_FFI_Buffer copy;
  size_t bytes;
};

}  // namespace

class Call {
 public:
  Call(const Program& program, const char* op, XLA_FFI_CallFrame* frame)
      : op_(op), machine_(program, ReadSettings()), frame_(*frame) {
    outer_ = std::exchange(Machine::current_, &machine_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() { Machine::current_ = outer_; }

  XLA_FFI_Error* Run(XLA_FFI_Handler* handler) {
    ReplaceServices();
    if (!CopyIn()) {
      return CreateError(frame_.api, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory for copies of the buffers");
    }
    XLA_FFI_Error* error = CallHandler(handler, &frame_);
    if (error == nullptr) CheckWritten();
    if (machine_.finding.empty()) {
      if (error == nullptr) CopyOut();
      return error;
    }
    if (error != nullptr) {  // it says the same, or less
      XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
      frame_.api->XLA_FFI_Error_Destroy(&args);
    }
    return CreateError(frame_.api, XLA_FFI_Error_Code_INTERNAL, machine_.finding);
  }

 private:
  // The host's own table may be shorter or longer than the header says.
  void ReplaceServices() {
    const size_t size = frame_.api->struct_size;
    api_.resize(std::max(size, sizeof(XLA_FFI_Api)) / sizeof(void*) + 1);
    std::memcpy(api_.data(), frame_.api, size);
    XLA_FFI_Api* api = reinterpret_cast<XLA_FFI_Api*>(api_.data());
    api->XLA_FFI_Stream_Get = [](XLA_FFI_Stream_Get_Args* args) -> XLA_FFI_Error* {
      args->stream = nullptr;
      return nullptr;
    };
    api->XLA_FFI_DeviceMemory_Allocate = [](XLA_FFI_DeviceMemory_Allocate_Args* args) -> XLA_FFI_Error* {
      const std::string name = "scratch memory";
      args->data = Machine::current_->memory().Allocate(Space::kScratch, name, args->size, kAlignment);
      return nullptr;
    };
    api->XLA_FFI_DeviceMemory_Free = [](XLA_FFI_DeviceMemory_Free_Args*) -> XLA_FFI_Error* { return nullptr; };
    frame_.api = api;
  }

  bool CopyIn() {
    const auto copy_all = [&](size_t count, void** originals, std::vector<Copied>* copies) {
      copies->reserve(count);
      for (size_t i = 0; i < count; ++i) {
        XLA_FFI_Buffer* original = static_cast<XLA_FFI_Buffer*>(originals[i]);
        copies->push_back({original, *original, Bytes(*original)});
      }
    };
    copy_all(static_cast<size_t>(frame_.rets.size), frame_.rets.rets, &outputs_);
    copy_all(static_cast<size_t>(frame_.args.size), frame_.args.args, &inputs_);
    const std::vector<std::string> input_names = Names(*machine_.program.library, op_, false, inputs_.size());
    const std::vector<std::string> output_names = Names(*machine_.program.library, op_, true, outputs_.size());
    const auto name = [](const char* kind, const std::vector<std::string>& names, size_t i) {
      return kind + (names.empty() ? std::to_string(i) : names[i]);
    };
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (!Place(&outputs_[i], Space::kOutput, name("output ", output_names, i))) return false;
    }
    for (size_t i = 0; i < inputs_.size(); ++i) {
      Copied& input = inputs_[i];
      if (Copied* output = SharesBuffer(input)) {  // an update in place
        input.copy.data = output->copy.data;
        std::memcpy(input.copy.data, input.original->data, input.bytes);
        machine_.memory().Find(input.copy.data)->written = true;
        continue;
      }
      if (!Place(&input, Space::kInput, name("input ", input_names, i))) return false;
      if (input.bytes != 0) std::memcpy(input.copy.data, input.original->data, input.bytes);
    }
    Point(&outputs_, &output_pointers_);
    Point(&inputs_, &input_pointers_);
    frame_.rets.rets = output_pointers_.data();
    frame_.args.args = input_pointers_.data();
    return true;
  }

  Copied* SharesBuffer(const Copied& input) {
    for (Copied& output : outputs_) {
      if (input.bytes != 0 && output.original->data == input.original->data && output.bytes == input.bytes) {
        return &output;
      }
    }
    return nullptr;
  }

  bool Place(Copied* buffer, Space space, std::string name) {
    buffer->copy.data = machine_.memory().Allocate(space, std::move(name), buffer->bytes, kAlignment);
    return buffer->copy.data != nullptr;
  }

  static void Point(std::vector<Copied>* copies, std::vector<void*>* pointers) {
    for (Copied& one : *copies) pointers->push_back(&one.copy);
  }

  void CheckWritten() {
    for (const Copied& output : outputs_) {
      if (output.bytes == 0) continue;
      const Region& region = *machine_.memory().Find(output.copy.data);
      const size_t first = Memory::FirstUnwritten(region);
      if (first == region.size) continue;
      machine_.Fail(cudaErrorInvalidValue, region.name + " + " + std::to_string(first) + " bytes (it holds " +
                                               std::to_string(region.size) + ") is written by no kernel");
    }
  }

  void CopyOut() {
    for (const Copied& output : outputs_) {
      if (output.bytes != 0) std::memcpy(output.original->data, output.copy.data, output.bytes);
    }
  }

  const char* op_;
  Machine machine_;
  XLA_FFI_CallFrame frame_;
  Machine* outer_;
  std::vector<void*> api_;
  std::vector<Copied> inputs_, outputs_;
  std::vector<void*> input_pointers_, output_pointers_;
};

XLA_FFI_Error* CallOnDevice(const Program& program, const char* op, XLA_FFI_Handler* handler,
                            XLA_FFI_CallFrame* frame) {
  const bool asks_only = frame->extension_start != nullptr || frame->stage != XLA_FFI_ExecutionStage_EXECUTE;
  if (asks_only) return CallHandler(handler, frame);
  return Call(program, op, frame).Run(handler);
}

}  // namespace tftoolkit::emulation
