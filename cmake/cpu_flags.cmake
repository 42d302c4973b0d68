# Floating point. Contraction (a*b+c rounded once) would make results depend on the compiler, so
# it is off everywhere but in the fast CPU rows, which are checked against limits, not bits.
#
# Instruction sets. Files named for one are compiled for it and called only where the processor
# has it (the dispatchers, backend/cpu/cpu.c and backend/exact.c, ask at run time); everything else
# is plain x86-64.
function(kiln_cpu_flags target)
    check_c_compiler_flag("-mavx512bf16" HAVE_FLAG_AVX512BF16)
    set(avx2 -mavx2 -mfma -mf16c)
    set(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c)
    set(bf16 ${avx512})
    if(HAVE_FLAG_AVX512BF16)
        list(APPEND bf16 -mavx512bf16)
        target_compile_definitions(${target} PRIVATE HAVE_AVX512_BF16=1)
    endif()
    foreach(file ${ARGN})
        set(flags -ffp-contract=off)
        if(file MATCHES "backend/cpu/fast/")
            set(flags -ffp-contract=fast)
        endif()
        if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
            if(file MATCHES "_avx2\\.c$")
                list(APPEND flags ${avx2})
            elseif(file MATCHES "_avx512\\.c$")
                list(APPEND flags ${avx512})
            elseif(file MATCHES "backend/cpu/fast/.*_bf16\\.c$")
                list(APPEND flags ${bf16})
            endif()
        endif()
        set_property(SOURCE ${file} APPEND PROPERTY COMPILE_OPTIONS ${flags})
    endforeach()
endfunction()
