// The attribute values of one node, in the form that FFI handlers read and in the form that XLA programs carry.

#ifndef TFTOOLKIT_HOST_ATTRIBUTES_H_
#define TFTOOLKIT_HOST_ATTRIBUTES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "signature.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/ffi/api/c_api.h"

namespace tftoolkit {

// One attribute's values: a scalar has one, a list any number.
struct AttributeValue {
  Attribute::Type scalar;
  bool is_list;
  std::vector<float> f32;
  std::vector<double> f64;
  std::vector<int32_t> i32;
  std::vector<int64_t> i64;
  std::vector<int8_t> boolean;  // one byte each: FFI arrays of booleans are read as bytes
  std::string string;           // of a list: the items, each followed by a zero byte
};

// Reads attributes from the node. TensorFlow knows only 32-bit float attributes: an f64 travels as text (repr), an i32
// as a 64-bit integer.
absl::Status ReadAttributes(tensorflow::OpKernelConstruction* context, const Signature& signature,
                            std::vector<AttributeValue>* values, NodeValues* node);

// The arrays an XLA_FFI_Attrs points to. They point into themselves: made once, neither copied nor moved.
class FfiAttributes {
 public:
  FfiAttributes(const Signature& signature, std::vector<AttributeValue> values);
  FfiAttributes(const FfiAttributes&) = delete;
  FfiAttributes& operator=(const FfiAttributes&) = delete;

  XLA_FFI_Attrs Get();

 private:
  struct Slot {
    XLA_FFI_ByteSpan name;
    XLA_FFI_ByteSpan string;
    XLA_FFI_Scalar scalar;
    XLA_FFI_Array array;
  };
  std::vector<AttributeValue> values_;
  std::vector<Slot> slots_;
  std::vector<XLA_FFI_ByteSpan*> names_;
  std::vector<XLA_FFI_AttrType> types_;
  std::vector<void*> attrs_;
};

// The attributes as an MLIR dictionary, which is how XLA programs carry them.
std::string MlirDictionary(const Signature& signature, const std::vector<AttributeValue>& values);

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_ATTRIBUTES_H_
