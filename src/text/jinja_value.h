// The values of a running template. Everything lives in one Heap until the render ends: values are
// small handles, nothing is freed one by one, and no destructor recurses however deep a value is.
// Strings are windows into buffers that remember, per byte, whether it came from the request.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace hadal::jinja {

struct Buffer;
struct List;
struct Dict;
struct Namespace;
struct Macro;
struct Method;
struct Loop;
struct UndefinedInfo;
enum class Builtin : uint8_t;

enum class Kind : uint8_t {
  undefined,
  none,
  boolean,
  integer,
  real,
  string,
  list,
  tuple,
  generator,  // what map and its like give: to be iterated, nothing else
  dict,
  name_space,
  macro,
  function,
  method,
  loop,
};

/// 24 bytes, freely copied; pointers are owned by the Heap (or, for literals, by the template).
struct Value {
  Kind kind = Kind::undefined;
  uint32_t begin = 0;  // strings: the window [begin, end) of the buffer
  uint32_t end = 0;

  union {
    bool boolean;
    int64_t integer = 0;
    double real;
    Buffer* buffer;
    List* list;  // also tuples and generators
    Dict* dict;
    Namespace* name_space;
    const Macro* macro;
    Builtin function;
    Method* method;
    Loop* loop;
    const UndefinedInfo* info;  // may be null
  };

  bool is(Kind k) const { return kind == k; }

  bool is_string() const { return kind == Kind::string; }

  bool is_sequence() const { return kind == Kind::list || kind == Kind::tuple; }

  bool is_undefined() const { return kind == Kind::undefined; }

  bool is_integral() const { return kind == Kind::integer || kind == Kind::boolean; }

  bool is_number() const { return is_integral() || kind == Kind::real; }

  /// An integer or a boolean as Python's int.
  int64_t as_integer() const { return kind == Kind::boolean ? (boolean ? 1 : 0) : integer; }

  double as_real() const { return kind == Kind::real ? real : static_cast<double>(as_integer()); }

  std::string_view text() const;

  static Value none();
  static Value of(bool value);
  static Value of(int64_t value);
  static Value of(double value);
};

/// Bytes up to `end` (from the previous run's end) are request data or not.
struct TaintRun {
  uint32_t end = 0;
  bool tainted = false;
};

struct Buffer {
  std::string own;
  std::string_view external;  // request data and literals are not copied
  bool is_external = false;
  std::vector<TaintRun> runs;  // cover the whole buffer

  std::string_view view() const { return is_external ? external : std::string_view(own); }

  /// Calls fn(begin, end, tainted) for the runs that cover [begin, end), in order.
  template <class Fn>
  void for_each_run(uint32_t begin, uint32_t end, Fn fn) const {
    size_t low = 0;
    size_t high = runs.size();
    while (low < high) {
      const size_t mid = (low + high) / 2;
      if (runs[mid].end <= begin)
        low = mid + 1;
      else
        high = mid;
    }
    for (size_t i = low; i < runs.size() && begin < end; ++i) {
      const uint32_t stop = runs[i].end < end ? runs[i].end : end;
      fn(begin, stop, runs[i].tainted);
      begin = stop;
    }
  }

  bool tainted_at(uint32_t position) const {
    bool tainted = false;
    for_each_run(position, position + 1, [&](uint32_t, uint32_t, bool t) { tainted = t; });
    return tainted;
  }

  void append(std::string_view bytes, bool tainted);
  void append_window(const Buffer& other, uint32_t begin, uint32_t end);
};

struct List {
  std::vector<Value> items;
  bool is_content = false;
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;
  bool is_content = false;
  std::unordered_map<std::string, uint32_t> index;  // string keys, built for larger dicts

  const Value* find(std::string_view key) const;
  void add(const Value& key, const Value& value);
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
  const Value* find(std::string_view key) const;
  void set(std::string_view key, const Value& value);
};

struct UndefinedInfo {
  std::string message;  // what using the value will say
};

/// The variable `loop`.
struct Loop {
  List* items = nullptr;
  int64_t index0 = 0;
  bool has_last_changed = false;
  Value last_changed;
};

