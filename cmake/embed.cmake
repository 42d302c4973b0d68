# kiln_embed(OUT NAME FILE): a data file as a C array. Adds to the list OUT a source that defines
# `const unsigned char kiln_data_NAME[]` and `const size_t kiln_data_NAME_size`; it is made again
# when the file changes. Run as a script (-DNAME= -DIN= -DTO=) this file writes that source.
if(CMAKE_SCRIPT_MODE_FILE)
    file(READ ${IN} hex HEX)
    string(LENGTH "${hex}" size)
    math(EXPR size "${size} / 2")
    string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
    file(WRITE ${TO} "// Made by cmake/embed.cmake.\n#include <stddef.h>\n"
        "extern const unsigned char kiln_data_${NAME}[];\n"
        "extern const size_t kiln_data_${NAME}_size;\n"
        "const unsigned char kiln_data_${NAME}[] = {${bytes}};\n"
        "const size_t kiln_data_${NAME}_size = ${size};\n")
    return()
endif()

set(kiln_embed_script ${CMAKE_CURRENT_LIST_FILE})
function(kiln_embed out name file)
    set(to ${PROJECT_BINARY_DIR}/embed/${name}.c)
    add_custom_command(OUTPUT ${to}
        COMMAND ${CMAKE_COMMAND} -DNAME=${name} -DIN=${file} -DTO=${to} -P ${kiln_embed_script}
        DEPENDS ${file} ${kiln_embed_script} COMMENT "Embedding ${name}" VERBATIM)
    list(APPEND ${out} ${to})
    set(${out} ${${out}} PARENT_SCOPE)
endfunction()
