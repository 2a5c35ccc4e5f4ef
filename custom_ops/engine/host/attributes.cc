#include "attributes.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace tftoolkit {
namespace {

// A scalar attribute as a list of one.
template <typename T>
absl::Status Read(tensorflow::OpKernelConstruction* context, const Attribute& attribute, std::vector<T>* values) {
  if (attribute.is_list) return context->GetAttr(attribute.name, values);
  T value;
  TF_RETURN_IF_ERROR(context->GetAttr(attribute.name, &value));
  values->assign(1, value);
  return absl::OkStatus();
}

absl::Status Narrow(const Attribute& attribute, const std::vector<int64_t>& wide, std::vector<int32_t>* narrow) {
  for (int64_t value : wide) {
    narrow->push_back(static_cast<int32_t>(value));
    if (narrow->back() != value) {
      return absl::InvalidArgumentError(
          absl::StrCat("attribute ", attribute.name, " is ", value, ", which does not fit into 32 bits"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadAttribute(tensorflow::OpKernelConstruction* context, const Attribute& attribute,
                           AttributeValue* value) {
  value->scalar = attribute.scalar;
  value->is_list = attribute.is_list;
  std::vector<std::string> texts;
  switch (attribute.scalar) {
    case Attribute::kF32:
      return Read(context, attribute, &value->f32);
    case Attribute::kF64:
      TF_RETURN_IF_ERROR(Read(context, attribute, &texts));
      for (const std::string& text : texts) value->f64.push_back(std::strtod(text.c_str(), nullptr));
      return absl::OkStatus();
    case Attribute::kI32:
      TF_RETURN_IF_ERROR(Read(context, attribute, &value->i64));
      return Narrow(attribute, value->i64, &value->i32);
    case Attribute::kI64:
      return Read(context, attribute, &value->i64);
    case Attribute::kBool: {
      std::vector<bool> flags;
      TF_RETURN_IF_ERROR(Read(context, attribute, &flags));
      value->boolean.assign(flags.begin(), flags.end());
      return absl::OkStatus();
    }
    case Attribute::kString:
      TF_RETURN_IF_ERROR(Read(context, attribute, &texts));
      for (const std::string& text : texts) value->string += attribute.is_list ? text + '\0' : text;
      return absl::OkStatus();
    case Attribute::kList:
      break;
  }
  return absl::InternalError(absl::StrCat("attribute ", attribute.name, " has an unknown type"));
}

struct Raw {
  XLA_FFI_DataType dtype;
  size_t size;
  void* data;
};

Raw RawValues(AttributeValue* value) {
  switch (value->scalar) {
    case Attribute::kF32:
      return {XLA_FFI_DataType_F32, value->f32.size(), value->f32.data()};
    case Attribute::kF64:
      return {XLA_FFI_DataType_F64, value->f64.size(), value->f64.data()};
    case Attribute::kI32:
      return {XLA_FFI_DataType_S32, value->i32.size(), value->i32.data()};
    case Attribute::kI64:
      return {XLA_FFI_DataType_S64, value->i64.size(), value->i64.data()};
    case Attribute::kBool:
      return {value->is_list ? XLA_FFI_DataType_S8 : XLA_FFI_DataType_PRED, value->boolean.size(),
              value->boolean.data()};
    default:
      return {XLA_FFI_DataType_INVALID, 0, nullptr};
  }
}

// Floats are written as bit patterns: exact, and the only spelling for infinities and NaN.
std::vector<std::string> MlirItems(const AttributeValue& value) {
  std::vector<std::string> items;
  for (float item : value.f32) {
    uint32_t bits;
    std::memcpy(&bits, &item, sizeof bits);
    items.push_back(absl::StrFormat("0x%08X", bits));
  }
  for (double item : value.f64) {
    uint64_t bits;
    std::memcpy(&bits, &item, sizeof bits);
    items.push_back(absl::StrFormat("0x%016X", bits));
  }
  for (int64_t item : value.i64) items.push_back(absl::StrCat(item));  // an i32 too
  for (int8_t item : value.boolean) items.push_back(value.is_list ? absl::StrCat(item) : item ? "true" : "false");
  return items;
}

std::string MlirString(const std::string& text) {
  std::string quoted = "\"";
  for (unsigned char c : text) {
    const bool plain = c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
    absl::StrAppend(&quoted, plain ? std::string(1, static_cast<char>(c)) : absl::StrFormat("\\%02X", c));
  }
  return quoted + "\"";
}

std::string MlirValue(const AttributeValue& value) {
  static constexpr const char* kTypes[] = {"f32", "f64", "i32", "i64", "i8"};
  if (value.scalar == Attribute::kString) return MlirString(value.string);
  const std::vector<std::string> items = MlirItems(value);
  const char* type = kTypes[value.scalar];
  if (!value.is_list) return value.scalar == Attribute::kBool ? items[0] : absl::StrCat(items[0], " : ", type);
  return items.empty() ? absl::StrCat("array<", type, ">")
                       : absl::StrCat("array<", type, ": ", absl::StrJoin(items, ", "), ">");
}

}  // namespace

absl::Status ReadAttributes(tensorflow::OpKernelConstruction* context, const Signature& signature,
                            std::vector<AttributeValue>* values, NodeValues* node) {
  values->resize(signature.attributes.size());
  node->integers.assign(signature.attributes.size(), 0);
  for (size_t i = 0; i < values->size(); ++i) {
    AttributeValue& value = (*values)[i];
    TF_RETURN_IF_ERROR(ReadAttribute(context, signature.attributes[i], &value));
    if (value.is_list) continue;
    if (!value.i64.empty()) node->integers[i] = value.i64[0];
    if (!value.boolean.empty()) node->integers[i] = value.boolean[0];
  }
  if (!signature.inputs.back().variadic) return absl::OkStatus();
  return context->GetAttr("N", &node->list_length);
}

FfiAttributes::FfiAttributes(const Signature& signature, std::vector<AttributeValue> values)
    : values_(std::move(values)), slots_(values_.size()) {
  for (size_t i = 0; i < values_.size(); ++i) {
    AttributeValue& value = values_[i];
    Slot& slot = slots_[i];
    const std::string& name = signature.attributes[i].name;
    slot.name = {name.data(), name.size()};
    names_.push_back(&slot.name);
    const Raw raw = RawValues(&value);
    slot.string = {value.string.data(), value.string.size()};
    slot.scalar = {raw.dtype, raw.data};
    slot.array = {raw.dtype, raw.size, raw.data};
    if (value.scalar == Attribute::kString) {
      types_.push_back(XLA_FFI_AttrType_STRING);
      attrs_.push_back(&slot.string);
    } else if (value.is_list) {
      types_.push_back(XLA_FFI_AttrType_ARRAY);
      attrs_.push_back(&slot.array);
    } else {
      types_.push_back(XLA_FFI_AttrType_SCALAR);
      attrs_.push_back(&slot.scalar);
    }
  }
}

XLA_FFI_Attrs FfiAttributes::Get() {
  return {XLA_FFI_Attrs_STRUCT_SIZE,
          nullptr,
          static_cast<int64_t>(attrs_.size()),
          types_.data(),
          names_.data(),
          attrs_.data()};
}

std::string MlirDictionary(const Signature& signature, const std::vector<AttributeValue>& values) {
  std::vector<std::string> entries;
  for (size_t i = 0; i < values.size(); ++i) {
    entries.push_back(absl::StrCat(signature.attributes[i].name, " = ", MlirValue(values[i])));
  }
  return absl::StrCat("{", absl::StrJoin(entries, ", "), "}");
}

}  // namespace tftoolkit
