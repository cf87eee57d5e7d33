# nlohmann-json, as the target pfdiff_json: a package of the system, else the single header of a release.
#
# Another release, or a copy on another host, is named by PFDIFF_JSON_URL and PFDIFF_JSON_SHA256; a download that does
# not have this SHA-256 is never used. The header goes where the error below says, so it may also be put there by hand.
set(PFDIFF_JSON_URL https://github.com/nlohmann/json/releases/download/v3.12.0/json.hpp CACHE STRING
    "Where json.hpp comes from when nlohmann-json is not installed")
set(PFDIFF_JSON_SHA256 aaf127c04cb31c406e5b04a63f1ae89369fccde6d8fa7cdda1ed4f32dfc5de63 CACHE STRING
    "SHA-256 of that json.hpp")
mark_as_advanced(PFDIFF_JSON_URL PFDIFF_JSON_SHA256)

# file(DOWNLOAD) and not FetchContent: a failure must be one line that says what to install, not the log of a sub-build.
function(pfdiff_download_json header)
  set(found "")
  if(EXISTS ${header})
    file(SHA256 ${header} found)
  endif()
  if(found STREQUAL PFDIFF_JSON_SHA256)
    return()
  endif()
  message(STATUS "pfdiff: nlohmann-json is not installed; downloading ${PFDIFF_JSON_URL}")
  file(DOWNLOAD ${PFDIFF_JSON_URL} ${header}.part STATUS status TLS_VERIFY ON INACTIVITY_TIMEOUT 20)
  list(GET status 0 code)
  list(GET status 1 why)
  if(code EQUAL 0)
    file(SHA256 ${header}.part found)
    if(found STREQUAL PFDIFF_JSON_SHA256)
      file(RENAME ${header}.part ${header})
      return()
    endif()
    set(why "its SHA-256 is ${found}, expected ${PFDIFF_JSON_SHA256}")
  endif()
  file(REMOVE ${header}.part)
  message(FATAL_ERROR "nlohmann-json was not found and ${PFDIFF_JSON_URL} cannot be used: ${why}; "
                      "install nlohmann-json3-dev (Debian, Ubuntu) or nlohmann-json (conda, vcpkg, Homebrew), "
                      "or put json.hpp at ${header}")
endfunction()

add_library(pfdiff_json INTERFACE)
find_package(nlohmann_json 3.9 QUIET)
if(nlohmann_json_FOUND)
  target_link_libraries(pfdiff_json INTERFACE nlohmann_json::nlohmann_json)
  message(STATUS "pfdiff: nlohmann-json ${nlohmann_json_VERSION} of the system")
else()
  pfdiff_download_json(${PROJECT_BINARY_DIR}/nlohmann-json/nlohmann/json.hpp)
  target_include_directories(pfdiff_json SYSTEM INTERFACE ${PROJECT_BINARY_DIR}/nlohmann-json)
endif()
