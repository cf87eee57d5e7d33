// Reading files beneath one directory and nowhere else.
//
// A name comes from engine.json, which may have been written by anybody. Each component is opened relative to its
// parent's descriptor without following symbolic links, so no check can be raced and nothing outside is reached.
#pragma once

#include <cstdint>
#include <string>

namespace pfdiff {

class Descriptor final {
   public:
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    Descriptor& operator=(Descriptor&&) = delete;
    ~Descriptor();
    int get() const { return number_; }

   private:
    int number_;
};

class Directory final {
   public:
    // Throws Error (PFD_ENGINE_FILE_ERROR) when `path` is no directory that can be read.
    explicit Directory(std::string path);

    const std::string& path() const { return path_; }
    std::string read(const std::string& name, std::uint64_t largest_bytes) const;
    // Throws unless the file has this size and this SHA-256 (64 lower-case hex digits).
    void verify(const std::string& name, std::uint64_t bytes, const std::string& sha256) const;
    // An open regular file and its size. Opening never waits and never follows a link.
    Descriptor open(const std::string& name, std::uint64_t& bytes) const;
    // Throws unless `name` is relative, of plain components with '/' between them.
    static void check_name(const std::string& name);

   private:
    std::string path_;
    Descriptor descriptor_;
};

}  // namespace pfdiff
