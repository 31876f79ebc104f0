// Plain pread into a scratch block: it leaves the bytes in the page cache, and gives them to the
// checksum on the way.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <tuple>

#include <hadal/weights/readahead.h>

#include "crc32c.h"

#include <fcntl.h>
#include <unistd.h>

namespace hadal {
namespace {

/// Reading this many bytes takes about as long as one more request.
constexpr int64_t kGapBytes = 256 << 10;

/// Runs of one file with gaps closed, cut at block borders.
std::vector<FileRange> merge_and_cut(const std::vector<WantedRange>& sorted) {
  std::vector<FileRange> pieces;
  FileRange run{-1, 0, 0};
  const auto flush = [&] {
    for (int64_t begin = run.begin; begin < run.end;) {
      const int64_t end = std::min(run.end, (begin / kFileBlockBytes + 1) * kFileBlockBytes);
      pieces.push_back({run.file, begin, end});
      begin = end;
    }
  };
  for (const WantedRange& wanted : sorted) {
    if (wanted.range.file == run.file && wanted.range.begin <= run.end + kGapBytes) {
      run.end = std::max(run.end, wanted.range.end);
      continue;
    }
    flush();
    run = wanted.range;
  }
  flush();
  return pieces;
}

class File {
 public:
  explicit File(const StoredFile& file)
      : stored(file), fd(::open(file.path.c_str(), O_RDONLY | O_CLOEXEC)) {}

  File(const File&) = delete;
  File& operator=(const File&) = delete;

  ~File() {
    if (fd >= 0) {
      ::close(fd);
    }
  }

  const StoredFile& stored;
  const int fd;
};

Status read_fully(const File& file, const FileRange& range, std::span<std::byte> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t count = ::pread(
        file.fd, out.data() + done, out.size() - done, range.begin + static_cast<int64_t>(done));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      return Error{ErrorCode::data_loss,
                   "weights: " + file.stored.path.string() + ": cannot read bytes from " +
                       std::to_string(range.begin + static_cast<int64_t>(done)) + ": " +
                       (count == 0 ? std::string("the file has become shorter")
                                   : std::system_category().message(errno))};
    }
    done += static_cast<size_t>(count);
  }
  return ok_status();
}

/// Of a whole block; parts of one cannot be compared.
Status check_block(const File& file, const FileRange& range, std::span<const std::byte> bytes) {
  const auto block = static_cast<size_t>(range.begin / kFileBlockBytes);
  const bool is_whole =
      range.begin % kFileBlockBytes == 0 &&
      (range.end == file.stored.size_bytes || range.end - range.begin == kFileBlockBytes);
  if (!is_whole || block >= file.stored.block_crc32c.size()) {
    return ok_status();
  }
  if (const uint32_t found = crc32c(bytes); found != file.stored.block_crc32c[block]) {
    return Error{ErrorCode::data_loss,
                 "weights: " + file.stored.path.string() + " is damaged: bytes " +
                     std::to_string(range.begin) + ".." + std::to_string(range.end) +
                     " have CRC-32C " + std::to_string(found) + ", expected " +
                     std::to_string(file.stored.block_crc32c[block]) +
                     "; copy the file again or run hadal shard again"};
  }
  return ok_status();
}

}  // namespace

std::vector<FileRange> plan_reads(std::vector<WantedRange> wanted,
                                  const std::vector<StoredFile>& files) {
  for (WantedRange& want : wanted) {
    const auto file = static_cast<size_t>(want.range.file);
    if (file < files.size() && !files[file].block_crc32c.empty()) {
      want.range.begin -= want.range.begin % kFileBlockBytes;
      const int64_t end = (want.range.end + kFileBlockBytes - 1) / kFileBlockBytes;
      want.range.end = std::min(end * kFileBlockBytes, files[file].size_bytes);
    }
  }
  std::sort(wanted.begin(), wanted.end(), [](const WantedRange& a, const WantedRange& b) {
    return std::tie(a.range.file, a.range.begin) < std::tie(b.range.file, b.range.begin);
  });
  const std::vector<FileRange> pieces = merge_and_cut(wanted);
  // A piece is due when the first rectangle in it is.
  std::vector<int64_t> due(pieces.size(), std::numeric_limits<int64_t>::max());
  size_t first = 0;
  for (const WantedRange& want : wanted) {
    const auto is_before = [&](const FileRange& piece) {
      return std::tie(piece.file, piece.end) <= std::tie(want.range.file, want.range.begin);
    };
    while (first < pieces.size() && is_before(pieces[first])) {
      ++first;
    }
    for (size_t i = first;
         i < pieces.size() && pieces[i].file == want.range.file && pieces[i].begin < want.range.end;
         ++i) {
      due[i] = std::min(due[i], want.order);
    }
  }
  // Files take turns within an order, so that no rank waits for another's file.
  std::vector<std::tuple<int64_t, int64_t, size_t>> sequence;
  std::map<std::pair<int64_t, int32_t>, int64_t> turns;
  for (size_t i = 0; i < pieces.size(); ++i) {
    sequence.emplace_back(due[i], turns[{due[i], pieces[i].file}]++, i);
  }
  std::sort(sequence.begin(), sequence.end());
  std::vector<FileRange> plan;
  plan.reserve(pieces.size());
  for (const auto& [order, turn, index] : sequence) {
    plan.push_back(pieces[index]);
  }
  return plan;
}

