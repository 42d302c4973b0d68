# cmake --install: program, libraries, the public header, package files, models, manual page.
include(CMakePackageConfigHelpers)
if(TARGET kiln)
    install(TARGETS kiln RUNTIME)
endif()
install(TARGETS kiln_static ARCHIVE)
install(TARGETS kiln_shared EXPORT kiln-targets LIBRARY
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT kiln-targets NAMESPACE kiln:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kiln)
if(EXISTS ${PROJECT_SOURCE_DIR}/engine/kiln.h)
    install(FILES engine/kiln.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
endif()
file(GLOB weights CONFIGURE_DEPENDS models/weights/*.safetensors)
install(FILES ${weights} DESTINATION ${CMAKE_INSTALL_DATADIR}/kiln/models)
file(GLOB man CONFIGURE_DEPENDS tools/kiln.1)
install(FILES ${man} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)

# Static linking needs the dependencies too: pkg-config --static lists them.
set(private_libraries "-lm -lpthread -ldl")
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
