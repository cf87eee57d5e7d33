// pfdiff-run --pixels: samples become the pictures that they show, decoded where the engine has a decoder.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "options.h"
#include "pfdiff.h"

namespace pfdiff::run {

struct PixelMaker {
    std::vector<std::int64_t> shape;  // of one picture: height, width, channels, or of a video frames before them
    // Appends the pictures of samples [batch][elements] to `pixels`.
    std::function<void(const float* samples, std::int64_t batch, std::vector<std::uint8_t>& pixels)> add;
};

// Throws Error when samples are no pictures, or need a decoder that nothing here runs.
PixelMaker pixel_maker(const pfd_engine_t* engine, const pfd_contract_view_t& contract, const Options& options);

}  // namespace pfdiff::run
