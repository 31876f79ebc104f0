// Reading what a node needs once, at the speed of its disks: the ranks' rectangles become disjoint
// blocks in load order, and a few threads read them into the page cache ahead of the ranks, which
// copy their slices out of mappings. Ranks that are processes of their own take turns at the
// blocks, since the page cache is the node's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include <hadal/weights/weight_store.h>

namespace hadal {

/// One rectangle's bytes and when they are needed: smaller `order` first.
struct WantedRange {
  FileRange range;
  int64_t order = 0;
};

/// Disjoint ranges that cover every wanted byte, none across a block's border, in the order in
/// which to read them. Gaps that cost more as a seek than as bytes are closed; of files with
/// checksums, whole blocks are read.
std::vector<FileRange> plan_reads(std::vector<WantedRange> wanted,
                                  const std::vector<StoredFile>& files = {});

int64_t total_bytes(const std::vector<FileRange>& ranges);

struct ReadaheadConfig {
  int32_t num_queues = 4;  ///< threads, each with one read under way
  /// This process reads every share_count-th range, from share_index on.
  int32_t share_index = 0;
  int32_t share_count = 1;
  /// How far reading may run ahead of `fraction_consumed`, so that what was read is not evicted.
  int64_t lead_bytes = int64_t{8} << 30;
  std::function<double()> fraction_consumed;  ///< thread-safe, 0 to 1; empty = no limit
};

/// Starts at once.
class Readahead {
 public:
  Readahead(std::vector<StoredFile> files,
            std::vector<FileRange> ranges,
            const ReadaheadConfig& config);
  /// Stops after the reads under way.
  ~Readahead();
  Readahead(const Readahead&) = delete;
  Readahead& operator=(const Readahead&) = delete;

  /// Waits until all of this process's share was read and its checksums compared, where there are
  /// any. data_loss names the damaged file and block.
  Status finish();

  /// Bytes read from files so far. Thread-safe.
  int64_t bytes_read() const;

 private:
  struct Work;
  std::unique_ptr<Work> work_;
};

}  // namespace hadal
