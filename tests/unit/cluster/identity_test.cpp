// Differences are named; a model's identity sees every byte but the tensors'.
#include <fstream>

#include <hadal/auth/group_secret.h>
#include <hadal/cluster/identity.h>

#include "catch.h"

#include <sys/stat.h>
#include <unistd.h>

using namespace hadal;
namespace fs = std::filesystem;

namespace {

struct TempDir {
  TempDir() {
    std::string name = (fs::temp_directory_path() / "hadal_identity_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }

  ~TempDir() { fs::remove_all(path); }

  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name, std::ios::binary) << text;
    return path / name;
  }

  fs::path path;
};

std::string safetensors(const std::string& header, const std::string& data) {
  std::string text(8, '\0');
  text[0] = static_cast<char>(header.size());
  return text + header + data;
}

}  // namespace

TEST_CASE("identity: the first difference is named with both values", "[cluster]") {
  const Identity ours = {{"build", "1"}, {"--tp-size", "4"}};
  CHECK_FALSE(first_difference(ours, ours));
  CHECK(*first_difference(ours, {{"build", "1"}, {"--tp-size", "8"}}) ==
        "--tp-size: '4' here, '8' there");
  CHECK(*first_difference(ours, {{"build", "1"}}) == "--tp-size: '4' here, nothing there");
  CHECK(*first_difference({{"build", "1"}}, ours) == "--tp-size: nothing here, '4' there");
}

TEST_CASE("identity: a model's files by content, weights by header and size", "[cluster]") {
  const TempDir a;
  const TempDir b;
  for (const TempDir* dir : {&a, &b}) {
    dir->write("config.json", "{}");
    dir->write("tokenizer.json", "{\"v\": 1}");
    dir->write("notes.txt", dir == &a ? "this" : "that");
    dir->write("m.safetensors", safetensors("{\"x\":1}", "data"));
  }
  const auto identity = [](const TempDir& dir) {
    auto made = model_identity(dir.path, true);
    REQUIRE(made);
    return made.value();
  };
  CHECK_FALSE(first_difference(identity(a), identity(b)));
  b.write("tokenizer.json", "{\"v\": 2}");
  CHECK(first_difference(identity(a), identity(b))->starts_with("model file tokenizer.json: "));
  b.write("tokenizer.json", "{\"v\": 1}");
  b.write("m.safetensors", safetensors("{\"x\":2}", "data"));
  CHECK(first_difference(identity(a), identity(b))->starts_with("headers of the safetensors"));
  b.write("m.safetensors", safetensors("{\"x\":1}", "dat"));
  CHECK(first_difference(identity(a), identity(b))->starts_with("names and sizes"));
  CHECK_FALSE(first_difference(model_identity(a.path, false).value(),
                               model_identity(b.path, false).value()));
  b.write("m.safetensors", "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F");
  CHECK(model_identity(b.path, true).error().code == ErrorCode::data_loss);
  CHECK(model_identity(b.path / "none", true).error().code == ErrorCode::not_found);
}

TEST_CASE("secret: a file that protects nothing is an error", "[cluster]") {
  const TempDir dir;
  const fs::path good = dir.write("good", "s3cret\n");
  CHECK(read_group_secret(good, true).value().bytes == "s3cret");
  CHECK(read_group_secret(dir.path / "none", false).value().empty());
  CHECK_FALSE(read_group_secret(dir.path / "none", true));
  const auto empty = read_group_secret(dir.write("empty", " \n\n"), false);
  REQUIRE_FALSE(empty);
  CHECK(empty.error().message.find("it is empty") != std::string::npos);
  CHECK_FALSE(read_group_secret(dir.write("long", std::string(5000, 'x')), true));
  CHECK_FALSE(read_group_secret(dir.path, true));
  chmod(good.c_str(), 0666);
  CHECK_FALSE(read_group_secret(good, true));
}
