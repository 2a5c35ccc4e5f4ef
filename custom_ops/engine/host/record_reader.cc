// Reads TFRecord files at given places. String-valued ops cannot be XLA FFI handlers, so these are ordinary TensorFlow
// kernels and part of the host; they register when it is opened. There is no XLA kernel.
//
// A record in a file (https://www.tensorflow.org/tutorials/load_data/tfrecord), little endian:
//
//   uint64 length | uint32 masked CRC-32C of the length | length bytes | uint32 masked CRC-32C of those bytes
//
// A long file: the two ops share what reads, checks and names a place in a file.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

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

// Where small records are gathered with one system call for many. They are copied out of the file's pages (mapped) by
// the kernel, on behalf of a write to memory that has a descriptor: half the time of one pread each, and where the file
// has become shorter since it was mapped the write ends early, while a copy of our own would end the process (SIGBUS).
class Gathering {
 public:
  static constexpr size_t kBytes = 1 << 18;
  static constexpr size_t kRecords = 256;  // the kernel takes up to 1024 places
  static constexpr size_t kCacheLine = 64;

  Gathering() : descriptor_(memfd_create("tftoolkit records", MFD_CLOEXEC)) {
    if (descriptor_ < 0 || ftruncate(descriptor_, kBytes) != 0) return;
    void* memory = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, descriptor_, 0);
    if (memory != MAP_FAILED) memory_ = static_cast<const char*>(memory);
  }
  ~Gathering() {
    if (memory_ != nullptr) munmap(const_cast<char*>(memory_), kBytes);
    if (descriptor_ >= 0) close(descriptor_);
  }
  Gathering(const Gathering&) = delete;
  Gathering& operator=(const Gathering&) = delete;

  void Clear() { places_.clear(), bytes_ = 0; }

  bool Add(const char* mapped, size_t size) {
    if (memory_ == nullptr || size > kBytes - bytes_ || places_.size() == kRecords) return false;
    // Records in any order come from memory, not from a cache: many fetches at once, before the kernel waits for each.
    // Fetching ahead does nothing where the file has no page any more.
    for (size_t at = 0; at < size; at += kCacheLine) __builtin_prefetch(mapped + at, 0, 2);
    places_.push_back({const_cast<char*>(mapped), size});
    bytes_ += size;
    return true;
  }

  // The bytes added since Clear, in a row; null if not all of them can be read.
  const char* Read() const {
    const ssize_t written = pwritev(descriptor_, places_.data(), static_cast<int>(places_.size()), 0);
    return written == static_cast<ssize_t>(bytes_) ? memory_ : nullptr;
  }

 private:
  const int descriptor_;
  const char* memory_ = nullptr;
  std::vector<iovec> places_;
  size_t bytes_ = 0;
};

class RecordFile {
 public:
  RecordFile(tensorflow::Env* env, std::string path) : env_(env), path_(std::move(path)) {}
  ~RecordFile() {
    if (mapped_ != nullptr) munmap(const_cast<char*>(mapped_), size_);
  }
  RecordFile(const RecordFile&) = delete;
  RecordFile& operator=(const RecordFile&) = delete;

