// Reads windows of a token file (its layout: pipelines/sources/token_file.py) at given places. It names a file by a
// string, so like the reader of records it is an ordinary TensorFlow kernel.
//
// The floor is memory traffic: a window of n tokens is read once, 1, 2 or 4 n bytes, and written once, 4 n bytes.
// pread and not a mapping: where the file has become shorter, a read ends early, while a mapped page that is gone would
// end the process (SIGBUS).

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tftoolkit {
namespace {

// CRC-32 of zlib (ISO 3309), eight bytes at a time (Kounavis, Berry: "A systematic approach to building high
// performance software-based CRC generators", ISCC 2005).
class Crc32 {
 public:
  Crc32() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
      table_[0][i] = value;
    }
    for (size_t k = 1; k < table_.size(); ++k) {
      for (size_t i = 0; i < 256; ++i) table_[k][i] = (table_[k - 1][i] >> 8) ^ table_[0][table_[k - 1][i] & 0xFF];
    }
  }

  uint32_t operator()(const unsigned char* data, size_t size) const {
    uint32_t crc = ~0u;
    for (; size >= 8; data += 8, size -= 8) {
      crc = table_[7][(crc ^ data[0]) & 0xFF] ^ table_[6][((crc >> 8) ^ data[1]) & 0xFF] ^
            table_[5][((crc >> 16) ^ data[2]) & 0xFF] ^ table_[4][((crc >> 24) ^ data[3]) & 0xFF] ^ table_[3][data[4]] ^
            table_[2][data[5]] ^ table_[1][data[6]] ^ table_[0][data[7]];
    }
    for (; size > 0; ++data, --size) crc = (crc >> 8) ^ table_[0][(crc ^ *data) & 0xFF];
    return ~crc;
  }

 private:
  std::array<std::array<uint32_t, 256>, 8> table_;
};

struct Layout {
  int64_t header_bytes, block_bytes, item_bytes, tokens;
};

// An open file, and which of its blocks have been found undamaged.
class TokenFile {
 public:
  TokenFile(std::string path, int64_t blocks) : path_(std::move(path)), checked_(blocks) {}
  ~TokenFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  TokenFile(const TokenFile&) = delete;
  TokenFile& operator=(const TokenFile&) = delete;

