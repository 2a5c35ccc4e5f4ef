// Reads TFRecord files at given places. String-valued ops cannot be XLA FFI handlers, so these are ordinary TensorFlow
// kernels and part of the host; they register when it is opened. There is no XLA kernel.
//
// A record in a file (https://www.tensorflow.org/tutorials/load_data/tfrecord), little endian:
//
//   uint64 length | uint32 masked CRC-32C of the length | length bytes | uint32 masked CRC-32C of those bytes

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/lib/core/coding.h"
#include "tensorflow/core/lib/hash/crc32c.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/public/version.h"

namespace tftoolkit {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShapeUtils;
using tensorflow::tstring;

constexpr size_t kHeaderBytes = 12;
constexpr size_t kFooterBytes = 4;
constexpr uint64_t kFrameBytes = kHeaderBytes + kFooterBytes;

bool CrcMatches(const char* data, size_t size, const char* masked) {
  return tensorflow::crc32c::Unmask(tensorflow::core::DecodeFixed32(masked)) == tensorflow::crc32c::Value(data, size);
}

// `number` only serves error messages.
struct Place {
  int64_t number;
  uint64_t offset;
};

class RecordFile {
 public:
  RecordFile(tensorflow::Env* env, std::string path) : env_(env), path_(std::move(path)) {}

  absl::Status Open() {
    absl::Status status = env_->Stat(path_, &opened_as_);
    size_ = opened_as_.length;
    if (status.ok()) status = env_->NewRandomAccessFile(path_, &file_);
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat("cannot open ", path_, ": ", status.message()));
  }

  // Whether the path still leads to what was opened.
  bool IsCurrent() const {
    tensorflow::FileStatistics now;
    return env_->Stat(path_, &now).ok() && now.length == opened_as_.length && now.mtime_nsec == opened_as_.mtime_nsec;
  }

  uint64_t size() const { return size_; }

  // The length that the record's header tells.
  absl::Status ReadLength(const Place& place, uint64_t* length) const {
    char header[kHeaderBytes];
    if (size_ < kFrameBytes || place.offset > size_ - kFrameBytes) return Truncated(place);
    TF_RETURN_IF_ERROR(ReadBytes(place, kHeaderBytes, header));
    TF_RETURN_IF_ERROR(ParseHeader(place, header, length));
    if (*length > size_ - kFrameBytes - place.offset) return Truncated(place);
    return absl::OkStatus();
  }

  absl::Status ReadRecord(const Place& place, uint64_t length, tstring* record) const {
    if (size_ < kFrameBytes || place.offset > size_ - kFrameBytes || length > size_ - kFrameBytes - place.offset) {
      return Fail(absl::StatusCode::kOutOfRange, place,
                  absl::StrCat("with ", length, " bytes of data it would end behind the file's end at ", size_));
    }
    uint64_t found = 0;
    if (length > kTrustedLength) {  // no large memory for what may be no record at all
      TF_RETURN_IF_ERROR(ReadLength(place, &found));
      TF_RETURN_IF_ERROR(CheckLength(place, length, found));
    }
    record->resize_uninitialized(length + kFrameBytes);
    char* frame = record->mdata();
    TF_RETURN_IF_ERROR(ReadBytes(place, length + kFrameBytes, frame));
    TF_RETURN_IF_ERROR(ParseHeader(place, frame, &found));
    TF_RETURN_IF_ERROR(CheckLength(place, length, found));
    const char* data = frame + kHeaderBytes;
    if (!CrcMatches(data, length, data + length)) {
      return Fail(absl::StatusCode::kDataLoss, place, "it is damaged: the CRC-32C of its data does not match");
    }
    std::memmove(frame, data, length);
    record->resize(length);
    return absl::OkStatus();
  }

 private:
  static constexpr uint64_t kTrustedLength = 1 << 20;

  absl::Status Fail(absl::StatusCode code, const Place& place, absl::string_view reason) const {
    return absl::Status(code,
                        absl::StrCat(path_, ", record ", place.number, " at offset ", place.offset, ": ", reason));
  }

