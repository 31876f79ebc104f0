// Buffers, containers and the metered heap. The point to know: concatenating to a string that ends
// where its buffer ends appends in place, so a prompt built up piece by piece costs linear time.
#include "jinja_value.h"

#include <algorithm>
#include <cstring>

namespace hadal::jinja {

namespace {

constexpr int64_t kBufferSteps = 8;
constexpr size_t kIndexFrom = 16;                        // entries from which a dict is hashed
constexpr uint32_t kBufferBytesMax = uint32_t{1} << 30;  // windows are 32-bit

void extend_runs(std::vector<TaintRun>& runs, uint32_t end, bool tainted) {
  if (!runs.empty() && runs.back().tainted == tainted)
    runs.back().end = end;
  else
    runs.push_back({end, tainted});
}

}  // namespace

std::string_view Value::text() const {
  return buffer->view().substr(begin, end - begin);
}

Value Value::none() {
  Value value;
  value.kind = Kind::none;
  return value;
}

Value Value::of(bool boolean) {
  Value value;
  value.kind = Kind::boolean;
  value.boolean = boolean;
  return value;
}

Value Value::of(int64_t integer) {
  Value value;
  value.kind = Kind::integer;
  value.integer = integer;
  return value;
}

Value Value::of(double real) {
  Value value;
  value.kind = Kind::real;
  value.real = real;
  return value;
}

void Buffer::append(std::string_view bytes, bool tainted) {
  if (bytes.empty())
    return;
  own.append(bytes);
  extend_runs(runs, static_cast<uint32_t>(own.size()), tainted);
}

void Buffer::append_window(const Buffer& other, uint32_t begin, uint32_t end) {
  if (&other == this) {  // own.append would read what it moves
    const std::vector<TaintRun> old_runs = runs;
    const uint32_t shift = static_cast<uint32_t>(own.size()) - begin;
    own.append(std::string(own, begin, end - begin));
    uint32_t at = begin;
    for (const TaintRun& run : old_runs) {
      if (run.end <= at || at >= end)
        continue;
      at = std::min(run.end, end);
      extend_runs(runs, at + shift, run.tainted);
    }
    return;
  }
  const uint32_t base = static_cast<uint32_t>(own.size());
  own.append(other.view().substr(begin, end - begin));
  other.for_each_run(begin, end, [&](uint32_t, uint32_t run_end, bool tainted) {
    extend_runs(runs, base + (run_end - begin), tainted);
  });
}

const Value* Dict::find(std::string_view key) const {
  if (!index.empty()) {
    const auto it = index.find(std::string(key));
    return it == index.end() ? nullptr : &items[it->second].second;
  }
  for (const auto& [k, v] : items) {
    if (k.is_string() && k.text() == key)
      return &v;
  }
  return nullptr;
}

void Dict::add(const Value& key, const Value& value) {
  if (key.is_string() && !index.empty())
    index.emplace(std::string(key.text()), static_cast<uint32_t>(items.size()));
  items.emplace_back(key, value);
  if (items.size() == kIndexFrom) {
    for (size_t i = 0; i < items.size(); ++i) {
      if (items[i].first.is_string())
        index.emplace(std::string(items[i].first.text()), static_cast<uint32_t>(i));
    }
  }
}

const Value* Namespace::find(std::string_view key) const {
  for (const auto& [k, v] : items) {
    if (k == key)
      return &v;
  }
  return nullptr;
}

void Namespace::set(std::string_view key, const Value& value) {
  for (auto& [k, v] : items) {
    if (k == key) {
      v = value;
      return;
    }
  }
  items.emplace_back(std::string(key), value);
}

Value from_dict(Dict* dict) {
  Value value;
  value.kind = Kind::dict;
  value.dict = dict;
  return value;
}

bool Heap::charge(int64_t steps) {
  if (failed_)
    return false;
  if (steps > steps_left_) {
    steps_left_ = 0;
    fail("the template exceeds the limit on steps");
    return false;
  }
  steps_left_ -= steps;
  return true;
}

Value Heap::fail(std::string message) {
  if (!failed_) {
    failed_ = true;
    message_ = std::move(message);
  }
  return {};
}

Value Heap::fail_verbatim(std::string message) {
  if (!failed_)
    verbatim_ = true;
  return fail(std::move(message));
}

void Heap::locate(int32_t line, int32_t column) {
  if (line_ == 0) {
    line_ = line;
    column_ = column;
  }
}

std::string Heap::error_text() const {
  if (verbatim_)
    return message_;
  return "chat template, line " + std::to_string(line_) + ", column " + std::to_string(column_) +
         ": " + message_;
}

Buffer* Heap::new_buffer(int64_t bytes_expected) {
  if (charge(kBufferSteps) && bytes_expected > 0)
    charge_bytes(bytes_expected);
  if (bytes_expected > kBufferBytesMax)
    fail("a string longer than 1 GiB");
  buffers_.emplace_back();
  if (!failed_ && bytes_expected > 0)
    buffers_.back().own.reserve(static_cast<size_t>(bytes_expected));
  return &buffers_.back();
}

Value Heap::from_buffer(Buffer* buffer) const {
  Value value;
  value.kind = Kind::string;
  value.buffer = buffer;
  value.begin = 0;
  value.end = static_cast<uint32_t>(buffer->view().size());
  return value;
}

Value Heap::string(std::string_view bytes, bool tainted) {
  Buffer* buffer = new_buffer(static_cast<int64_t>(bytes.size()));
  if (!failed_)
    buffer->append(bytes, tainted);
  return from_buffer(buffer);
}

Value Heap::external_string(std::string_view bytes, bool tainted) {
  Buffer* buffer = new_buffer(0);
  if (bytes.size() > kBufferBytesMax)
    fail("a string longer than 1 GiB");
  if (!failed_) {
    buffer->is_external = true;
    buffer->external = bytes;
    if (!bytes.empty())
      buffer->runs.push_back({static_cast<uint32_t>(bytes.size()), tainted});
  }
  return from_buffer(buffer);
}

Value Heap::window(const Value& string, size_t begin, size_t end) const {
  Value value = string;
  value.begin = string.begin + static_cast<uint32_t>(begin);
  value.end = string.begin + static_cast<uint32_t>(end);
  return value;
}

Value Heap::concat(const Value& left, const Value& right) {
  const int64_t left_bytes = left.end - left.begin;
  const int64_t right_bytes = right.end - right.begin;
  if (right_bytes == 0)
    return left;
  if (left_bytes == 0)
    return right;
  Buffer* target = left.buffer;
  if (!target->is_external && left.end == target->own.size()) {
    if (!charge_bytes(right_bytes))
      return {};
    if (static_cast<int64_t>(target->own.size()) + right_bytes > kBufferBytesMax)
      return fail("a string longer than 1 GiB");
    target->append_window(*right.buffer, right.begin, right.end);
    Value value = left;
    value.end = static_cast<uint32_t>(target->own.size());
    return value;
  }
  Buffer* buffer = new_buffer(left_bytes + right_bytes);
  if (failed_)
    return {};
  buffer->append_window(*left.buffer, left.begin, left.end);
  buffer->append_window(*right.buffer, right.begin, right.end);
  return from_buffer(buffer);
}

Value Heap::new_list(std::vector<Value> items, Kind kind, bool is_content) {
  charge(kBufferSteps + static_cast<int64_t>(items.size()) * 2);
  lists_.push_back(List{std::move(items), is_content});
  Value value;
  value.kind = kind;
  value.list = &lists_.back();
  return value;
}

Dict* Heap::new_dict(bool is_content) {
  charge(kBufferSteps);
  dicts_.emplace_back();
  dicts_.back().is_content = is_content;
  return &dicts_.back();
}

Namespace* Heap::new_namespace() {
  charge(kBufferSteps);
  return &namespaces_.emplace_back();
}

Loop* Heap::new_loop() {
  charge(kBufferSteps);
  return &loops_.emplace_back();
}

Value Heap::new_method(MethodId id, const Value& self) {
  charge(4);
  methods_.push_back(Method{id, self});
  Value value;
  value.kind = Kind::method;
  value.method = &methods_.back();
  return value;
}

Value Heap::undefined(std::string message) {
  charge_bytes(static_cast<int64_t>(message.size()) + 48);
  infos_.push_back(UndefinedInfo{std::move(message)});
  Value value;
  value.info = &infos_.back();
  return value;
}

}  // namespace hadal::jinja