enum class MethodId : uint8_t {
  str_split,
  str_rsplit,
  str_strip,
  str_lstrip,
  str_rstrip,
  str_startswith,
  str_endswith,
  str_replace,
  str_upper,
  str_lower,
  str_title,
  str_capitalize,
  str_find,
  str_rfind,
  str_index,
  str_count,
  str_join,
  str_splitlines,
  str_removeprefix,
  str_removesuffix,
  str_isdigit,
  str_isalpha,
  str_isalnum,
  str_isspace,
  str_zfill,
  dict_items,
  dict_keys,
  dict_values,
  dict_get,
  list_index,
  list_count,
  loop_cycle,
  loop_changed,
};

struct Method {
  MethodId id;
  Value self;
};

struct CallArgs {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;

  const Value* find(std::string_view name) const {
    for (const auto& [key, value] : named) {
      if (key == name)
        return &value;
    }
    return nullptr;
  }

  /// Argument `index`, given by place or by name; null if absent.
  const Value* get(size_t index, std::string_view name) const {
    return index < positional.size() ? &positional[index] : find(name);
  }
};

/// Owns what a render makes and meters it: every allocation is paid for in steps, so that the step
/// limit bounds memory too. The first failure sticks; after it nothing is worth computing.
class Heap {
 public:
  explicit Heap(int64_t steps_max) : steps_left_(steps_max) {}

  /// Takes `steps`; false (and a failure) when the limit is reached.
  bool charge(int64_t steps);

  bool charge_bytes(int64_t bytes) { return charge(bytes / 16 + 1); }

  bool failed() const { return failed_; }

  /// Records the first failure; returns an undefined value for convenience.
  Value fail(std::string message);
  /// A failure whose message is the template's own (raise_exception).
  Value fail_verbatim(std::string message);
  void locate(int32_t line, int32_t column);
  std::string error_text() const;

  Value string(std::string_view bytes, bool tainted);  // copies
  Value external_string(std::string_view bytes, bool tainted);
  Buffer* new_buffer(int64_t bytes_expected);
  Value from_buffer(Buffer* buffer) const;
  Value window(const Value& string, size_t begin, size_t end) const;
  Value concat(const Value& left, const Value& right);
  Value new_list(std::vector<Value> items, Kind kind = Kind::list, bool is_content = false);
  Dict* new_dict(bool is_content = false);
  Namespace* new_namespace();
  Loop* new_loop();
  Value new_method(MethodId id, const Value& self);
  Value undefined(std::string message);

 private:
  int64_t steps_left_;
  bool failed_ = false;
  bool verbatim_ = false;
  std::string message_;
  int32_t line_ = 0;
  int32_t column_ = 0;
  std::deque<Buffer> buffers_;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
  std::deque<Namespace> namespaces_;
  std::deque<Loop> loops_;
  std::deque<Method> methods_;
  std::deque<UndefinedInfo> infos_;
};

Value from_dict(Dict* dict);

/// Depth to which values are printed, compared and turned to JSON.
inline constexpr int32_t kValueDepthMax = 256;

const char* type_name(const Value& value);
bool truthy(const Value& value);
/// Python's ==; false for values of different kinds. Fails on values nested too deep.
bool equal(Heap& heap, const Value& a, const Value& b, int32_t depth = 0);
/// -1, 0, 1; fails for values that Python does not order.
int compare(Heap& heap, const Value& a, const Value& b, int32_t depth = 0);
bool contains(Heap& heap, const Value& container, const Value& item);
/// Python's str().
Value to_string(Heap& heap, const Value& value);
std::string format_real(double value);

struct JsonStyle {
  int64_t indent = -1;  // below 0: one line
  std::string indent_text;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ascii_only = false;
  bool sorts_keys = false;
};

Value to_json(Heap& heap, const Value& value, const JsonStyle& style);

/// The items that iterating gives (list items, dict keys, characters); fails for what is not
/// iterable.
bool iterate(Heap& heap, const Value& value, std::vector<Value>& items);

Value get_attribute(Heap& heap, const Value& object, std::string_view name);
Value get_item(Heap& heap, const Value& object, const Value& key);
Value slice(Heap& heap, const Value& object, const Value bounds[3]);
Value call_method(Heap& heap, const Method& method, const CallArgs& args);

enum class BinaryOp : uint8_t { add, sub, mul, div, floor_div, mod, power };
Value arithmetic(Heap& heap, BinaryOp op, const Value& left, const Value& right);
Value negate(Heap& heap, const Value& value);

}  // namespace hadal::jinja
