// Names that writer and reader of pre-sharded directories share.
#pragma once

namespace hadal {

inline constexpr const char* kShardManifest = "hadal_shards.json";
inline constexpr const char* kShardFormat = "hadal-shards";
inline constexpr int kShardVersion = 1;

}  // namespace hadal
