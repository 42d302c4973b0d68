# Packages of the system that Kiln uses. Defines the interface target kiln_dependencies, and
# KILN_HAVE_VULKAN, KILN_HAVE_ONEDNN. tools/setup lists the packages that hold them.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(ZLIB REQUIRED)
find_package(JPEG REQUIRED)

function(kiln_require prefix module package)
    pkg_check_modules(${prefix} QUIET IMPORTED_TARGET GLOBAL ${module})
    if(NOT ${prefix}_FOUND)
        message(FATAL_ERROR "${module}: not found; install ${package} (tools/setup does)")
    endif()
endfunction()
kiln_require(SPNG spng libspng-dev)
kiln_require(CJSON libcjson libcjson-dev)
kiln_require(OPENBLAS openblas libopenblas-dev)

add_library(kiln_dependencies INTERFACE)
target_link_libraries(kiln_dependencies INTERFACE
    PkgConfig::SPNG PkgConfig::CJSON PkgConfig::OPENBLAS JPEG::JPEG ZLIB::ZLIB
    Threads::Threads m ${CMAKE_DL_LIBS})
# The .pc file gives <cJSON.h> on some systems and <cjson/cJSON.h> on others: allow the latter.
target_compile_definitions(kiln_dependencies INTERFACE HAVE_OPENBLAS=1)

# oneDNN: optional; a second choice of matrix products and convolutions.
find_path(ONEDNN_INCLUDE oneapi/dnnl/dnnl.h)
find_library(ONEDNN_LIBRARY dnnl)
if(ONEDNN_INCLUDE AND ONEDNN_LIBRARY)
    set(KILN_HAVE_ONEDNN ON)
    target_link_libraries(kiln_dependencies INTERFACE ${ONEDNN_LIBRARY})
    target_compile_definitions(kiln_dependencies INTERFACE HAVE_ONEDNN=1)
    message(STATUS "oneDNN: ${ONEDNN_LIBRARY}")
    # Debian's oneDNN runs on GNU OpenMP: Kiln asks it for single-threaded calls from its own threads.
    include(CheckLibraryExists)
    check_library_exists(gomp omp_set_num_threads "" HAVE_GOMP)
    if(HAVE_GOMP)
        target_link_libraries(kiln_dependencies INTERFACE gomp)
        target_compile_definitions(kiln_dependencies INTERFACE HAVE_GOMP=1)
    endif()
else()
    message(STATUS "oneDNN: not found (libdnnl-dev), built without")
endif()

# Vulkan: headers and volk (which loads the driver's library at run time; nothing is linked).
if(KILN_VULKAN)
    find_path(VULKAN_INCLUDE vulkan/vulkan.h)
    find_path(VOLK_INCLUDE volk.h PATH_SUFFIXES volk Volk)
    find_program(GLSLANG_VALIDATOR NAMES glslangValidator glslang)
    set(missing "")
    foreach(part VULKAN_INCLUDE VOLK_INCLUDE GLSLANG_VALIDATOR)
        if(NOT ${part})
            string(APPEND missing " ${part}")
        endif()
    endforeach()
    if(missing)
        message(STATUS "Vulkan: built without; missing${missing} "
                       "(libvulkan-dev libvulkan-volk-dev glslang-tools)")
    else()
        set(KILN_HAVE_VULKAN ON)
        message(STATUS "Vulkan: ${GLSLANG_VALIDATOR}, ${VOLK_INCLUDE}/volk.h")
        target_include_directories(kiln_dependencies INTERFACE ${VULKAN_INCLUDE} ${VOLK_INCLUDE})
        target_compile_definitions(kiln_dependencies INTERFACE KILN_VULKAN=1)
    endif()
endif()