  absl::Status Open() {
    absl::Status status = env_->Stat(path_, &opened_as_);
    size_ = opened_as_.length;
    if (status.ok()) status = env_->NewRandomAccessFile(path_, &file_);
    if (status.ok()) Map();
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

  // Where the record lies, with its frame, in the mapped file; null if not there, or too large for gathering to pay.
  const char* Mapped(const Place& place, uint64_t length) const {
    const bool small = mapped_ != nullptr && length <= kGatheredLength && size_ >= kFrameBytes + length;
    return small && place.offset <= size_ - kFrameBytes - length ? mapped_ + place.offset : nullptr;
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
    TF_RETURN_IF_ERROR(CheckFrame(place, length, frame));
    std::memmove(frame, frame + kHeaderBytes, length);
    record->resize(length);
    return absl::OkStatus();
  }

  absl::Status CheckFrame(const Place& place, uint64_t length, const char* frame) const {
    uint64_t found = 0;
    TF_RETURN_IF_ERROR(ParseHeader(place, frame, &found));
    TF_RETURN_IF_ERROR(CheckLength(place, length, found));
    const char* data = frame + kHeaderBytes;
    if (CrcMatches(data, length, data + length)) return absl::OkStatus();
    return Fail(absl::StatusCode::kDataLoss, place, "it is damaged: the CRC-32C of its data does not match");
  }

 private:
  static constexpr uint64_t kTrustedLength = 1 << 20;
  static constexpr uint64_t kGatheredLength = 1 << 14;  // above, a call for each record costs less than copying twice

  // Without a mapping (no local file, no address space left) records are read one by one.
  void Map() {
    const int descriptor = size_ == 0 ? -1 : open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    void* memory = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (memory == MAP_FAILED) return;
    mapped_ = static_cast<const char*>(memory);
  }

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
  const char* mapped_ = nullptr;
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
    const Wanted wanted{offsets.flat<int64_t>(), context->input(2).flat<int64_t>(), context->input(3).flat<int64_t>(),
                        records->flat<tstring>()};
    const auto path = paths.flat<tstring>();
    const auto path_of = [&](int64_t i) { return absl::string_view(path(one_file ? 0 : i)); };
    for (int64_t i = 0; i < wanted.offset.size(); ++i) {
      if (wanted.offset(i) >= 0 && wanted.length(i) >= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(path_of(i), ", record ", wanted.number(i), ": offset ",
                                                     wanted.offset(i), " and length ", wanted.length(i),
                                                     " must not be negative"));
    }
    // File by file, and each from front to back.
    std::vector<int64_t> order(wanted.offset.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const int compared = one_file ? 0 : path_of(a).compare(path_of(b));
      return compared < 0 || (compared == 0 && std::tie(wanted.offset(a), a) < std::tie(wanted.offset(b), b));
    });
    for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
      const absl::string_view one_path = path_of(order[begin]);
      while (end < order.size() && path_of(order[end]) == one_path) ++end;
      std::shared_ptr<const RecordFile> file;
      TF_RETURN_IF_ERROR(files_.Get(context->env(), std::string(one_path), &file));
      TF_RETURN_IF_ERROR(ReadFile(*file, wanted, absl::MakeConstSpan(order).subspan(begin, end - begin)));
    }
    return absl::OkStatus();
  }

  struct Wanted {
    tensorflow::TTypes<int64_t>::ConstFlat offset, length, number;
    tensorflow::TTypes<tstring>::Flat record;

    Place place(int64_t i) const { return {number(i), static_cast<uint64_t>(offset(i))}; }
  };

  static absl::Status ReadFile(const RecordFile& file, Wanted wanted, absl::Span<const int64_t> rows) {
    thread_local Gathering gathering;
    while (!rows.empty()) {
      size_t count = 0;
      for (gathering.Clear(); count < rows.size(); ++count) {
        const int64_t i = rows[count];
        const char* mapped = file.Mapped(wanted.place(i), wanted.length(i));
        if (mapped == nullptr || !gathering.Add(mapped, kFrameBytes + wanted.length(i))) break;
      }
      const char* frame = count > 1 ? gathering.Read() : nullptr;
      count = std::max<size_t>(count, 1);
      for (int64_t i : rows.first(count)) {
        if (frame == nullptr) {
          TF_RETURN_IF_ERROR(file.ReadRecord(wanted.place(i), wanted.length(i), &wanted.record(i)));
          continue;
        }
        TF_RETURN_IF_ERROR(file.CheckFrame(wanted.place(i), wanted.length(i), frame));
        wanted.record(i).assign(frame + kHeaderBytes, wanted.length(i));
        frame += kFrameBytes + wanted.length(i);
      }
      rows.remove_prefix(count);
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
    for (int i : {1, 2, 3}) {
      const Tensor& other = context->input(i);
      if (TensorShapeUtils::IsScalar(other.shape()) && other.scalar<int64_t>()() >= 0) continue;
      return absl::InvalidArgumentError("offset, number and limit must be scalars and not negative");
    }
    const int64_t start = context->input(1).scalar<int64_t>()();
    const int64_t first = context->input(2).scalar<int64_t>()();
    const auto limit = static_cast<size_t>(context->input(3).scalar<int64_t>()());
    RecordFile file(context->env(), path.scalar<tstring>()());
    TF_RETURN_IF_ERROR(file.Open());
    std::vector<int64_t> lengths;
    for (uint64_t offset = start; offset < file.size() && lengths.size() < limit;) {
      uint64_t length = 0;
      TF_RETURN_IF_ERROR(file.ReadLength({first + static_cast<int64_t>(lengths.size()), offset}, &length));
      lengths.push_back(static_cast<int64_t>(length));
      offset += length + kFrameBytes;
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
  tensorflow::shape_inference::ShapeHandle scalar;
  for (int i : {0, 1, 2, 3}) TF_RETURN_IF_ERROR(context->WithRank(context->input(i), 0, &scalar));
  context->set_output(0, context->UnknownShapeOfRank(1));
  return absl::OkStatus();
}

// Documented in custom_ops/engine/record_reader.py.
REGISTER_OP("TfToolkit>ReadRecords")
    .Input("path: string")
    .Input("offsets: int64")
    .Input("lengths: int64")
    .Input("numbers: int64")
    .Output("records: string")
    .SetShapeFn(ReadRecordsShape);
REGISTER_KERNEL_BUILDER(Name("TfToolkit>ReadRecords").Device(tensorflow::DEVICE_CPU), ReadRecords);

REGISTER_OP("TfToolkit>IndexRecords")
    .Input("path: string")
    .Input("offset: int64")
    .Input("number: int64")
    .Input("limit: int64")
    .Output("lengths: int64")
    .SetShapeFn(IndexRecordsShape);
REGISTER_KERNEL_BUILDER(Name("TfToolkit>IndexRecords").Device(tensorflow::DEVICE_CPU), IndexRecords);

}  // namespace
}  // namespace tftoolkit
