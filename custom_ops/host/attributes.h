// The attribute values of one node, in the form that FFI handlers read and in the form that XLA programs carry.

#ifndef TFTOOLKIT_HOST_ATTRIBUTES_H_
#define TFTOOLKIT_HOST_ATTRIBUTES_H_

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "signature.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/ffi/api/c_api.h"

namespace tftoolkit {

struct AttributeValue {
  Attribute::Type type;
  union {
    float f32;
    double f64;
    int32_t i32;
    int64_t i64;
    bool boolean;
  };
  std::string string;
};

// TensorFlow knows only 32-bit float attributes: an f64 travels as text ("%.17g"), an i32 as a 64-bit integer.
inline absl::Status ReadAttribute(tensorflow::OpKernelConstruction* context, const Attribute& attribute,
                                  AttributeValue* value) {
  value->type = attribute.type;
  switch (attribute.type) {
    case Attribute::kF32:
      return context->GetAttr(attribute.name, &value->f32);
    case Attribute::kF64: {
      std::string text;
      TF_RETURN_IF_ERROR(context->GetAttr(attribute.name, &text));
      value->f64 = std::strtod(text.c_str(), nullptr);
      return absl::OkStatus();
    }
    case Attribute::kI32: {
      int64_t wide = 0;
      TF_RETURN_IF_ERROR(context->GetAttr(attribute.name, &wide));
      value->i32 = static_cast<int32_t>(wide);
      if (value->i32 == wide) return absl::OkStatus();
      return absl::InvalidArgumentError(
          absl::StrCat("attribute ", attribute.name, " is ", wide, ", which does not fit into 32 bits"));
    }
    case Attribute::kI64:
      return context->GetAttr(attribute.name, &value->i64);
    case Attribute::kBool:
      return context->GetAttr(attribute.name, &value->boolean);
    case Attribute::kString:
      return context->GetAttr(attribute.name, &value->string);
  }
  return absl::InternalError(absl::StrCat("attribute ", attribute.name, " has an unknown type"));
}

inline absl::Status ReadAttributes(tensorflow::OpKernelConstruction* context, const Signature& signature,
                                   std::vector<AttributeValue>* values) {
  values->resize(signature.attributes.size());
  for (size_t i = 0; i < values->size(); ++i) {
    TF_RETURN_IF_ERROR(ReadAttribute(context, signature.attributes[i], &(*values)[i]));
  }
  return absl::OkStatus();
}

// The arrays an XLA_FFI_Attrs points to. They point into themselves: made once, neither copied nor moved.
class FfiAttributes {
 public:
  FfiAttributes(const Signature& signature, const std::vector<AttributeValue>& values) : values_(values) {
    const size_t n = values_.size();
    spans_.resize(n);
    scalars_.resize(n);
    strings_.resize(n);
    for (size_t i = 0; i < n; ++i) {
      const std::string& name = signature.attributes[i].name;
      spans_[i] = {name.data(), name.size()};
      names_.push_back(&spans_[i]);
      const bool is_string = values_[i].type == Attribute::kString;
      types_.push_back(is_string ? XLA_FFI_AttrType_STRING : XLA_FFI_AttrType_SCALAR);
      strings_[i] = {values_[i].string.data(), values_[i].string.size()};
      scalars_[i] = Scalar(&values_[i]);
      attrs_.push_back(is_string ? static_cast<void*>(&strings_[i]) : static_cast<void*>(&scalars_[i]));
    }
  }
  FfiAttributes(const FfiAttributes&) = delete;
  FfiAttributes& operator=(const FfiAttributes&) = delete;

  XLA_FFI_Attrs Get() {
    return {XLA_FFI_Attrs_STRUCT_SIZE,
            nullptr,
            static_cast<int64_t>(attrs_.size()),
            types_.data(),
            names_.data(),
            attrs_.data()};
  }

 private:
  static XLA_FFI_Scalar Scalar(AttributeValue* value) {
    switch (value->type) {
      case Attribute::kF32:
        return {XLA_FFI_DataType_F32, &value->f32};
      case Attribute::kF64:
        return {XLA_FFI_DataType_F64, &value->f64};
      case Attribute::kI32:
        return {XLA_FFI_DataType_S32, &value->i32};
      case Attribute::kI64:
        return {XLA_FFI_DataType_S64, &value->i64};
      case Attribute::kBool:
        return {XLA_FFI_DataType_PRED, &value->boolean};
      case Attribute::kString:
        break;
    }
    return {XLA_FFI_DataType_INVALID, nullptr};
  }

  std::vector<AttributeValue> values_;
  std::vector<XLA_FFI_ByteSpan> spans_;
  std::vector<XLA_FFI_ByteSpan*> names_;
  std::vector<XLA_FFI_AttrType> types_;
  std::vector<XLA_FFI_Scalar> scalars_;
  std::vector<XLA_FFI_ByteSpan> strings_;
  std::vector<void*> attrs_;
};

// The value as MLIR source. Floats are written as bit patterns: exact, and the only spelling for infinities and NaN.
inline std::string MlirValue(const AttributeValue& value) {
  switch (value.type) {
    case Attribute::kF32: {
      uint32_t bits;
      std::memcpy(&bits, &value.f32, sizeof bits);
      return absl::StrFormat("0x%08X : f32", bits);
    }
    case Attribute::kF64: {
      uint64_t bits;
      std::memcpy(&bits, &value.f64, sizeof bits);
      return absl::StrFormat("0x%016X : f64", bits);
    }
    case Attribute::kI32:
      return absl::StrCat(value.i32, " : i32");
    case Attribute::kI64:
      return absl::StrCat(value.i64, " : i64");
    case Attribute::kBool:
      return value.boolean ? "true" : "false";
    case Attribute::kString: {
      std::string text = "\"";
      for (unsigned char c : value.string) {
        const bool plain = c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
        absl::StrAppend(&text, plain ? std::string(1, static_cast<char>(c)) : absl::StrFormat("\\%02X", c));
      }
      return text + "\"";
    }
  }
  return "";
}

inline std::string MlirDictionary(const Signature& signature, const std::vector<AttributeValue>& values) {
  std::vector<std::string> entries;
  for (size_t i = 0; i < values.size(); ++i) {
    entries.push_back(absl::StrCat(signature.attributes[i].name, " = ", MlirValue(values[i])));
  }
  return absl::StrCat("{", absl::StrJoin(entries, ", "), "}");
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_HOST_ATTRIBUTES_H_