  absl::Status Truncated(const Place& place) const {
    return Fail(absl::StatusCode::kDataLoss, place, absl::StrCat("it goes beyond the file's end at ", size_));
  }

  absl::Status ReadBytes(const Place& place, size_t size, char* bytes) const {
    absl::string_view read;
#if TF_MAJOR_VERSION == 2 && TF_MINOR_VERSION < 20
    const absl::Status status = file_->Read(place.offset, size, &read, bytes);
#else
    const absl::Status status = file_->Read(place.offset, read, absl::MakeSpan(bytes, size));
#endif
    if (!status.ok()) return Fail(status.code(), place, status.message());
    if (read.data() != bytes) std::memcpy(bytes, read.data(), size);  // a file system may lend memory of its own
    return absl::OkStatus();
  }

  absl::Status ParseHeader(const Place& place, const char* header, uint64_t* length) const {
    *length = tensorflow::core::DecodeFixed64(header);
    if (CrcMatches(header, sizeof *length, header + sizeof *length)) return absl::OkStatus();
    return Fail(absl::StatusCode::kDataLoss, place,
                "it is damaged, or no record begins there: the CRC-32C of its length does not match");
  }

  absl::Status CheckLength(const Place& place, uint64_t wanted, uint64_t found) const {
    if (wanted == found) return absl::OkStatus();
    return Fail(absl::StatusCode::kInvalidArgument, place,
                absl::StrCat("it has ", found, " bytes of data, not ", wanted, ": the index is of another file"));
  }

  tensorflow::Env* const env_;
  const std::string path_;
  tensorflow::FileStatistics opened_as_;
  uint64_t size_ = 0;
  std::unique_ptr<tensorflow::RandomAccessFile> file_;
};

// Open files. Opening one costs more than reading a record of some hundred bytes.
class RecordFiles {
 public:
  absl::Status Get(tensorflow::Env* env, const std::string& path, std::shared_ptr<const RecordFile>* file) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto found = files_.find(path);
      *file = found == files_.end() ? nullptr : found->second;
    }
    if (*file != nullptr && (*file)->IsCurrent()) return absl::OkStatus();
    auto opened = std::make_shared<RecordFile>(env, path);
    TF_RETURN_IF_ERROR(opened->Open());
    *file = opened;
    std::lock_guard<std::mutex> lock(mutex_);
    if (files_.size() == kMaxOpen) files_.erase(files_.begin());
    files_[path] = std::move(opened);
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kMaxOpen = 128;

  std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<const RecordFile>> files_;
};

class ReadRecords : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const absl::Status status = Run(context);
    if (!status.ok()) context->CtxFailure(absl::Status(status.code(), absl::StrCat("ReadRecords: ", status.message())));
  }

 private:
  absl::Status Run(OpKernelContext* context) {
    const Tensor& offsets = context->input(1);
    if (!TensorShapeUtils::IsVector(offsets.shape())) return WrongShape("offsets", offsets, "must be a vector");
    for (int i : {2, 3}) {
      const Tensor& other = context->input(i);
      if (other.shape() != offsets.shape()) {
        return WrongShape(i == 2 ? "lengths" : "numbers", other, "must be of the same shape as offsets");
      }
    }
    const Tensor& paths = context->input(0);
    const bool one_file = TensorShapeUtils::IsScalar(paths.shape());
    if (!one_file && paths.shape() != offsets.shape()) {
      return WrongShape("path", paths, "must be a scalar, or of the same shape as offsets");
    }
    Tensor* records = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(0, offsets.shape(), &records));
    const auto path = paths.flat<tstring>();
    const auto offset = offsets.flat<int64_t>();
    const auto length = context->input(2).flat<int64_t>();
    const auto number = context->input(3).flat<int64_t>();
    // File by file, and each from front to back.
    std::vector<int64_t> order(offset.size());
    std::iota(order.begin(), order.end(), 0);
    const auto path_of = [&](int64_t i) { return absl::string_view(path(one_file ? 0 : i)); };
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const int compared = one_file ? 0 : path_of(a).compare(path_of(b));
      return compared < 0 || (compared == 0 && std::tie(offset(a), a) < std::tie(offset(b), b));
    });
    std::shared_ptr<const RecordFile> file;
    absl::string_view open_path;
    for (int64_t i : order) {
      if (offset(i) < 0 || length(i) < 0) {
        return absl::InvalidArgumentError(absl::StrCat(path_of(i), ", record ", number(i), ": offset ", offset(i),
                                                       " and length ", length(i), " must not be negative"));
      }
      if (file == nullptr || path_of(i) != open_path) {
        open_path = path_of(i);
        TF_RETURN_IF_ERROR(files_.Get(context->env(), std::string(open_path), &file));
      }
      const Place place{number(i), static_cast<uint64_t>(offset(i))};
      TF_RETURN_IF_ERROR(file->ReadRecord(place, length(i), &records->flat<tstring>()(i)));
    }
    return absl::OkStatus();
  }

  static absl::Status WrongShape(absl::string_view name, const Tensor& tensor, absl::string_view reason) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has shape ", tensor.shape().DebugString(), ", but ", reason));
  }

  RecordFiles files_;
};

