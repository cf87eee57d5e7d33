#include "directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "error.h"
#include "sha256.h"

namespace pfdiff {
namespace {

int open_retrying(int parent, const char* name, int flags) {
    int number;
    do number = ::openat(parent, name, flags | O_RDONLY | O_CLOEXEC);
    while (number < 0 && errno == EINTR);
    return number;
}

std::size_t read_some(int descriptor, char* into, std::size_t size, const std::string& name) {
    ssize_t got;
    do got = ::read(descriptor, into, size);
    while (got < 0 && errno == EINTR);
    if (got < 0) throw file_error(quoted(name) + " cannot be read: " + std::strerror(errno));
    return static_cast<std::size_t>(got);
}

}  // namespace

Descriptor::~Descriptor() {
    if (number_ >= 0) ::close(number_);
}

Directory::Directory(std::string path)
    : path_(std::move(path)), descriptor_(open_retrying(AT_FDCWD, path_.c_str(), O_DIRECTORY)) {
    if (descriptor_.get() < 0)
        throw file_error("engine " + quoted(path_) + ": " + std::strerror(errno) +
                         "; give a directory that `pfdiff build` wrote");
}

void Directory::check_name(const std::string& name) {
    bool plain = !name.empty() && name.size() <= 1024 && name.find('\0') == std::string::npos &&
                 name.find('\\') == std::string::npos && name.find(':') == std::string::npos;
    for (std::size_t start = 0; plain && start <= name.size();) {
        const auto end = std::min(name.find('/', start), name.size());
        const auto part = name.substr(start, end - start);
        plain = !part.empty() && part != "." && part != "..";
        start = end + 1;
    }
    if (!plain)
        throw file_error("engine.json names the file " + quoted(name) +
                         ", expected a name inside the directory; do not trust this engine");
}

Descriptor Directory::open(const std::string& name, std::uint64_t& bytes) const {
    check_name(name);
    const auto fail = [&](const std::string& why) { throw file_error("engine " + quoted(path_) + ": " + why); };
    std::vector<Descriptor> folders;
    std::size_t start = 0;
    for (auto slash = name.find('/'); slash != std::string::npos; slash = name.find('/', start)) {
        const int parent = folders.empty() ? descriptor_.get() : folders.back().get();
        folders.emplace_back(
            open_retrying(parent, name.substr(start, slash - start).c_str(), O_DIRECTORY | O_NOFOLLOW));
        if (folders.back().get() < 0)
            fail("the folder of " + quoted(name) + " cannot be opened: " + std::strerror(errno));
        start = slash + 1;
    }
    // O_NONBLOCK: a named pipe would otherwise wait for a writer for ever.
    Descriptor file(open_retrying(folders.empty() ? descriptor_.get() : folders.back().get(), name.c_str() + start,
                                  O_NOFOLLOW | O_NONBLOCK));
    if (file.get() < 0) {
        if (errno == ELOOP) fail(quoted(name) + " is a symbolic link, expected a file; copy the file itself");
        fail(quoted(name) + " cannot be opened: " + std::strerror(errno) + "; rebuild the engine or copy it again");
    }
    struct stat status {};
    if (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) fail(quoted(name) + " is no regular file");
    bytes = static_cast<std::uint64_t>(status.st_size);
    return file;
}

std::string Directory::read(const std::string& name, std::uint64_t largest_bytes) const {
    std::uint64_t bytes = 0;
    const auto file = open(name, bytes);
    if (bytes > largest_bytes)
        throw file_error(quoted(name) + " has " + std::to_string(bytes) + " bytes, expected at most " +
                         std::to_string(largest_bytes));
    std::string content(bytes, '\0');
    std::size_t filled = 0;
    while (filled < content.size()) {
        const auto got = read_some(file.get(), content.data() + filled, content.size() - filled, name);
        if (got == 0) break;  // truncated since fstat: what is missing shows as invalid content
        filled += got;
    }
    content.resize(filled);
    return content;
}

void Directory::verify(const std::string& name, std::uint64_t bytes, const std::string& sha256) const {
    std::uint64_t found = 0;
    const auto file = open(name, found);
    const auto advice = "; the file was changed or not copied whole: rebuild the engine or copy it again";
    if (found != bytes)
        throw file_error(quoted(name) + " has " + std::to_string(found) + " bytes, expected " + std::to_string(bytes) +
                         advice);
    Sha256 hash;
    std::vector<char> buffer(std::min<std::uint64_t>(bytes, 1 << 20));
    for (std::uint64_t left = bytes; left > 0;) {
        const auto got = read_some(file.get(), buffer.data(), std::min<std::uint64_t>(left, buffer.size()), name);
        if (got == 0) break;
        hash.update(buffer.data(), got);
        left -= got;
    }
    if (const auto digest = hash.finish(); digest != sha256)
        throw file_error(quoted(name) + " has SHA-256 " + digest.substr(0, 12) + "..., expected " +
                         sha256.substr(0, 12) + "..." + advice);
}

}  // namespace pfdiff
