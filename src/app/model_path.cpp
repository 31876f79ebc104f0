// The cache layout is huggingface_hub's: models--ORG--NAME/refs/REVISION names a snapshot folder.
#include "model_path.h"

#include <fstream>
#include <system_error>

namespace hadal {

namespace {

namespace fs = std::filesystem;

bool names_directory(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

fs::path cache_root(const ModelQuery& query, const Environment& environment) {
  if (!query.download_dir.empty()) {
    return query.download_dir;
  }
  if (const auto hf_home = environment.get("HF_HOME")) {
    return fs::path(*hf_home) / "hub";
  }
  return fs::path(environment.get("HOME").value_or("/")) / ".cache/huggingface/hub";
}

/// org/name with one slash, no dots that climb.
bool is_repository_name(const std::string& name) {
  const size_t slash = name.find('/');
  return slash != std::string::npos && slash > 0 && slash + 1 < name.size() &&
         name.find('/', slash + 1) == std::string::npos && name.find("..") == std::string::npos;
}

std::string first_word(const fs::path& file) {
  std::ifstream stream(file);
  std::string word;
  stream >> word;
  return word;
}

}  // namespace

Result<fs::path> find_model_dir(const ModelQuery& query, const Environment& environment) {
  if (names_directory(query.name)) {
    return fs::path(query.name);
  }
  std::string message =
      "model path '" + query.name + "': expected a directory, found none of that name";
  if (!is_repository_name(query.name)) {
    return Error{ErrorCode::not_found, message};
  }
  std::string folder = "models--" + query.name;
  folder.replace(folder.find('/'), 1, "--");
  const fs::path repository = cache_root(query, environment) / folder;
  const std::string commit = first_word(repository / "refs" / query.revision);
  const fs::path snapshot = repository / "snapshots" / (commit.empty() ? query.revision : commit);
  if (names_directory(snapshot)) {
    return snapshot;
  }
  return Error{ErrorCode::not_found,
               message + ", nor a snapshot " + snapshot.string() + " (hadal downloads nothing)"};
}

}  // namespace hadal
