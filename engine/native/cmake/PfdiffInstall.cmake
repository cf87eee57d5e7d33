# cmake --install: libraries, headers, pfdiff-run and the package for find_package(pfdiff).
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/pfdiff)
install(TARGETS ${PFDIFF_TARGETS} EXPORT pfdiffTargets PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS pfdiff-run)
install(EXPORT pfdiffTargets NAMESPACE pfdiff:: DESTINATION ${package_folder})

# A static library brings its needs along; a shared one has them inside.
foreach(part cuda tensorrt)
  string(TOUPPER ${part} name)
  set(PFDIFF_NEEDS_${name} FALSE)
  if(TARGET pfdiff_${part} AND NOT BUILD_SHARED_LIBS)
    set(PFDIFF_NEEDS_${name} TRUE)
  endif()
endforeach()
configure_package_config_file(engine/native/cmake/pfdiffConfig.cmake.in pfdiffConfig.cmake
                              INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(pfdiffConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/pfdiffConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/pfdiffConfigVersion.cmake
              engine/native/cmake/FindTensorRT.cmake
        DESTINATION ${package_folder})
