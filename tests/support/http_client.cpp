// poll() before every read and write; framing by Content-Length, chunks, or the connection's end.
#include "http_client.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <utility>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace hadal_test {

namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool wait_for(int fd, short events, double deadline) {
  pollfd poll_fd{fd, events, 0};
  const double left = deadline - now_s();
  return left > 0 && ::poll(&poll_fd, 1, static_cast<int>(left * 1000) + 1) > 0;
}

}  // namespace

double test_seconds(double seconds) {
#ifdef HADAL_SANITIZED
  return seconds * 3;
#else
  return seconds;
#endif
}

std::vector<std::string> HttpAnswer::events() const {
  std::vector<std::string> out;
  size_t at = 0;
  while (at < body.size()) {
    const size_t end = std::min(body.find('\n', at), body.size());
    if (body.compare(at, 6, "data: ") == 0) {
      out.push_back(body.substr(at + 6, end - at - 6));
    }
    at = end + 1;
  }
  return out;
}

std::string post_text(std::string_view path,
                      std::string_view body,
                      const std::vector<std::string>& fields) {
  std::string text = "POST " + std::string(path) + " HTTP/1.1\r\nHost: test\r\n";
  text += "Content-Type: application/json\r\n";
  for (const std::string& field : fields) {
    text += field + "\r\n";
  }
  text += "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n";
  return text.append(body);
}

HttpClient::HttpClient(uint16_t port, int receive_bytes) {
  fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (receive_bytes > 0) {
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    close();
  }
}

HttpClient::~HttpClient() {
  close();
}

void HttpClient::close() {
  if (fd_ >= 0) {
    ::close(fd_);
    fd_ = -1;
  }
}

void HttpClient::reset() {
  const linger option{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &option, sizeof(option));
  close();
}

void HttpClient::half_close() {
  ::shutdown(fd_, SHUT_WR);
}

bool HttpClient::send(std::string_view bytes) {
  const double deadline = now_s() + test_seconds(20);
  while (!bytes.empty()) {
    if (!wait_for(fd_, POLLOUT, deadline)) {
      return false;
    }
    const ssize_t size = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (size < 0 && errno != EAGAIN) {
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(std::max<ssize_t>(size, 0)));
  }
  return true;
}

bool HttpClient::receive_some(double deadline) {
  std::array<char, 16384> buffer;
  if (fd_ < 0 || !wait_for(fd_, POLLIN, deadline)) {
    return false;
  }
  const ssize_t size = ::recv(fd_, buffer.data(), buffer.size(), 0);
  if (size <= 0) {
    return false;
  }
  input_.append(buffer.data(), static_cast<size_t>(size));
  return true;
}

bool HttpClient::receive_until(std::string_view text, double seconds) {
  const double deadline = now_s() + test_seconds(seconds);
  while (input_.find(text) == std::string::npos) {
    if (!receive_some(deadline)) {
      return false;
    }
  }
  return true;
}

bool HttpClient::wait_closed(double seconds) {
  const double deadline = now_s() + test_seconds(seconds);
  while (receive_some(deadline)) {
    input_.clear();
  }
  return now_s() < deadline;
}

std::optional<std::string> HttpClient::take_line(double deadline) {
  size_t end = input_.find("\r\n");
  while (end == std::string::npos) {
    if (!receive_some(deadline)) {
      return std::nullopt;
    }
    end = input_.find("\r\n");
  }
  std::string line = input_.substr(0, end);
  input_.erase(0, end + 2);
  return line;
}

std::optional<std::string> HttpClient::take(size_t size, double deadline) {
  while (input_.size() < size) {
    if (!receive_some(deadline)) {
      return std::nullopt;
    }
  }
  std::string bytes = input_.substr(0, size);
  input_.erase(0, size);
  return bytes;
}

bool HttpClient::read_body(HttpAnswer& answer, double deadline) {
  if (const auto length = answer.fields.find("content-length"); length != answer.fields.end()) {
    auto body = take(std::stoul(length->second), deadline);
    answer.body = body.value_or(input_);
    return body.has_value();
  }
  if (answer.fields.count("transfer-encoding") == 0) {
    while (receive_some(deadline)) {
    }
    answer.body = std::exchange(input_, {});
    return true;
  }
  for (;;) {
    const auto line = take_line(deadline);
    if (!line || line->empty()) {
      return false;
    }
    const size_t size = std::stoul(*line, nullptr, 16);
    const auto chunk = take(size + 2, deadline);
    if (!chunk || !chunk->ends_with("\r\n")) {
      return false;
    }
    if (size == 0) {
      return true;
    }
    answer.body.append(*chunk, 0, size);
  }
}

std::optional<HttpAnswer> HttpClient::receive(bool has_body, double seconds) {
  const double deadline = now_s() + test_seconds(seconds);
  std::optional<std::string> line = take_line(deadline);
  if (!line || line->size() < 12) {
    return std::nullopt;
  }
  HttpAnswer answer;
  answer.status = std::stoi(line->substr(9, 3));
  for (line = take_line(deadline); line && !line->empty(); line = take_line(deadline)) {
    const size_t colon = std::min(line->find(':'), line->size());
    std::string name = line->substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(), [](char c) {
      return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    });
    answer.fields[name] = line->substr(std::min(colon + 2, line->size()));
  }
  const bool is_bodiless = !has_body || answer.status == 204 || answer.status == 100;
  answer.is_complete = line.has_value() && (is_bodiless || read_body(answer, deadline));
  return answer;
}

HttpAnswer HttpClient::post(std::string_view path,
                            std::string_view body,
                            const std::vector<std::string>& fields) {
  return send(post_text(path, body, fields)) ? receive().value_or(HttpAnswer{}) : HttpAnswer{};
}

HttpAnswer HttpClient::get(std::string_view path, const std::vector<std::string>& fields) {
  std::string text = "GET " + std::string(path) + " HTTP/1.1\r\nHost: test\r\n";
  for (const std::string& field : fields) {
    text += field + "\r\n";
  }
  return send(text + "\r\n") ? receive().value_or(HttpAnswer{}) : HttpAnswer{};
}

}  // namespace hadal_test
