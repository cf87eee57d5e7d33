// SHA-256 (FIPS 180-4), for the hashes of engine.json. Eighty lines instead of a dependency on a crypto library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace pfdiff {

class Sha256 final {
   public:
    void update(const void* data, std::size_t size);
    // The digest in lower-case hex; the object is used up.
    std::string finish();

   private:
    void compress(const unsigned char* block);

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> block_{};
    std::uint64_t bytes_ = 0;
};

}  // namespace pfdiff
