#include "signature.h"

#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tftoolkit {

using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status ParseSignature(const std::string& op_type, const std::string& text, const std::string& wire,
                            Signature* signature) {
  std::istringstream in(wire);
  size_t inputs = 0, outputs = 0, attributes = 0, dim_names = 0;
  in >> inputs >> outputs >> attributes >> dim_names;
  signature->op_type = op_type;
  signature->text = text;
  for (size_t i = 0; in && i < inputs + outputs; ++i) {
    Argument argument;
    size_t rank = 0;
    in >> argument.name >> rank;
    for (size_t d = 0; in && d < rank; ++d) {
      int64_t kind = 0;
      Dim dim{};
      in >> kind >> dim.value;
      dim.kind = static_cast<Dim::Kind>(kind);
      argument.has_rest |= dim.kind == Dim::kRest;
      argument.dims.push_back(dim);
    }
    (i < inputs ? signature->inputs : signature->outputs).push_back(std::move(argument));
  }
  for (size_t i = 0; in && i < attributes; ++i) {
    Attribute attribute{};
    int64_t type = 0;
    in >> attribute.name >> type;
    attribute.type = static_cast<Attribute::Type>(type);
    signature->attributes.push_back(std::move(attribute));
  }
  for (size_t i = 0; in && i < dim_names; ++i) in >> signature->dim_names.emplace_back();
  if (!in) return absl::InternalError(absl::StrCat("cannot read the signature of ", op_type, ": ", wire));
  return absl::OkStatus();
}

