// An op's shapes as the host needs them: which dimensions must agree on the input side, what they make on the output
// side.

#ifndef TFTOOLKIT_HOST_SIGNATURE_H_
#define TFTOOLKIT_HOST_SIGNATURE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace tftoolkit {

struct Dim {
  enum Kind : int64_t { kFixed = 0, kNamed = 1, kRest = 2 };
  Kind kind;
  int64_t value;  // the size, or the name's number; 0 for `...`
};

struct Argument {
  std::string name;
  std::vector<Dim> dims;
  bool has_rest = false;
};

struct Attribute {
  enum Type : int64_t { kF32 = 0, kF64 = 1, kI32 = 2, kI64 = 3, kBool = 4, kString = 5 };
  std::string name;
  Type type;
};

struct Signature {
  std::string op_type;  // "TfToolkit>RmsNorm"
  std::string text;     // as declared, for error messages
  std::vector<Argument> inputs;
  std::vector<Argument> outputs;
  std::vector<Attribute> attributes;  // sorted by name, as FFI wants them
  std::vector<std::string> dim_names;

  // Checks ranks and dimensions of concrete input shapes; the message names argument and dimension.
  absl::Status OutputShapes(absl::Span<const tensorflow::TensorShape> input_shapes,
                            std::vector<tensorflow::TensorShape>* output_shapes) const;

  // TensorFlow's shape function: exact where the inputs are known, unknown elsewhere.
  absl::Status InferShapes(tensorflow::shape_inference::InferenceContext* context) const;
};

// The wire form that the Python package's schema compiler writes: words separated by spaces (names hold none).
//   inputs outputs attributes dim_names
//   per input and output: name dims, then per dimension: kind value
//   per attribute: name type
//   the dimension names
absl::Status ParseSignature(const std::string& op_type, const std::string& text, const std::string& wire,
                            Signature* signature);

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_SIGNATURE_H_
