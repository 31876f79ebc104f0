// What a property test drives: a machine with random operations. A seed gives the machine its
// configuration and its operations; an operation stands for itself, so that the list can lose any
// of them and still mean something (this is what lets a failure shrink).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hadal {

struct Operation {
  uint32_t kind = 0;    ///< of the machine's own list
  uint32_t target = 0;  ///< which earlier operation it is about: that one's `uid`
  uint32_t seed = 0;    ///< of whatever it makes
  uint32_t uid = 0;     ///< its place in the unshrunk list
};

/// How often the interesting things happened, so that a test that no longer meets them fails.
inline constexpr size_t kNumCoverage = 6;
using Coverage = std::array<int64_t, kNumCoverage>;

class PropertyMachine {
 public:
  virtual ~PropertyMachine() = default;
  /// Does it and checks everything; aborts when a rule is broken.
  virtual void apply(const Operation& operation) = 0;
  /// Ends what is open and checks that everything comes back.
  virtual void finish() = 0;
  virtual void add_coverage(Coverage& coverage) const = 0;
};

struct PropertyMachineKind {
  std::string_view name;
  int num_operations;                                         ///< of one seed
  std::array<std::string_view, kNumCoverage> coverage_names;  ///< empty = not counted
  std::unique_ptr<PropertyMachine> (*make)(uint32_t seed);
  std::vector<Operation> (*generate)(uint32_t seed, int count);
  std::string (*describe)(const Operation& operation);
};

extern const PropertyMachineKind kSchedulerMachine;
extern const PropertyMachineKind kCacheMachine;

}  // namespace hadal
