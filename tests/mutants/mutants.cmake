# The mutants: programs mutants_ref, mutants_cpu and mutants_vulkan, each the conformance driver with
# kernels spoiled as mutants.txt says, linked in place of the library's (or, for ref, beside them).
set(mutant_table ${PROJECT_SOURCE_DIR}/tests/mutants/mutants.txt)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${mutant_table})
add_executable(mutate tests/mutants/mutate.c)
target_link_libraries(mutate PRIVATE kiln_flags kiln_static)

# Files and names of a set, in the table's order.
function(mutant_lists set names_out files_out)
    file(STRINGS ${mutant_table} lines REGEX "^(\\[|set |file )")
    foreach(line IN LISTS lines)
        if(line MATCHES "^\\[(.*)\\]")
            set(name ${CMAKE_MATCH_1})
        elseif(line MATCHES "^set (.*)")
            set(its ${CMAKE_MATCH_1})
        elseif(line MATCHES "^file (.*)" AND its STREQUAL set)
            list(APPEND names ${name})
            list(APPEND files ${CMAKE_MATCH_1})
        endif()
    endforeach()
    list(REMOVE_DUPLICATES files)
    set(${names_out} ${names} PARENT_SCOPE)
    set(${files_out} ${files} PARENT_SCOPE)
endfunction()

function(mutant_program set outputs files)
    set(dir ${PROJECT_BINARY_DIR}/mutants/${set})
    list(TRANSFORM files PREPEND ${PROJECT_SOURCE_DIR}/ OUTPUT_VARIABLE sources)
    list(TRANSFORM outputs PREPEND ${dir}/)
    add_custom_command(OUTPUT ${dir}/${set}.h ${outputs}
        COMMAND mutate ${mutant_table} ${PROJECT_SOURCE_DIR} ${dir} ${set}
        DEPENDS mutate ${mutant_table} ${sources} COMMENT "Mutants of ${set}" VERBATIM)
    add_executable(mutants_${set} tests/mutants/mutants.c ${dir}/${set}.h ${ARGN} ${conform_objects})
    target_include_directories(mutants_${set} BEFORE PRIVATE ${dir})
    target_link_libraries(mutants_${set} PRIVATE kiln_flags kiln_static)
    target_compile_definitions(mutants_${set} PRIVATE MUTANT_SET="${set}" MUTANT_TABLE="${set}.h")
    set_target_properties(mutants_${set} PROPERTIES
        RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
    add_test(NAME mutants_${set} COMMAND mutants_${set} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    kiln_test_properties(mutants_${set} unit)
endfunction()

mutant_lists(ref names files)
list(TRANSFORM names APPEND .c OUTPUT_VARIABLE copies)
list(TRANSFORM copies PREPEND ${PROJECT_BINARY_DIR}/mutants/ref/ OUTPUT_VARIABLE sources)
mutant_program(ref "${copies}" "${files}" ${sources})
target_compile_definitions(mutants_ref PRIVATE MUTANT_KERNELS=1)

# The fast rows, compiled again: their headers are found in the folder of copies first.
mutant_lists(cpu names files)
set(sources "")
foreach(isa plain avx2 avx512)
    if(EXISTS ${PROJECT_SOURCE_DIR}/backend/cpu/fast/simd_${isa}.c)
        list(APPEND sources ${PROJECT_SOURCE_DIR}/backend/cpu/fast/simd_${isa}.c)
    endif()
endforeach()
if(sources AND names)
    mutant_program(cpu "${files}" "${files}" ${sources})
endif()

# The shaders: modules of spoiled sources compiled again, in a table of their own that is linked
# before the library's; all other modules are the library's.
if(KILN_HAVE_VULKAN AND kiln_shader_sources)
    mutant_lists(vulkan names files)
    set(dir ${PROJECT_BINARY_DIR}/mutants/vulkan)
    file(MAKE_DIRECTORY ${dir})
    file(STRINGS ${variants_file} lines)
    set(modules "")
    foreach(line IN LISTS lines)
        string(REGEX REPLACE "#.*" "" line "${line}")
        separate_arguments(words UNIX_COMMAND "${line}")
        if(NOT words)
            continue()
        endif()
        list(POP_FRONT words module source)
        if(NOT shaders/${source} IN_LIST files)
            continue()
        endif()
        add_custom_command(OUTPUT ${dir}/${module}.h
            COMMAND ${GLSLANG_VALIDATOR} --quiet -V --target-env vulkan1.2 -S comp
                -I${PROJECT_SOURCE_DIR}/shaders -I${PROJECT_SOURCE_DIR}/backend/ops
                -I${PROJECT_SOURCE_DIR} ${words}
                --vn spirv_${module} -o ${dir}/${module}.h ${dir}/shaders/${source}
            DEPENDS ${dir}/shaders/${source} ${shader_dir}/${module}.h ${variants_file}
            COMMENT "Mutant shader ${module}" VERBATIM)
        list(APPEND modules ${dir}/${module}.h)
    endforeach()
    configure_file(${shader_dir}/shaders.c ${dir}/shaders.c COPYONLY)
    set_source_files_properties(${dir}/shaders.c PROPERTIES OBJECT_DEPENDS "${modules}")
    mutant_program(vulkan "${files}" "${files}" ${dir}/shaders.c)
    target_include_directories(mutants_vulkan PRIVATE ${shader_dir})
    add_dependencies(mutants_vulkan kiln_static)
endif()
