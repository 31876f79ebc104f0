# Writes version.cpp when it would change. Run at build time with -DSOURCE= -DOUTPUT= -DVERSION= -DCUDA=.
execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT commit)
  set(commit "unknown")
endif()
if(CUDA)
  set(cuda true)
else()
  set(cuda false)
endif()
file(CONFIGURE OUTPUT "${OUTPUT}" CONTENT
"// Generated.
#include \"version.h\"

namespace hadal {

const char* const kVersion = \"${VERSION}\";
const char* const kCommit = \"${commit}\";
const char* const kCompiler = \"g++ \" __VERSION__;
const bool kHasCuda = ${cuda};
const char* const kCudaToolkit = \"${CUDA_VERSION}\";

}  // namespace hadal
")
