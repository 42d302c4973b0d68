# Shaders: each line of shaders/variants.txt, `MODULE SOURCE.comp -DNAME=VALUE ...`, becomes one
# SPIR-V module that the library carries. glslangValidator writes a module as a C array; one table
# lists them all (backend/vulkan/shaders.h declares it). A module is compiled again only when a
# file that it includes has changed (dependency files).
set(shader_dir ${PROJECT_BINARY_DIR}/shaders)
set(kiln_shader_sources ${shader_dir}/shaders.c)
file(MAKE_DIRECTORY ${shader_dir})
set(variants_file ${PROJECT_SOURCE_DIR}/shaders/variants.txt)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${variants_file})
file(STRINGS ${variants_file} lines)

set(includes "")
set(rows "")
set(headers "")
set(count 0)
foreach(line IN LISTS lines)
    string(REGEX REPLACE "#.*" "" line "${line}")
    string(STRIP "${line}" line)
    if(line STREQUAL "")
        continue()
    endif()
    separate_arguments(words UNIX_COMMAND "${line}")
    list(POP_FRONT words module source)
    set(source ${PROJECT_SOURCE_DIR}/shaders/${source})
    set(header ${shader_dir}/${module}.h)
    if(NOT module MATCHES "^[a-zA-Z_][a-zA-Z0-9_]*$" OR NOT EXISTS ${source})
        message(FATAL_ERROR "shaders/variants.txt: expected `MODULE SOURCE.comp -D...`, found: ${line}")
    endif()
    if(header IN_LIST headers)
        message(FATAL_ERROR "shaders/variants.txt: module ${module} is listed twice")
    endif()
    add_custom_command(OUTPUT ${header}
        COMMAND ${GLSLANG_VALIDATOR} --quiet -V --target-env vulkan1.2 -S comp
            -I${PROJECT_SOURCE_DIR}/shaders -I${PROJECT_SOURCE_DIR}/backend/ops
            -I${PROJECT_SOURCE_DIR} ${words} --depfile ${header}.d
            --vn spirv_${module} -o ${header} ${source}
        DEPENDS ${source} ${variants_file} DEPFILE ${header}.d
        COMMENT "Shader ${module}" VERBATIM)
    list(APPEND headers ${header})
    string(APPEND includes "#include \"${module}.h\"\n")
    string(APPEND rows
        "    {\"${module}\", spirv_${module}, COUNT_OF(spirv_${module})},\n")
    math(EXPR count "${count} + 1")
endforeach()

file(CONFIGURE OUTPUT ${shader_dir}/shaders.c @ONLY CONTENT
"// Made by cmake/shaders.cmake from shaders/variants.txt.
#include \"backend/base.h\"
#include \"backend/vulkan/shaders.h\"
@includes@
const KilnShader kiln_shaders[] = {
@rows@};
const unsigned kiln_shader_count = @count@;
")
set_source_files_properties(${shader_dir}/shaders.c PROPERTIES OBJECT_DEPENDS "${headers}")
message(STATUS "shaders: ${count} modules")
