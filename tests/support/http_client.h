// A small blocking HTTP client for tests: raw sockets, so that a test can also misbehave (half a
// request, a reset, no reading). Every wait has a deadline.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hadal_test {

/// Deadlines of tests, three times as long under sanitizers.
double test_seconds(double seconds);

struct HttpAnswer {
  int status = 0;
  std::map<std::string, std::string> fields;  ///< names in lower case
  std::string body;                           ///< without chunk framing
  bool is_complete = false;                   ///< false: the connection ended inside the answer

  /// The payloads of a stream's `data:` lines.
  std::vector<std::string> events() const;
};

class HttpClient {
 public:
  /// `receive_bytes` > 0 makes the socket's receive buffer small.
  explicit HttpClient(uint16_t port, int receive_bytes = 0);
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;
  ~HttpClient();

  bool is_connected() const { return fd_ >= 0; }

  /// False when the peer does not take it all in time.
  bool send(std::string_view bytes);
  /// The next answer; nullopt when the connection ends (or time runs out) before its first byte.
  std::optional<HttpAnswer> receive(bool has_body = true, double seconds = 20);
  /// Receives at least until `text` was seen; false at the end of the connection or of time.
  bool receive_until(std::string_view text, double seconds = 20);
  /// True when the peer closes before time runs out; what arrives is dropped.
  bool wait_closed(double seconds);
  void half_close();
  /// Closes with a reset.
  void reset();
  void close();

  /// Sends the request with a JSON body and receives the answer.
  HttpAnswer post(std::string_view path,
                  std::string_view body,
                  const std::vector<std::string>& fields = {});
  HttpAnswer get(std::string_view path, const std::vector<std::string>& fields = {});

 private:
  bool receive_some(double deadline);
  bool read_body(HttpAnswer& answer, double deadline);
  std::optional<std::string> take_line(double deadline);
  std::optional<std::string> take(size_t size, double deadline);

  int fd_ = -1;
  std::string input_;
};

/// The text of a POST with a JSON body.
std::string post_text(std::string_view path,
                      std::string_view body,
                      const std::vector<std::string>& fields = {});

}  // namespace hadal_test
