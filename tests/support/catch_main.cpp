// Catch2 v2 needs its main() defined once; v3 brings its own.
#ifndef HADAL_CATCH2_V3
#define CATCH_CONFIG_MAIN
#endif
#include "catch.h"