namespace {

absl::Status Mismatch(const Signature& signature, const Argument& argument, const std::string& shape,
                      const std::string& reason) {
  return absl::InvalidArgumentError(absl::StrCat(signature.op_type, ": ", argument.name, " has shape ", shape, ", but ",
                                                 reason, "; the signature is ", signature.text));
}

std::string RankReason(const Argument& argument) {
  const size_t fixed = argument.dims.size() - argument.has_rest;
  return absl::StrCat("must have ", argument.has_rest ? "at least " : "", fixed,
                      fixed == 1 ? " dimension" : " dimensions");
}

bool RankFits(const Argument& argument, int64_t rank) {
  const int64_t listed = static_cast<int64_t>(argument.dims.size());
  return argument.has_rest ? rank >= listed - 1 : rank == listed;
}

// What the input dimensions were found to be, and which argument said so.
struct Binding {
  struct Size {
    int64_t size;
    const Argument* source;
  };
  std::vector<std::optional<Size>> named;
  std::optional<TensorShape> rest;
  const Argument* rest_source = nullptr;
};

absl::Status BindRest(const Signature& signature, const Argument& argument, const TensorShape& shape, TensorShape rest,
                      Binding* binding) {
  if (!binding->rest) {
    binding->rest = std::move(rest);
    binding->rest_source = &argument;
    return absl::OkStatus();
  }
  if (*binding->rest == rest) return absl::OkStatus();
  return Mismatch(
      signature, argument, shape.DebugString(),
      absl::StrCat("its dimensions ... must be ", binding->rest->DebugString(), " as in ", binding->rest_source->name));
}

absl::Status BindSize(const Signature& signature, const Argument& argument, const TensorShape& shape, const Dim& dim,
                      int64_t size, Binding* binding) {
  if (dim.kind == Dim::kFixed) {
    if (dim.value == size) return absl::OkStatus();
    return Mismatch(signature, argument, shape.DebugString(), absl::StrCat("a dimension of it must be ", dim.value));
  }
  std::optional<Binding::Size>& known = binding->named[dim.value];
  if (!known) {
    known = Binding::Size{size, &argument};
    return absl::OkStatus();
  }
  if (known->size == size) return absl::OkStatus();
  return Mismatch(signature, argument, shape.DebugString(),
                  absl::StrCat("its dimension ", signature.dim_names[dim.value], " must be ", known->size, " as in ",
                               known->source->name));
}

absl::Status Bind(const Signature& signature, const Argument& argument, const TensorShape& shape, Binding* binding) {
  if (!RankFits(argument, shape.dims())) {
    return Mismatch(signature, argument, shape.DebugString(), RankReason(argument));
  }
  const int64_t rest_rank = shape.dims() - (static_cast<int64_t>(argument.dims.size()) - 1);
  int axis = 0;
  for (const Dim& dim : argument.dims) {
    if (dim.kind == Dim::kRest) {
      TensorShape rest;
      for (int64_t i = 0; i < rest_rank; ++i) rest.AddDim(shape.dim_size(axis++));
      TF_RETURN_IF_ERROR(BindRest(signature, argument, shape, std::move(rest), binding));
    } else {
      TF_RETURN_IF_ERROR(BindSize(signature, argument, shape, dim, shape.dim_size(axis++), binding));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Signature::OutputShapes(absl::Span<const TensorShape> input_shapes,
                                     std::vector<TensorShape>* output_shapes) const {
  Binding binding;
  binding.named.resize(dim_names.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    TF_RETURN_IF_ERROR(Bind(*this, inputs[i], input_shapes[i], &binding));
  }
  output_shapes->resize(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    TensorShape& shape = (*output_shapes)[i];
    for (const Dim& dim : outputs[i].dims) {
      // The schema compiler has checked that every name and `...` of an output stands in an input.
      if (dim.kind == Dim::kRest) {
        shape.AppendShape(*binding.rest);
      } else {
        shape.AddDim(dim.kind == Dim::kFixed ? dim.value : binding.named[dim.value]->size);
      }
    }
  }
  return absl::OkStatus();
}

namespace {

struct PartialBinding {
  std::vector<DimensionHandle> named;
  ShapeHandle rest;
};

absl::Status BindPartial(const Signature& signature, const Argument& argument, ShapeHandle shape,
                         InferenceContext* context, PartialBinding* binding) {
  if (!context->RankKnown(shape)) return absl::OkStatus();
  const int64_t rank = context->Rank(shape);
  if (!RankFits(argument, rank)) {
    return Mismatch(signature, argument, context->DebugString(shape), RankReason(argument));
  }
  const int64_t rest_rank = rank - (static_cast<int64_t>(argument.dims.size()) - 1);
  int64_t axis = 0;
  for (const Dim& dim : argument.dims) {
    absl::Status status;
    if (dim.kind == Dim::kRest) {
      ShapeHandle rest;
      TF_RETURN_IF_ERROR(context->Subshape(shape, axis, axis + rest_rank, &rest));
      axis += rest_rank;
      status = context->Merge(binding->rest, rest, &binding->rest);
    } else if (dim.kind == Dim::kFixed) {
      DimensionHandle unused;
      status = context->WithValue(context->Dim(shape, axis++), dim.value, &unused);
    } else {
      DimensionHandle& known = binding->named[dim.value];
      status = context->Merge(known, context->Dim(shape, axis++), &known);
    }
    if (!status.ok()) {
      return Mismatch(signature, argument, context->DebugString(shape), std::string(status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Signature::InferShapes(InferenceContext* context) const {
  PartialBinding binding;
  binding.rest = context->UnknownShape();
  for (size_t i = 0; i < dim_names.size(); ++i) binding.named.push_back(context->UnknownDim());
  for (size_t i = 0; i < inputs.size(); ++i) {
    TF_RETURN_IF_ERROR(BindPartial(*this, inputs[i], context->input(static_cast<int>(i)), context, &binding));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    ShapeHandle shape = context->Scalar();
    for (const Dim& dim : outputs[i].dims) {
      ShapeHandle next = binding.rest;
      if (dim.kind == Dim::kFixed) next = context->Vector(dim.value);
      if (dim.kind == Dim::kNamed) next = context->Vector(binding.named[dim.value]);
      TF_RETURN_IF_ERROR(context->Concatenate(shape, next, &shape));
    }
    context->set_output(static_cast<int>(i), shape);
  }
  return absl::OkStatus();
}

}  // namespace tftoolkit
