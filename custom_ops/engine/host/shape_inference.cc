// The shape function: like Signature::OutputShapes, but any rank or dimension may be unknown.

#include "tensorflow/core/framework/shape_inference.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "signature.h"

namespace tftoolkit {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

struct PartialBinding {
  PartialBinding(const Signature& signature, InferenceContext* context) : signature(signature), context(context) {
    named.resize(signature.dim_names.size());
    for (DimensionHandle& dim : named) dim = context->UnknownDim();
    rest = context->UnknownShape();
  }

  const Signature& signature;
  InferenceContext* context;
  std::vector<DimensionHandle> named;
  ShapeHandle rest;

  void NextPlace() {
    for (size_t i = signature.global_names; i < named.size(); ++i) named[i] = context->UnknownDim();
    if (!signature.rest_is_global) rest = context->UnknownShape();
  }

  absl::Status Bind(const Argument& argument, ShapeHandle shape) {
    if (!context->RankKnown(shape)) return absl::OkStatus();
    const int64_t rank = context->Rank(shape);
    const int64_t rest_rank = rank - (static_cast<int64_t>(argument.dims.size()) - 1);
    const auto fail = [&](absl::string_view reason) {
      return Mismatch(signature, argument, context->DebugString(shape), reason);
    };
    if (const auto reason = WrongRank(argument, rank)) return fail(*reason);
    int64_t axis = 0;
    for (const Dim& dim : argument.dims) {
      absl::Status status;
      if (dim.is_rest()) {
        ShapeHandle found;
        TF_RETURN_IF_ERROR(context->Subshape(shape, axis, axis + rest_rank, &found));
        axis += rest_rank;
        status = context->Merge(rest, found, &rest);
      } else if (dim.terms[0].kind == Term::kNumber) {
        DimensionHandle unused;
        status = context->WithValue(context->Dim(shape, axis++), dim.terms[0].value, &unused);
      } else {
        DimensionHandle& known = named[dim.terms[0].value];
        DimensionHandle found = context->Dim(shape, axis++);
        const int64_t shift = dim.shift();
        if (context->ValueKnown(found) && context->Value(found) < shift) {
          return fail(absl::StrCat("its dimension ", DimName(signature, dim), " must be at least ", shift));
        }
        if (shift > 0) status = context->Subtract(found, shift, &found);
        if (shift < 0) status = context->Add(found, -shift, &found);
        if (status.ok()) status = context->Merge(known, found, &known);
      }
      if (!status.ok()) return fail(status.message());
    }
    return absl::OkStatus();
  }

  absl::Status OutputDim(const Argument& output, const Dim& dim, const NodeValues& node, DimensionHandle* result) {
    if (dim.terms.size() == 1 && dim.terms[0].kind == Term::kName) {  // keeps what ties an unknown one to the input's
      *result = named[dim.terms[0].value];
      return absl::OkStatus();
    }
    *result = context->UnknownDim();
    for (const Term& term : dim.terms) {
      if (term.kind == Term::kName && !context->ValueKnown(named[term.value])) return absl::OkStatus();
    }
    const auto size_of = [this](int64_t name) { return context->Value(named[name]); };
    int64_t size = 0;
    TF_RETURN_IF_ERROR(Evaluate(signature, output, dim, node, size_of, &size));
    *result = context->MakeDim(size);
    return absl::OkStatus();
  }

  absl::Status Shape(const Argument& output, const NodeValues& node, ShapeHandle* shape) {
    if (output.presence >= 0 && node.integers[output.presence] == 0) {
      *shape = context->Vector(0);
      return absl::OkStatus();
    }
    *shape = context->Scalar();
    for (const Dim& dim : output.dims) {
      ShapeHandle next = rest;
      if (!dim.is_rest()) {
        DimensionHandle size;
        TF_RETURN_IF_ERROR(OutputDim(output, dim, node, &size));
        next = context->Vector(size);
      }
      TF_RETURN_IF_ERROR(context->Concatenate(*shape, next, shape));
    }
    return absl::OkStatus();
  }
};

absl::Status ReadNode(const Signature& signature, InferenceContext* context, NodeValues* node) {
  node->integers.assign(signature.attributes.size(), 0);
  for (size_t i = 0; i < signature.attributes.size(); ++i) {
    const Attribute& attribute = signature.attributes[i];
    if (attribute.is_list) continue;
    if (attribute.scalar == Attribute::kI32 || attribute.scalar == Attribute::kI64) {
      TF_RETURN_IF_ERROR(context->GetAttr(attribute.name, &node->integers[i]));
    } else if (attribute.scalar == Attribute::kBool) {
      bool value = false;
      TF_RETURN_IF_ERROR(context->GetAttr(attribute.name, &value));
      node->integers[i] = value;
    }
  }
  if (!signature.inputs.empty() && signature.inputs.back().variadic) {
    TF_RETURN_IF_ERROR(context->GetAttr("N", &node->list_length));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Signature::InferShapes(InferenceContext* context) const {
  NodeValues node;
  TF_RETURN_IF_ERROR(ReadNode(*this, context, &node));
  PartialBinding binding(*this, context);
  int input = 0, output = 0;
  for (const Argument& argument : inputs) {
    if (argument.variadic) break;
    const bool present = argument.presence < 0 || node.integers[argument.presence] != 0;
    if (present) TF_RETURN_IF_ERROR(binding.Bind(argument, context->input(input)));
    ++input;
  }
  ShapeHandle shape;
  for (const Argument& argument : outputs) {
    if (argument.variadic) break;
    TF_RETURN_IF_ERROR(binding.Shape(argument, node, &shape));
    context->set_output(output++, shape);
  }
  for (int64_t place = 0; place < node.list_length; ++place) {
    binding.NextPlace();
    int64_t flat = input + place;
    for (const Argument& argument : inputs) {
      if (!argument.variadic) continue;
      TF_RETURN_IF_ERROR(binding.Bind(argument, context->input(static_cast<int>(flat))));
      flat += node.list_length;
    }
    flat = output + place;
    for (const Argument& argument : outputs) {
      if (!argument.variadic) continue;
      TF_RETURN_IF_ERROR(binding.Shape(argument, node, &shape));
      context->set_output(static_cast<int>(flat), shape);
      flat += node.list_length;
    }
  }
  return absl::OkStatus();
}

}  // namespace tftoolkit
