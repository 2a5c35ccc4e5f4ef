// An op's shapes as the host needs them: which dimensions must agree on the input side, what they make on the output
// side.

#ifndef TFTOOLKIT_HOST_SIGNATURE_H_
#define TFTOOLKIT_HOST_SIGNATURE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor_shape.h"

namespace tftoolkit {

// One item of an output dimension in postfix order.
struct Term {
  enum Kind : int64_t { kNumber = 0, kName = 1, kAttribute = 2, kOperator = 3 };
  Kind kind;
  int64_t value;  // the number, the name's or attribute's index, or the operator's character
};

// A dimension: `...` when there are no terms, else an expression; on the input side a number, a name, or a name plus or
// minus a number.
struct Dim {
  std::vector<Term> terms;
  bool is_rest() const { return terms.empty(); }
  int64_t shift() const {  // what is added to an input's name: 1 for n+1, -1 for n-1
    return terms.size() != 3 ? 0 : terms[2].value == '-' ? -terms[1].value : terms[1].value;
  }
};

struct Argument {
  std::string name;
  std::vector<Dim> dims;
  bool has_rest = false;
  bool variadic = false;  // a list of tensors; lists come last and are all of one length
  int64_t presence = -1;  // optional: the index of the bool attribute that says whether it is there
  int64_t alias = -1;     // output: the input (as declared) whose buffer it takes over
};

struct Attribute {
  enum Type : int64_t { kF32 = 0, kF64 = 1, kI32 = 2, kI64 = 3, kBool = 4, kString = 5, kList = 16 };
  std::string name;
  Type scalar;
  bool is_list;
};

// What is fixed for one node: the integer (or bool) value of each attribute, 0 for others, and the length of its lists.
struct NodeValues {
  std::vector<int64_t> integers;
  int64_t list_length = 0;
};

struct Signature {
  std::string op_type;  // "TfToolkit>RmsNorm"
  std::string text;     // as declared, for error messages
  std::vector<Argument> inputs;
  std::vector<Argument> outputs;
  std::vector<Attribute> attributes;   // sorted by name, as FFI wants them
  std::vector<std::string> dim_names;  // those bound once per call, then those bound anew for each place of the lists
  size_t global_names = 0;             // how many are of the first sort
  bool rest_is_global = false;         // the same for `...`
  bool stateful = false;               // every call counts: none may be folded, merged or dropped

  // Checks ranks and dimensions of concrete input shapes (lists laid flat); the message names argument and dimension.
  absl::Status OutputShapes(absl::Span<const tensorflow::TensorShape> input_shapes, const NodeValues& node,
                            std::vector<tensorflow::TensorShape>* output_shapes) const;

  // TensorFlow's shape function: exact where the inputs are known, unknown elsewhere.
  absl::Status InferShapes(tensorflow::shape_inference::InferenceContext* context) const;

  // Output → input in place of which it stands, with lists laid flat.
  std::vector<std::pair<int, int>> Aliases(int64_t list_length) const;
};

// The wire form that the Python package writes (host.py): words separated by spaces (names hold none).
//   inputs outputs attributes dim_names global_names rest_is_global
//   per input and output: name variadic presence alias dims, then per dimension: terms, then per term: kind value
//   per attribute: name type (+16 for a list)
//   the dimension names
absl::Status ParseSignature(const std::string& op_type, const std::string& text, const std::string& wire,
                            Signature* signature);

// The value of an output dimension. `size_of(name)` gives a named dimension. Refuses overflow, division by zero and
// negative sizes with an error that names the output.
absl::Status Evaluate(const Signature& signature, const Argument& output, const Dim& dim, const NodeValues& node,
                      absl::FunctionRef<int64_t(int64_t)> size_of, int64_t* value);

// "n+1": an input's dimension that has a name.
std::string DimName(const Signature& signature, const Dim& dim);

// "must have at least 1 dimension", or nullopt when the rank fits.
std::optional<std::string> WrongRank(const Argument& argument, int64_t rank);

absl::Status Mismatch(const Signature& signature, const Argument& argument, absl::string_view shape,
                      absl::string_view reason);

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_SIGNATURE_H_
