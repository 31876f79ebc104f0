// SAX events to TemplateValues. The parser keeps its own bit stack, so hostile nesting costs no
// stack of ours; the tree is at most depth_max deep, which bounds its destructors.
#include "request_json.h"

#include <algorithm>
#include <limits>
#include <optional>

#include <nlohmann/json.hpp>

namespace hadal::api {

namespace {

class TreeBuilder {
 public:
  explicit TreeBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() { return add({}); }

  bool boolean(bool value) { return add({value}); }

  bool number_integer(int64_t value) { return add_number({value}); }

  bool number_unsigned(uint64_t value) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return add_number({static_cast<double>(value)});
    }
    return add_number({static_cast<int64_t>(value)});
  }

  bool number_float(double value, const std::string& /*text*/) { return add_number({value}); }

  bool string(std::string& value) { return add({std::move(value), true}); }

  bool binary(nlohmann::json::binary_t& /*value*/) { return false; }

  bool start_object(size_t /*size*/) { return open(true); }

  bool start_array(size_t /*size*/) { return open(false); }

  bool key(std::string& name) {
    frames_.back().key = std::move(name);
    return count();
  }

  bool end_object() {
    TemplateValue::Object members = std::move(frames_.back().members);
    frames_.pop_back();
    if (has_duplicate_key(members)) {
      return fail("the body has an object with a key given twice");
    }
    return add({std::make_shared<const TemplateValue::Object>(std::move(members)), true});
  }

  bool end_array() {
    TemplateValue::List items = std::move(frames_.back().items);
    frames_.pop_back();
    return add({std::make_shared<const TemplateValue::List>(std::move(items)), true});
  }

  bool parse_error(size_t position,
                   const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) {
    return fail("the body is not valid JSON (near byte " + std::to_string(position) + ")");
  }

  const std::string& problem() const { return problem_; }

  /// After a parse without a problem.
  TemplateValue take() { return std::move(root_).value(); }

 private:
  struct Frame {
    bool is_object = false;
    TemplateValue::List items;
    TemplateValue::Object members;
    std::string key;  // of the value that comes next
  };

  static bool has_duplicate_key(const TemplateValue::Object& members) {
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const auto& [name, value] : members) {
      names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return std::adjacent_find(names.begin(), names.end()) != names.end();
  }

  bool fail(std::string problem) {
    if (problem_.empty()) {
      problem_ = std::move(problem);
    }
    return false;
  }

  bool count() {
    return ++num_values_ <= limits_.values_max ||
           fail("the body has more than " + std::to_string(limits_.values_max) + " values");
  }

  bool open(bool is_object) {
    if (std::ssize(frames_) >= limits_.depth_max) {
      return fail("the body is nested deeper than " + std::to_string(limits_.depth_max));
    }
    frames_.push_back({is_object, {}, {}, {}});
    return true;
  }

  bool add_number(TemplateValue value) {
    if (++num_numbers_ > limits_.numbers_max) {
      return fail("the body has more than " + std::to_string(limits_.numbers_max) + " numbers");
    }
    place(std::move(value));
    return true;
  }

  bool add(TemplateValue value) {
    if (!count()) {
      return false;
    }
    place(std::move(value));
    return true;
  }

  void place(TemplateValue value) {
    if (frames_.empty()) {
      root_.emplace(std::move(value));
    } else if (frames_.back().is_object) {
      frames_.back().members.emplace_back(std::move(frames_.back().key), std::move(value));
    } else {
      frames_.back().items.push_back(std::move(value));
    }
  }

  JsonLimits limits_;
  std::vector<Frame> frames_;
  std::optional<TemplateValue> root_;
  int32_t num_values_ = 0;
  int32_t num_numbers_ = 0;
  std::string problem_;
};

}  // namespace

ApiResult<TemplateValue> parse_request_json(std::string_view body, const JsonLimits& limits) {
  if (body.starts_with("\xEF\xBB\xBF")) {
    return invalid_field({}, "the body starts with a byte-order mark; expected plain JSON");
  }
  TreeBuilder builder(limits);
  if (!nlohmann::json::sax_parse(body.begin(), body.end(), &builder)) {
    const std::string& problem = builder.problem();
    return invalid_field({}, problem.empty() ? "the body is not valid JSON" : problem);
  }
  TemplateValue root = builder.take();
  if (!std::holds_alternative<std::shared_ptr<const TemplateValue::Object>>(root.value)) {
    return invalid_field({}, "the body must be a JSON object");
  }
  return root;
}

}  // namespace hadal::api