  absl::Status Open() {
    descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ >= 0 && fstat(descriptor_, &opened_as_) == 0) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path_));
  }

  // Whether the path still leads to what was opened, with as many blocks.
  bool IsCurrent(int64_t blocks) const {
    struct stat now;
    return blocks == static_cast<int64_t>(checked_.size()) && stat(path_.c_str(), &now) == 0 &&
           now.st_ino == opened_as_.st_ino && now.st_size == opened_as_.st_size &&
           now.st_mtim.tv_sec == opened_as_.st_mtim.tv_sec && now.st_mtim.tv_nsec == opened_as_.st_mtim.tv_nsec;
  }

  absl::Status Read(int64_t offset, int64_t size, void* bytes) const {
    for (auto* to = static_cast<char*>(bytes); size > 0;) {
      const ssize_t read = pread(descriptor_, to, size, offset);
      if (read < 0 && errno == EINTR) continue;
      if (read < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
      if (read == 0) return absl::DataLossError(absl::StrCat(path_, " has become shorter: it ends at byte ", offset));
      to += read, offset += read, size -= read;
    }
    return absl::OkStatus();
  }

  // Each block is read for this only once, so that damage costs no time where there is none.
  absl::Status Check(const Layout& layout, const uint32_t* checksums, int64_t first_byte, int64_t end_byte) {
    static const Crc32 crc32;
    thread_local std::vector<unsigned char> bytes;
    for (int64_t block = first_byte / layout.block_bytes; block * layout.block_bytes < end_byte; ++block) {
      if (checked_[block].load(std::memory_order_relaxed)) continue;
      const int64_t begin = block * layout.block_bytes;
      const int64_t size = std::min(layout.block_bytes, layout.tokens * layout.item_bytes - begin);
      bytes.resize(size);
      TF_RETURN_IF_ERROR(Read(layout.header_bytes + begin, size, bytes.data()));
      if (crc32(bytes.data(), size) != checksums[block]) {
        return absl::DataLossError(absl::StrCat(path_, " is damaged between byte ", layout.header_bytes + begin,
                                                " and byte ", layout.header_bytes + begin + size, ": wrong checksum"));
      }
      checked_[block].store(true, std::memory_order_relaxed);
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  int descriptor_ = -1;
  struct stat opened_as_ = {};
  std::vector<std::atomic<bool>> checked_;
};

// Open files of the process: each iterator has kernels of its own, which need not check everything again.
absl::Status OpenTokens(const std::string& path, int64_t blocks, std::shared_ptr<TokenFile>* file) {
  constexpr size_t kMaxOpen = 128;
  static auto* mutex = new std::mutex;
  static auto* files = new std::unordered_map<std::string, std::shared_ptr<TokenFile>>;
  std::lock_guard<std::mutex> lock(*mutex);
  auto found = files->find(path);
  if (found != files->end() && found->second->IsCurrent(blocks)) {
    *file = found->second;
    return absl::OkStatus();
  }
  auto opened = std::make_shared<TokenFile>(path, blocks);
  TF_RETURN_IF_ERROR(opened->Open());
  if (files->size() >= kMaxOpen) files->erase(files->begin());
  *file = (*files)[path] = std::move(opened);
  return absl::OkStatus();
}

template <typename Item>
void Widen(const char* from, int64_t count, int32_t* to) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {  // memcpy: a thread's buffer has no type
    Item item;
    std::memcpy(&item, from + i * sizeof(Item), sizeof(Item));
    to[i] = static_cast<int32_t>(item);
  }
}

class ReadTokens : public tensorflow::OpKernel {
 public:
  explicit ReadTokens(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    for (auto& [name, value] : {std::pair<const char*, int64_t*>{"header_bytes", &layout_.header_bytes},
                                {"block_bytes", &layout_.block_bytes},
                                {"item_bytes", &layout_.item_bytes},
                                {"tokens", &layout_.tokens},
                                {"length", &length_}}) {
      OP_REQUIRES_OK(context, context->GetAttr(name, value));
    }
    OP_REQUIRES(context, layout_.item_bytes == 1 || layout_.item_bytes == 2 || layout_.item_bytes == 4,
                absl::InvalidArgumentError(absl::StrCat("item_bytes must be 1, 2 or 4, not ", layout_.item_bytes)));
    OP_REQUIRES(context, layout_.tokens <= INT64_MAX / 8 && length_ <= layout_.tokens,
                absl::InvalidArgumentError(absl::StrCat("no window of ", length_, " tokens in ", layout_.tokens)));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    const absl::Status status = Run(context);
    if (!status.ok()) context->CtxFailure(absl::Status(status.code(), absl::StrCat("ReadTokens: ", status.message())));
  }

 private:
  absl::Status Run(tensorflow::OpKernelContext* context) {
    const tensorflow::Tensor& path = context->input(0);
    const tensorflow::Tensor& checksums = context->input(1);
    const tensorflow::Tensor& starts = context->input(2);
    if (path.dims() != 0 || checksums.dims() != 1 || starts.dims() != 1) {
      return absl::InvalidArgumentError("path must be a scalar, checksums and starts vectors");
    }
    const int64_t bytes = layout_.tokens * layout_.item_bytes;
    const int64_t blocks = bytes / layout_.block_bytes + (bytes % layout_.block_bytes != 0);
    if (checksums.dim_size(0) != blocks) {
      return absl::InvalidArgumentError(absl::StrCat(layout_.tokens, " tokens lie in ", blocks,
                                                     " blocks, but there are ", checksums.dim_size(0), " checksums"));
    }
    tensorflow::Tensor* windows = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(0, {starts.dim_size(0), length_}, &windows));
    if (windows->NumElements() == 0) return absl::OkStatus();
    std::shared_ptr<TokenFile> file;
    TF_RETURN_IF_ERROR(OpenTokens(path.scalar<tensorflow::tstring>()(), blocks, &file));
    for (int64_t i = 0; i < starts.dim_size(0); ++i) {
      const int64_t start = starts.flat<int64_t>()(i);
      if (start < 0 || start > layout_.tokens - length_) {
        return absl::InvalidArgumentError(absl::StrCat("no ", length_, " tokens from number ", start, " on"));
      }
      TF_RETURN_IF_ERROR(ReadWindow(file.get(), checksums.flat<uint32_t>().data(), start,
                                    windows->flat<int32_t>().data() + i * length_));
    }
    return absl::OkStatus();
  }

  absl::Status ReadWindow(TokenFile* file, const uint32_t* checksums, int64_t start, int32_t* window) const {
    thread_local std::vector<char> bytes;
    const int64_t begin = start * layout_.item_bytes, size = length_ * layout_.item_bytes;
    TF_RETURN_IF_ERROR(file->Check(layout_, checksums, begin, begin + size));
    bytes.resize(size);
    TF_RETURN_IF_ERROR(file->Read(layout_.header_bytes + begin, size, bytes.data()));
    if (layout_.item_bytes == 1) Widen<uint8_t>(bytes.data(), length_, window);
    if (layout_.item_bytes == 2) Widen<uint16_t>(bytes.data(), length_, window);
    if (layout_.item_bytes == 4) Widen<uint32_t>(bytes.data(), length_, window);
    return absl::OkStatus();
  }

  Layout layout_;
  int64_t length_ = 0;
};

// Documented in custom_ops/engine/token_reader.py.
REGISTER_OP("TfToolkit>ReadTokens")
    .Input("path: string")
    .Input("checksums: uint32")
    .Input("starts: int64")
    .Output("windows: int32")
    .Attr("header_bytes: int >= 0")
    .Attr("block_bytes: int >= 1")
    .Attr("item_bytes: int >= 1")
    .Attr("tokens: int >= 1")
    .Attr("length: int >= 1")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* context) -> absl::Status {
      tensorflow::shape_inference::ShapeHandle starts;
      int64_t length = 0;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(2), 1, &starts));
      TF_RETURN_IF_ERROR(context->GetAttr("length", &length));
      context->set_output(0, context->MakeShape({context->Dim(starts, 0), context->MakeDim(length)}));
      return absl::OkStatus();
    });
REGISTER_KERNEL_BUILDER(Name("TfToolkit>ReadTokens").Device(tensorflow::DEVICE_CPU), ReadTokens);

}  // namespace
}  // namespace tftoolkit
