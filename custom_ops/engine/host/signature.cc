#include "signature.h"

#include <optional>
#include <sstream>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace tftoolkit {

using tensorflow::TensorShape;

namespace {

Argument ReadArgument(std::istream& in) {
  Argument argument;
  size_t rank = 0;
  in >> argument.name >> argument.variadic >> argument.presence >> argument.alias >> rank;
  for (size_t d = 0; in && d < rank; ++d) {
    size_t terms = 0;
    in >> terms;
    Dim dim;
    for (size_t t = 0; in && t < terms; ++t) {
      int64_t kind = 0, value = 0;
      in >> kind >> value;
      dim.terms.push_back({static_cast<Term::Kind>(kind), value});
    }
    argument.has_rest |= dim.is_rest();
    argument.dims.push_back(std::move(dim));
  }
  return argument;
}

}  // namespace

absl::Status ParseSignature(const std::string& op_type, const std::string& text, const std::string& wire,
                            Signature* signature) {
  std::istringstream in(wire);
  size_t inputs = 0, outputs = 0, attributes = 0, dim_names = 0;
  in >> inputs >> outputs >> attributes >> dim_names >> signature->global_names >> signature->rest_is_global;
  signature->op_type = op_type;
  signature->text = text;
  for (size_t i = 0; in && i < inputs; ++i) signature->inputs.push_back(ReadArgument(in));
  for (size_t i = 0; in && i < outputs; ++i) signature->outputs.push_back(ReadArgument(in));
  for (size_t i = 0; in && i < attributes; ++i) {
    std::string name;
    int64_t type = 0;
    in >> name >> type;
    signature->attributes.push_back(
        {name, static_cast<Attribute::Type>(type % Attribute::kList), type >= Attribute::kList});
  }
  for (size_t i = 0; in && i < dim_names; ++i) in >> signature->dim_names.emplace_back();
  if (!in) return absl::InternalError(absl::StrCat("cannot read the signature of ", op_type, ": ", wire));
  return absl::OkStatus();
}

std::vector<std::pair<int, int>> Signature::Aliases(int64_t list_length) const {
  std::vector<int> first_input;
  int next = 0;
  for (const Argument& input : inputs) {
    first_input.push_back(next);
    next += input.variadic ? static_cast<int>(list_length) : 1;
  }
  std::vector<std::pair<int, int>> aliases;
  int output = 0;
  for (const Argument& argument : outputs) {
    const int count = argument.variadic ? static_cast<int>(list_length) : 1;
    for (int i = 0; i < count; ++i, ++output) {
      if (argument.alias >= 0) aliases.emplace_back(output, first_input[argument.alias] + i);
    }
  }
  return aliases;
}

namespace {

absl::Status BadInput(const Signature& signature, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(signature.op_type, ": ", what, "; the signature is ", signature.text,
                                                 " [tftoolkit: docs/errors.md#op-input]"));
}

}  // namespace

absl::Status Mismatch(const Signature& signature, const Argument& argument, absl::string_view shape,
                      absl::string_view reason) {
  return BadInput(signature, absl::StrCat(argument.name, " has shape ", shape, ", but ", reason));
}

std::string DimName(const Signature& signature, const Dim& dim) {
  const int64_t shift = dim.shift();
  return absl::StrCat(signature.dim_names[dim.terms[0].value], shift > 0 ? "+" : "",
                      shift == 0 ? "" : absl::StrCat(shift));
}

std::optional<std::string> WrongRank(const Argument& argument, int64_t rank) {
  const int64_t listed = static_cast<int64_t>(argument.dims.size()) - argument.has_rest;
  if (argument.has_rest ? rank >= listed : rank == listed) return std::nullopt;
  return absl::StrCat("must have ", argument.has_rest ? "at least " : "", listed,
                      listed == 1 ? " dimension" : " dimensions");
}

namespace {

// Returns false for overflow. Division rounds down, as Python's does; the divisor is not zero.
bool Apply(int64_t mark, int64_t left, int64_t right, int64_t* value) {
  switch (mark) {
    case '+':
      return !__builtin_add_overflow(left, right, value);
    case '-':
      return !__builtin_sub_overflow(left, right, value);
    case '*':
      return !__builtin_mul_overflow(left, right, value);
    default:
      if (left == INT64_MIN && right == -1) return false;
      *value = left / right - (left % right != 0 && (left < 0) != (right < 0));
      return true;
  }
}

}  // namespace

absl::Status Evaluate(const Signature& signature, const Argument& output, const Dim& dim, const NodeValues& node,
                      absl::FunctionRef<int64_t(int64_t)> size_of, int64_t* value) {
  const auto fail = [&](absl::string_view reason) {
    return BadInput(signature, absl::StrCat("a dimension of output ", output.name, " ", reason));
  };
  absl::InlinedVector<int64_t, 8> stack;
  for (const Term& term : dim.terms) {
    if (term.kind == Term::kOperator) {
      const int64_t right = stack.back();
      stack.pop_back();
      if (term.value == '/' && right == 0) return fail("divides by zero");
      if (!Apply(term.value, stack.back(), right, &stack.back())) return fail("overflows 64 bits");
    } else if (term.kind == Term::kName) {
      stack.push_back(size_of(term.value));
    } else {
      stack.push_back(term.kind == Term::kAttribute ? node.integers[term.value] : term.value);
    }
  }
  *value = stack.back();
  return *value >= 0 ? absl::OkStatus() : fail(absl::StrCat("would be ", *value));
}

