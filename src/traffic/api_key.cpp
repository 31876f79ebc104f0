// See api_key.h.
#include <array>

#include <hadal/traffic/api_key.h>

namespace hadal {
namespace {

struct ClassRow {
  std::string_view name;
  double weight;
  int32_t priority;
};

// By TrafficClass. The priorities are those that the eviction policy of that name tells apart.
constexpr std::array<ClassRow, 3> kClasses = {
    {{"interactive", 4.0, 8}, {"default", 1.0, 0}, {"batch", 0.25, -8}}};

const ClassRow& row_of(TrafficClass traffic_class) {
  return kClasses[static_cast<size_t>(traffic_class)];
}

}  // namespace

std::string_view class_name(TrafficClass traffic_class) {
  return row_of(traffic_class).name;
}

bool parse_class(std::string_view name, TrafficClass& out) {
  for (size_t i = 0; i < kClasses.size(); ++i) {
    if (kClasses[i].name == name) {
      out = static_cast<TrafficClass>(i);
      return true;
    }
  }
  return false;
}

double class_weight(TrafficClass traffic_class) {
  return row_of(traffic_class).weight;
}

int32_t class_priority(TrafficClass traffic_class) {
  return row_of(traffic_class).priority;
}

}  // namespace hadal
