# cmake --install: program, libraries, the public header, package files, models, manual page.
include(CMakePackageConfigHelpers)
install(TARGETS kiln RUNTIME)
install(TARGETS kiln_static ARCHIVE)
install(TARGETS kiln_shared EXPORT kiln-targets LIBRARY
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT kiln-targets NAMESPACE kiln:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kiln)
install(FILES engine/kiln.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
file(GLOB weights CONFIGURE_DEPENDS models/weights/*.safetensors)
install(FILES ${weights} DESTINATION ${CMAKE_INSTALL_DATADIR}/kiln/models)
# The program writes its own manual page, from the tables that parse its options.
if(NOT CMAKE_CROSSCOMPILING)
    add_custom_command(TARGET kiln POST_BUILD VERBATIM
        COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:kiln> -DPAGE=${PROJECT_BINARY_DIR}/kiln.1
            -P ${PROJECT_SOURCE_DIR}/cmake/manual.cmake)
    install(FILES ${PROJECT_BINARY_DIR}/kiln.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()

# Static linking needs the dependencies too: pkg-config --static lists them.
# Not OpenBLAS's own list: it asks for Fortran's library, which only a static OpenBLAS would use.
list(JOIN OPENBLAS_LDFLAGS " " openblas)
set(private_libraries "${openblas} -lm -lpthread -ldl")
if(KILN_HAVE_ONEDNN)
    string(APPEND private_libraries " -ldnnl")
endif()
if(HAVE_GOMP)
    string(APPEND private_libraries " -lgomp")
endif()
configure_file(cmake/kiln.pc.in kiln.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kiln.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
configure_package_config_file(cmake/kiln-config.cmake.in kiln-config.cmake
    INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kiln)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kiln-config-version.cmake
    COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kiln-config.cmake ${PROJECT_BINARY_DIR}/kiln-config-version.cmake
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kiln)