namespace {

// What the input dimensions were found to be, and which argument said so.
struct Binding {
  struct Size {
    int64_t size;
    const Argument* source;
  };
  explicit Binding(const Signature& signature) : signature(signature), named(signature.dim_names.size()) {}

  const Signature& signature;
  std::vector<std::optional<Size>> named;
  std::optional<TensorShape> rest;
  const Argument* rest_source = nullptr;

  // Forgets what holds for one place of the lists only.
  void NextPlace() {
    for (size_t i = signature.global_names; i < named.size(); ++i) named[i].reset();
    if (!signature.rest_is_global) rest.reset();
  }

  absl::Status BindRest(const Argument& argument, const TensorShape& shape, TensorShape found) {
    if (!rest) {
      rest = std::move(found);
      rest_source = &argument;
      return absl::OkStatus();
    }
    if (*rest == found) return absl::OkStatus();
    return Mismatch(signature, argument, shape.DebugString(),
                    absl::StrCat("its dimensions ... must be ", rest->DebugString(), " as in ", rest_source->name));
  }

  absl::Status BindSize(const Argument& argument, const TensorShape& shape, const Dim& dim, int64_t size) {
    const Term& term = dim.terms[0];
    if (term.kind == Term::kNumber) {
      if (term.value == size) return absl::OkStatus();
      return Mismatch(signature, argument, shape.DebugString(), absl::StrCat("a dimension of it must be ", term.value));
    }
    const int64_t shift = dim.shift();
    std::optional<Size>& known = named[term.value];
    if (!known && size >= shift) known = Size{size - shift, &argument};
    if (known && known->size == size - shift) return absl::OkStatus();
    return Mismatch(
        signature, argument, shape.DebugString(),
        absl::StrCat("its dimension ", DimName(signature, dim), " must be ",
                     known && size >= shift ? absl::StrCat(known->size + shift, " as in ", known->source->name)
                                            : absl::StrCat("at least ", shift)));
  }

  absl::Status Bind(const Argument& argument, const TensorShape& shape) {
    if (const auto reason = WrongRank(argument, shape.dims())) {
      return Mismatch(signature, argument, shape.DebugString(), *reason);
    }
    const int64_t rest_rank = shape.dims() - (static_cast<int64_t>(argument.dims.size()) - 1);
    int axis = 0;
    for (const Dim& dim : argument.dims) {
      if (dim.is_rest()) {
        TensorShape found;
        for (int64_t i = 0; i < rest_rank; ++i) found.AddDim(shape.dim_size(axis++));
        TF_RETURN_IF_ERROR(BindRest(argument, shape, std::move(found)));
      } else {
        TF_RETURN_IF_ERROR(BindSize(argument, shape, dim, shape.dim_size(axis++)));
      }
    }
    return absl::OkStatus();
  }

  // The schema parser has checked that every name and `...` of an output stands in an input that is there.
  absl::Status Shape(const Argument& output, const NodeValues& node, TensorShape* shape) const {
    if (output.presence >= 0 && node.integers[output.presence] == 0) return shape->AddDimWithStatus(0);
    const auto size_of = [this](int64_t name) { return named[name]->size; };
    for (const Dim& dim : output.dims) {
      if (dim.is_rest()) {
        TF_RETURN_IF_ERROR(shape->AppendShapeWithStatus(*rest));
        continue;
      }
      int64_t size = 0;
      TF_RETURN_IF_ERROR(Evaluate(signature, output, dim, node, size_of, &size));
      TF_RETURN_IF_ERROR(shape->AddDimWithStatus(size));  // refuses more elements than 64 bits can count
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::Status Signature::OutputShapes(absl::Span<const TensorShape> input_shapes, const NodeValues& node,
                                     std::vector<TensorShape>* output_shapes) const {
  Binding binding(*this);
  size_t input = 0, first_list = inputs.size();
  for (size_t i = 0; i < inputs.size() && first_list == inputs.size(); ++i) {
    const Argument& argument = inputs[i];
    if (argument.variadic) {
      first_list = i;
    } else {
      const bool present = argument.presence < 0 || node.integers[argument.presence] != 0;
      if (present) TF_RETURN_IF_ERROR(binding.Bind(argument, input_shapes[input]));
      ++input;
    }
  }
  size_t single_outputs = 0;
  for (const Argument& output : outputs) single_outputs += !output.variadic;
  const size_t lists = outputs.size() - single_outputs;
  output_shapes->resize(single_outputs + lists * node.list_length);
  for (size_t o = 0; o < single_outputs; ++o) {
    TF_RETURN_IF_ERROR(binding.Shape(outputs[o], node, &(*output_shapes)[o]));
  }
  for (int64_t place = 0; place < node.list_length; ++place) {
    binding.NextPlace();
    for (size_t i = first_list; i < inputs.size(); ++i) {
      const size_t flat = input + (i - first_list) * node.list_length + place;
      TF_RETURN_IF_ERROR(binding.Bind(inputs[i], input_shapes[flat]));
    }
    for (size_t o = 0; o < lists; ++o) {
      const size_t flat = single_outputs + o * node.list_length + place;
      TF_RETURN_IF_ERROR(binding.Shape(outputs[single_outputs + o], node, &(*output_shapes)[flat]));
    }
  }
  return absl::OkStatus();
}

}  // namespace tftoolkit
