# Tests. tests/test_NAME.c is one cmocka program, tests/test_NAME.sh one script,
# tests/fuzz_NAME.c one libFuzzer target with its seeds in tests/corpus/NAME. All run in the source
# folder; KILN names the program for scripts; a script that exits with 77 is skipped.
enable_testing()
pkg_check_modules(CMOCKA QUIET IMPORTED_TARGET cmocka)

# gcc 13 and 14, which look for use after return by default, misplace 64-byte stack objects of
# functions that do (GCC bug 110027): AVX-512 code then fails where nothing is wrong.
set(asan_options "halt_on_error=1")
if(CMAKE_C_COMPILER_ID STREQUAL GNU)
    string(APPEND asan_options ":detect_stack_use_after_return=0")
endif()

function(kiln_test_properties name label)
    set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT 1200 SKIP_RETURN_CODE 77
        ENVIRONMENT "ASAN_OPTIONS=${asan_options};KILN=${PROJECT_BINARY_DIR}/kiln;\
KILN_BUILD=${PROJECT_BINARY_DIR};\
UBSAN_OPTIONS=print_stacktrace=1;CMOCKA_MESSAGE_OUTPUT=stdout")
endfunction()

if(KILN_FUZZ)
    file(GLOB fuzz_sources CONFIGURE_DEPENDS tests/fuzz_*.c)
    set(KILN_FUZZ_RUNS 20000 CACHE STRING "inputs per fuzz target in the tests")
    foreach(source ${fuzz_sources})
        get_filename_component(name ${source} NAME_WE)
        string(REPLACE fuzz_ "" short ${name})
        add_executable(${name} ${source})
        target_link_libraries(${name} PRIVATE kiln_flags kiln_static)
        target_link_options(${name} PRIVATE -fsanitize=fuzzer)
        file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/corpus/${short}) # new inputs land here
        set(seeds "")
        if(EXISTS ${PROJECT_SOURCE_DIR}/tests/corpus/${short})
            set(seeds ${PROJECT_SOURCE_DIR}/tests/corpus/${short})
        endif()
        add_test(NAME ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
            COMMAND ${name} -runs=${KILN_FUZZ_RUNS} -seed=1 -timeout=20 -rss_limit_mb=2048
                -max_total_time=60 -artifact_prefix=${PROJECT_BINARY_DIR}/
                ${PROJECT_BINARY_DIR}/corpus/${short} ${seeds})
        kiln_test_properties(${name} fuzz)
    endforeach()
    return()
endif()

if(NOT CMOCKA_FOUND)
    message(STATUS "tests: cmocka not found (libcmocka-dev), unit tests not built")
    return()
endif()
file(GLOB test_sources CONFIGURE_DEPENDS tests/test_*.c)
foreach(source ${test_sources})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source} ${conform_objects})
    target_link_libraries(${name} PRIVATE kiln_flags kiln_static PkgConfig::CMOCKA)
    target_compile_definitions(${name} PRIVATE KILN_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
    add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    kiln_test_properties(${name} unit)
endforeach()
# Models on Vulkan once more, under the validation layers (which leak memory of their own).
foreach(model clip t5 flux vae)
    add_test(NAME layers_${model} COMMAND test_${model} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    kiln_test_properties(layers_${model} unit)
    set_property(TEST layers_${model} APPEND PROPERTY ENVIRONMENT
        "KILN_TEST_VALIDATE=1;ASAN_OPTIONS=${asan_options}:detect_leaks=0")
endforeach()
# And on subgroups of 4 and 16: Mesa's software driver can be told how wide its vectors are. No row for
# drivers on the CPU takes a call then, so that these run the rows for GPUs (a GPU ignores it).
foreach(width 128 512)
    foreach(model clip t5 flux)
        set(name subgroups_${width}_${model})
        add_test(NAME ${name} COMMAND test_${model} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
        kiln_test_properties(${name} unit)
        set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT LP_NATIVE_VECTOR_WIDTH=${width})
    endforeach()
endforeach()
file(GLOB test_scripts CONFIGURE_DEPENDS tests/test_*.sh)
foreach(script ${test_scripts})
    get_filename_component(name ${script} NAME_WE)
    add_test(NAME ${name} COMMAND bash ${script} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    kiln_test_properties(${name} script)
endforeach()

# Does the conformance driver notice a spoiled kernel?
include(tests/mutants/mutants.cmake)
