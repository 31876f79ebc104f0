# Helpers shared by every module's CMakeLists.txt.
find_package(Threads REQUIRED)

# Flags that every hadal target gets; third-party headers come in by SYSTEM include.
add_library(hadal_options INTERFACE)
target_include_directories(hadal_options INTERFACE "${PROJECT_SOURCE_DIR}/include")
target_link_libraries(hadal_options INTERFACE Threads::Threads)
set(hadal_cxx "$<COMPILE_LANGUAGE:CXX>")
target_compile_options(hadal_options INTERFACE
  "$<${hadal_cxx}:-Wall;-Wextra;-Wconversion;-Wshadow;-Wold-style-cast;-Wnon-virtual-dtor;-fno-math-errno>")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 sees overlaps in `"text" + std::string` that are not there (its bug 105651).
  target_compile_options(hadal_options INTERFACE "$<${hadal_cxx}:-Wno-restrict>")
endif()
if(HADAL_WERROR)
  target_compile_options(hadal_options INTERFACE "$<${hadal_cxx}:-Werror>")
endif()
if(HADAL_SANITIZER)
  add_compile_options(-O1 -g1 -fno-omit-frame-pointer -fsanitize=${HADAL_SANITIZER})
  add_link_options(-fsanitize=${HADAL_SANITIZER})
  if(HADAL_SANITIZER MATCHES "undefined")
    # ASan sees what these three would, when it happens, and they cost a fifth of the build.
    add_compile_options(-fno-sanitize-recover=all -fno-sanitize=null,object-size,vptr)
  endif()
  if(HADAL_SANITIZER MATCHES "thread")
    add_compile_options(-Wno-tsan)
  endif()
  # GCC 12 sees uninitialised members in std::function and its own regex once they are instrumented.
  add_compile_options(-Wno-maybe-uninitialized)
  add_compile_definitions(HADAL_SANITIZED=1)
endif()

if(HADAL_FUZZ)
  add_compile_options(-O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined
    -fno-sanitize-recover=all)
  add_link_options(-fsanitize=address,undefined)
  add_compile_definitions(HADAL_SANITIZED=1)
endif()

# Every test that also runs under the sanitizers (labels unit and sanitizer), for scripts and CI.
add_custom_target(sanitizer_tests)

# hadal_reaches(OUT FILE PATTERN): whether FILE includes <PATTERN...>, itself or through headers beside it.
function(hadal_reaches out file pattern)
  get_filename_component(todo "${file}" ABSOLUTE)
  get_filename_component(folder "${todo}" DIRECTORY)
  set(seen)
  set(${out} FALSE PARENT_SCOPE)
  while(todo)
    list(POP_FRONT todo path)
    if(path IN_LIST seen OR NOT EXISTS "${path}")  # generated at build time, or another folder's
      continue()
    endif()
    list(APPEND seen "${path}")
    file(STRINGS "${path}" includes REGEX "^#include ")
    foreach(line IN LISTS includes)
      if(line MATCHES "^#include <(${pattern})")
        set(${out} TRUE PARENT_SCOPE)
        return()
      elseif(line MATCHES "^#include \"([^\"]+)\"")
        list(APPEND todo "${folder}/${CMAKE_MATCH_1}")
      endif()
    endforeach()
  endwhile()
endfunction()

# Modules in whose code tests spend their time. Under sanitizers the others are compiled without optimisation,
# in half the time.
set(hadal_hot_modules base tensor text plan sched sim ops comm weights kernels_cpu)

# hadal_lighten(FILE...): under sanitizers the templates of JSON and Boost cost most of the build. Files that
# reach them are compiled without optimisation in every module, in a third of the time; those with Boost also
# without UBSan, under which each takes minutes.
function(hadal_lighten)
  if(NOT HADAL_SANITIZER)
    return()
  endif()
  foreach(source ${ARGN})
    hadal_reaches(has_json "${source}" "nlohmann/")
    hadal_reaches(has_boost "${source}" "boost/")
    if(has_json OR has_boost)
      set_property(SOURCE "${source}" APPEND PROPERTY COMPILE_OPTIONS -O0)
    endif()
    if(has_boost AND HADAL_SANITIZER MATCHES "undefined")
      set_property(SOURCE "${source}" APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=undefined)
    endif()
  endforeach()
