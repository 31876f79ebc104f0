// What `hadal --version` tells; version.cpp is written by cmake/Version.cmake at every build.
#pragma once

namespace hadal {

extern const char* const kVersion;
extern const char* const kCommit;  ///< "unknown" outside of a git checkout
extern const char* const kCompiler;
extern const bool kHasCuda;
extern const char* const kCudaToolkit;  ///< "13.0.88"; empty in a CPU build

}  // namespace hadal