int64_t total_bytes(const std::vector<FileRange>& ranges) {
  int64_t bytes = 0;
  for (const FileRange& range : ranges) {
    bytes += range.end - range.begin;
  }
  return bytes;
}

struct Readahead::Work {
  std::vector<StoredFile> stored;
  std::vector<std::unique_ptr<File>> files;
  std::vector<FileRange> ranges;   ///< of all processes
  std::vector<int64_t> positions;  ///< bytes before each range
  ReadaheadConfig config;
  std::atomic<size_t> next{0};
  std::atomic<int64_t> bytes_read{0};
  std::atomic<bool> is_stopped{false};
  std::atomic<bool> is_unlimited{false};
  std::mutex mutex;
  Status status = ok_status();
  std::vector<std::jthread> threads;

  void fail(const Error& error) {
    const std::lock_guard lock(mutex);
    if (status) {
      status = error;
    }
    is_stopped = true;
  }

  /// Holds reading back while the ranks are far behind; false when stopped.
  bool wait_for_turn(size_t index) const {
    while (!is_stopped && !is_unlimited && config.fraction_consumed) {
      const auto total = static_cast<double>(positions.back());
      const auto limit =
          config.fraction_consumed() * total + static_cast<double>(config.lead_bytes);
      if (static_cast<double>(positions[index]) <= limit) {
        break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return !is_stopped;
  }

  void run() {
    std::vector<std::byte> scratch(static_cast<size_t>(kFileBlockBytes));
    const auto share = static_cast<size_t>(config.share_count);
    while (true) {
      const size_t index = next++ * share + static_cast<size_t>(config.share_index);
      if (index >= ranges.size() || !wait_for_turn(index)) {
        return;
      }
      const FileRange& range = ranges[index];
      const File& file = *files[static_cast<size_t>(range.file)];
      const auto bytes = std::span(scratch).first(static_cast<size_t>(range.end - range.begin));
      Status result = read_fully(file, range, bytes);
      if (result) {
        bytes_read += range.end - range.begin;
        result = check_block(file, range, bytes);
      }
      if (!result) {
        fail(result.error());
      }
    }
  }
};

Readahead::Readahead(std::vector<StoredFile> files,
                     std::vector<FileRange> ranges,
                     const ReadaheadConfig& config)
    : work_(std::make_unique<Work>()) {
  work_->stored = std::move(files);
  work_->ranges = std::move(ranges);
  work_->config = config;
  for (const StoredFile& file : work_->stored) {
    work_->files.push_back(std::make_unique<File>(file));
    if (work_->files.back()->fd < 0) {
      work_->fail({ErrorCode::not_found,
                   "weights: cannot open " + file.path.string() + ": " +
                       std::system_category().message(errno)});
    }
  }
  int64_t position = 0;
  for (const FileRange& range : work_->ranges) {
    work_->positions.push_back(position);
    position += range.end - range.begin;
  }
  work_->positions.push_back(position);
  for (int32_t queue = 0; queue < config.num_queues; ++queue) {
    work_->threads.emplace_back([work = work_.get()] { work->run(); });
  }
}

Readahead::~Readahead() {
  work_->is_stopped = true;
  work_->threads.clear();
}

Status Readahead::finish() {
  work_->is_unlimited = true;
  work_->threads.clear();
  return work_->status;
}

int64_t Readahead::bytes_read() const {
  return work_->bytes_read;
}

}  // namespace hadal
