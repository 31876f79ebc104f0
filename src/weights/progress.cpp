// Loading speed and time left, from bytes and a clock that tests can own.
#include <algorithm>
#include <cstdio>

#include <hadal/weights/weight_store.h>

namespace hadal {

double LoadProgress::gigabytes_per_second() const {
  return seconds > 0.0 ? static_cast<double>(bytes_done) / seconds / 1e9 : 0.0;
}

double LoadProgress::eta_seconds() const {
  if (bytes_done <= 0) {
    return 0.0;
  }
  const auto left = static_cast<double>(std::max<int64_t>(0, bytes_total - bytes_done));
  return left * seconds / static_cast<double>(bytes_done);
}

std::string progress_text(const LoadProgress& progress) {
  const double percent = progress.bytes_total > 0
                             ? 100.0 * static_cast<double>(progress.bytes_done) /
                                   static_cast<double>(progress.bytes_total)
                             : 100.0;
  char text[160];
  std::snprintf(text,
                sizeof text,
                "%.2f of %.2f GB (%.0f %%), %.2f GB/s, %.0f s left",
                static_cast<double>(progress.bytes_done) / 1e9,
                static_cast<double>(progress.bytes_total) / 1e9,
                percent,
                progress.gigabytes_per_second(),
                progress.eta_seconds());
  return text;
}

LoadMeter::LoadMeter(int64_t bytes_total, LoadProgressFn report, const Clock& clock)
    : clock_(clock), start_(clock.now()), report_(std::move(report)), last_report_(start_) {
  progress_.bytes_total = bytes_total;
}

double LoadMeter::fraction() {
  const std::lock_guard lock(mutex_);
  return progress_.bytes_total > 0 ? static_cast<double>(progress_.bytes_done) /
                                         static_cast<double>(progress_.bytes_total)
                                   : 1.0;
}

void LoadMeter::add(int64_t bytes) {
  constexpr auto kInterval = std::chrono::milliseconds(200);
  const std::lock_guard lock(mutex_);
  progress_.bytes_done += bytes;
  const TimePoint now = clock_.now();
  const bool is_last = progress_.bytes_done >= progress_.bytes_total;
  if (!report_ || (!is_last && now - last_report_ < kInterval)) {
    return;
  }
  last_report_ = now;
  progress_.seconds = std::chrono::duration<double>(now - start_).count();
  report_(progress_);
}

}  // namespace hadal
