// Field by field: the first difference is the one worth telling.
#include <hadal/cluster/identity.h>

namespace hadal {
namespace {

const IdentityField* find(const Identity& identity, const std::string& name) {
  for (const IdentityField& field : identity) {
    if (field.name == name) {
      return &field;
    }
  }
  return nullptr;
}

}  // namespace

std::optional<std::string> first_difference(const Identity& ours, const Identity& theirs) {
  for (const IdentityField& field : ours) {
    const IdentityField* other = find(theirs, field.name);
    const std::string value = other == nullptr ? "nothing" : "'" + other->value + "'";
    if (other == nullptr || other->value != field.value) {
      return field.name + ": '" + field.value + "' here, " + value + " there";
    }
  }
  for (const IdentityField& field : theirs) {
    if (find(ours, field.name) == nullptr) {
      return field.name + ": nothing here, '" + field.value + "' there";
    }
  }
  return std::nullopt;
}

}  // namespace hadal
