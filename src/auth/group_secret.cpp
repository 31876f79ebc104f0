// Reads the secret's file, with the errors that keep an operator from running without one unawares,
// and proves it.
#include <cerrno>
#include <cstring>

#include <hadal/auth/group_secret.h>

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
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

std::optional<std::string> why_not_without_secret(const GroupSecret& secret,
                                                  const TcpAddress& address) {
  if (!secret.empty() || address.is_loopback()) {
    return std::nullopt;
  }
  return "--dist-init-addr " + address.text() +
         " is not a loopback address: the nodes need a shared secret, mount one at " +
         std::string(kDefaultSecretFile) + " or give --group-secret-file";
}

Nonce random_nonce() {
  Nonce nonce{};
  HADAL_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()),
                         static_cast<int>(nonce.size())) == 1,
              "the system gives no random bytes");
  return nonce;
}

Mac prove(const GroupSecret& secret, std::span<const std::byte> transcript) {
  Mac mac{};
  auto size = static_cast<unsigned int>(mac.size());
  HADAL_CHECK(HMAC(EVP_sha256(),
                   secret.bytes.data(),
                   static_cast<int>(secret.bytes.size()),
                   reinterpret_cast<const unsigned char*>(transcript.data()),
                   transcript.size(),
                   reinterpret_cast<unsigned char*>(mac.data()),
                   &size) != nullptr,
              "HMAC-SHA256 failed");
  return mac;
}

bool is_equal(const Mac& a, const Mac& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace hadal
