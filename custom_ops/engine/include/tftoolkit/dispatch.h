// From the dtype that a buffer has at run time to the C++ type that a kernel is compiled for.

#ifndef TFTOOLKIT_DISPATCH_H_
#define TFTOOLKIT_DISPATCH_H_

#include <string>

#include "tftoolkit/float_types.h"
#include "tftoolkit/op.h"

namespace tftoolkit {

template <typename T>
const T* Data(const ffi::AnyBuffer& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}

template <typename T>
T* Data(ffi::Result<ffi::AnyBuffer>& buffer) {
  return static_cast<T*>(buffer->untyped_data());
}

// The number of rows: the product of all dimensions but the last.
inline int64_t RowCount(const ffi::AnyBuffer& x) {
  const auto dims = x.dimensions();
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < dims.size(); ++i) rows *= dims[i];
  return rows;
}

// Returns run(T()) for f32, bf16 or f16. The op's schema allows no others; the name is for the error.
template <typename Run>
ffi::Error WithFloatType(const char* op, ffi::DataType type, const Run& run) {
  switch (type) {
    case ffi::F32:
      return run(float());
    case ffi::BF16:
      return run(BFloat16());
    case ffi::F16:
      return run(Half());
    default:
      return ffi::Error::InvalidArgument(std::string(op) + " takes f32, bf16 or f16");
  }
}

// The same for i32 and i64.
template <typename Run>
ffi::Error WithIntegerType(const char* op, ffi::DataType type, const Run& run) {
  switch (type) {
    case ffi::S32:
      return run(int32_t());
    case ffi::S64:
      return run(int64_t());
    default:
      return ffi::Error::InvalidArgument(std::string(op) + " takes i32 or i64");
  }
}

}  // namespace tftoolkit

#endif  // TFTOOLKIT_DISPATCH_H_
