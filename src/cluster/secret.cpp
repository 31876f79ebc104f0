// Reads the secret's file, with the errors that keep an operator from running without one unawares.
#include <cerrno>
#include <cstring>

#include <hadal/cluster/secret.h>
#include <hadal/net/tcp.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace hadal {
namespace {

constexpr size_t kSecretBytesMax = 4096;

Error bad_secret(const std::filesystem::path& path, const std::string& why) {
  return {ErrorCode::invalid_argument, "--group-secret-file " + path.string() + ": " + why};
}

}  // namespace

Result<GroupSecret> read_group_secret(const std::filesystem::path& path, bool is_required) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) {
    if (errno == ENOENT && !is_required) {
      return GroupSecret{};
    }
    return bad_secret(path, std::strerror(errno));  // NOLINT(concurrency-mt-unsafe)
  }

  struct stat info {};

  if (fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return bad_secret(path, "expected a regular file");
  }
  if ((info.st_mode & S_IWOTH) != 0) {
    return bad_secret(path, "every user may write it; set its mode to 0400");
  }
  std::string bytes(kSecretBytesMax + 1, '\0');
  size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t got = read(file.get(), bytes.data() + size, bytes.size() - size);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      break;
    }
    size += static_cast<size_t>(got);
  }
  if (size > kSecretBytesMax) {
    return bad_secret(path, "longer than " + std::to_string(kSecretBytesMax) + " bytes");
  }
  bytes.resize(size);
  while (!bytes.empty() && (bytes.back() == '\n' || bytes.back() == '\r' || bytes.back() == ' ')) {
    bytes.pop_back();
  }
  if (bytes.empty()) {
    return bad_secret(path, "it is empty; write a random line into it, the same on every node");
  }
  return GroupSecret{std::move(bytes)};
}

}  // namespace hadal
