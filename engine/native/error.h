// Errors inside the library are exceptions of one type; `guarded` turns them into a status at the C boundary.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "pfdiff.h"

namespace pfdiff {

class Error final : public std::exception {
   public:
    Error(pfd_status_t status, std::string message) : status_(status), message_(std::move(message)) {}
    pfd_status_t status() const noexcept { return status_; }
    const char* what() const noexcept override { return message_.c_str(); }

   private:
    pfd_status_t status_;
    std::string message_;
};

inline Error input_error(std::string message) { return {PFD_INPUT_ERROR, std::move(message)}; }
inline Error file_error(std::string message) { return {PFD_ENGINE_FILE_ERROR, std::move(message)}; }
inline Error backend_error(std::string message) { return {PFD_BACKEND_ERROR, std::move(message)}; }

// A text of others as it may stand in a one-line message: at most `longest` bytes, then "..."; control characters,
// marks that turn the writing direction and bytes that are no UTF-8 are written as \x1b or \u202e.
std::string printable(std::string_view text, std::size_t longest);

// `printable` in quotes, at most 60 bytes: a name or a value from a file.
std::string quoted(std::string_view text);

// The shortest decimal that reads back as this number.
std::string decimal(double number);

// What a network callback said of its failure; emptied by reading it.
std::string take_callback_error();

// Keeps the message for pfd_last_error of this thread, as one printable line of less than 300 bytes. Public so that the
// adapter libraries report the same way.
pfd_status_t record_error(pfd_status_t status, const char* message) noexcept;

template <class Body>
pfd_status_t guarded(Body&& body) noexcept {
    try {
        std::forward<Body>(body)();
        return PFD_OK;
    } catch (const Error& error) {
        return record_error(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return record_error(PFD_OUT_OF_MEMORY, "out of memory; sample a smaller batch");
    } catch (const std::exception& error) {
        return record_error(PFD_INTERNAL_ERROR, error.what());
    } catch (...) {
        return record_error(PFD_INTERNAL_ERROR, "an unknown exception; please report it");
    }
}

}  // namespace pfdiff