endfunction()

# hadal_lighten_test(TARGET): test code, all Catch2 expansions, takes half as long to compile without
# optimisation and without UBSan; what it tests keeps UBSan, and the test keeps ASan.
function(hadal_lighten_test target)
  if(HADAL_SANITIZER)
    target_compile_options(${target} PRIVATE -O0)
  endif()
  if(HADAL_SANITIZER MATCHES "undefined")
    target_compile_options(${target} PRIVATE -fno-sanitize=undefined)
  endif()
endfunction()

# hadal_add_layer(DIR): adds DIR when it has a CMakeLists.txt.
function(hadal_add_layer dir)
  if(EXISTS "${PROJECT_SOURCE_DIR}/${dir}/CMakeLists.txt")
    add_subdirectory("${PROJECT_SOURCE_DIR}/${dir}")
  endif()
endfunction()

# hadal_module(NAME SRCS a.cpp ... DEPS base ... LIBS third-party ...)
# Makes the static library hadal_NAME. DEPS are hadal modules on lower layers, LIBS stay private.
function(hadal_module name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS;LIBS" ${ARGN})
  add_library(hadal_${name} STATIC ${arg_SRCS})
  hadal_lighten(${arg_SRCS})
  if(HADAL_SANITIZER AND NOT name IN_LIST hadal_hot_modules)
    target_compile_options(hadal_${name} PRIVATE -O0)
  endif()
  target_include_directories(hadal_${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_link_libraries(hadal_${name} PUBLIC hadal_options)
  foreach(dep ${arg_DEPS})
    target_link_libraries(hadal_${name} PUBLIC hadal_${dep})
  endforeach()
  target_link_libraries(hadal_${name} PRIVATE ${arg_LIBS})
endfunction()

# hadal_test(NAME LABELS unit SRCS x_test.cpp ... DEPS text ... [PRIVATE_OF sched])
# One Catch2 executable NAME, registered with CTest under LABELS; PRIVATE_OF adds src/<module> to the include path.
# The label one_thread keeps a test that starts no thread out of TSan; e2e tests run while no other does.
function(hadal_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "LABELS;SRCS;DEPS;LIBS;PRIVATE_OF;ARGS" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  hadal_lighten_test(${name})
  if("unit" IN_LIST arg_LABELS OR "sanitizer" IN_LIST arg_LABELS)
    if(NOT (HADAL_SANITIZER MATCHES "thread" AND "one_thread" IN_LIST arg_LABELS))
      add_dependencies(sanitizer_tests ${name})
    endif()
  endif()
  target_link_libraries(${name} PRIVATE hadal_test_support ${arg_LIBS})
  foreach(dep ${arg_DEPS})
    target_link_libraries(${name} PRIVATE hadal_${dep})
  endforeach()
  foreach(module ${arg_PRIVATE_OF})
    target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/src/${module}")
  endforeach()
  add_test(NAME ${name} COMMAND ${name} ${arg_ARGS})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT})
  if("e2e" IN_LIST arg_LABELS)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL TRUE)
  endif()
endfunction()

# hadal_fuzz(NAME SRCS fuzz_x.cpp DEPS text ... [PRIVATE_OF api])
# One libFuzzer executable; part of the target fuzz_targets.
function(hadal_fuzz name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS;PRIVATE_OF" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_libraries(${name} PRIVATE hadal_options)
  foreach(dep ${arg_DEPS})
    target_link_libraries(${name} PRIVATE hadal_${dep})
  endforeach()
  foreach(module ${arg_PRIVATE_OF})
    target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/src/${module}")
  endforeach()
  add_dependencies(fuzz_targets ${name})
endfunction()