class IndexRecords : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const absl::Status status = Run(context);
    if (!status.ok())
      context->CtxFailure(absl::Status(status.code(), absl::StrCat("IndexRecords: ", status.message())));
  }

 private:
  absl::Status Run(OpKernelContext* context) {
    const Tensor& path = context->input(0);
    if (!TensorShapeUtils::IsScalar(path.shape())) {
      return absl::InvalidArgumentError(absl::StrCat("path must be a scalar, got shape ", path.shape().DebugString()));
    }
    RecordFile file(context->env(), path.scalar<tstring>()());
    TF_RETURN_IF_ERROR(file.Open());
    std::vector<int64_t> lengths;
    for (uint64_t offset = 0; offset < file.size(); offset += lengths.back() + kFrameBytes) {
      uint64_t length = 0;
      TF_RETURN_IF_ERROR(file.ReadLength({static_cast<int64_t>(lengths.size()), offset}, &length));
      lengths.push_back(static_cast<int64_t>(length));
    }
    Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(0, {static_cast<int64_t>(lengths.size())}, &output));
    std::copy(lengths.begin(), lengths.end(), output->flat<int64_t>().data());
    return absl::OkStatus();
  }
};

absl::Status ReadRecordsShape(tensorflow::shape_inference::InferenceContext* context) {
  tensorflow::shape_inference::ShapeHandle path, records, numbers;
  TF_RETURN_IF_ERROR(context->WithRankAtMost(context->input(0), 1, &path));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 1, &records));
  for (int i : {2, 3}) TF_RETURN_IF_ERROR(context->Merge(records, context->input(i), &records));
  if (context->RankKnown(path) && context->Rank(path) == 1) {
    TF_RETURN_IF_ERROR(context->Merge(records, path, &records));
  }
  context->set_output(0, records);
  return absl::OkStatus();
}

absl::Status IndexRecordsShape(tensorflow::shape_inference::InferenceContext* context) {
  tensorflow::shape_inference::ShapeHandle path;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 0, &path));
  context->set_output(0, context->UnknownShapeOfRank(1));
  return absl::OkStatus();
}

// Documented in custom_ops/record_reader.py.
REGISTER_OP("TfToolkit>ReadRecords")
    .Input("path: string")
    .Input("offsets: int64")
    .Input("lengths: int64")
    .Input("numbers: int64")
    .Output("records: string")
    .SetShapeFn(ReadRecordsShape);
REGISTER_KERNEL_BUILDER(Name("TfToolkit>ReadRecords").Device(tensorflow::DEVICE_CPU), ReadRecords);

REGISTER_OP("TfToolkit>IndexRecords").Input("path: string").Output("lengths: int64").SetShapeFn(IndexRecordsShape);
REGISTER_KERNEL_BUILDER(Name("TfToolkit>IndexRecords").Device(tensorflow::DEVICE_CPU), IndexRecords);

}  // namespace
}  // namespace tftoolkit
