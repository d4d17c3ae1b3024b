// The arithmetic of 8-bit integers as a table of functions, which integers.cpp fills once for each instruction set.
#pragma once

#include "kernels.hpp"

namespace vgg {

// Convolutions as products of bytes, where the processor multiplies matrices of them.
struct Bytes {
    // Input channels that are multiplied at a time, of which the map has a multiple; 0 if there is no such product.
    int depth = 0;
    // Weights [out, in, area] without zero points -> [out / panel, area, padded in, panel].
    void (*weights)(const Filters &from, int out, int in, int area, float *to) = nullptr;
    // `count` pixels of an image row -> channels from `channel` on of pixels that are `to_stride` floats apart. Pixels are
    // `pixel` bytes apart, and their inputs at `taps` from them. Reads up to SLACK pixels more.
    void (*rows)(const std::uint8_t *from, std::ptrdiff_t pixel, int count, const std::ptrdiff_t *taps, int area, int in,
                 const float *weights, const Finish &finish, int channel, float *to, std::ptrdiff_t to_stride) = nullptr;
    static constexpr int SLACK = 32;
};

struct Integers {
    Convolution winograd;  // F(4x4, 3x3)
    // Weights [out, in, area] -> [out / panel, area * words, panel] with (in + 1) / 2 words of two channels.
    void (*plain_weights)(const Filters &from, int out, int in, int area, float *to);
    // Bytes as words of two channels.
    void (*widen)(const std::uint8_t *from, std::ptrdiff_t count, float *to);
    // Pixels of an image row, in words, times a panel -> channels from `channel` on of pixels that are `to_stride` floats
    // apart.
    void (*direct)(const Pixels &pixels, int count, int k, const float *panel, const Finish &finish, int channel, float *to,
                   std::ptrdiff_t to_stride);
    Bytes bytes;
    // `count` rows of inputs times rows `first` to `last` of an int8 matrix -> sums [count, outputs].
    void (*linear)(const Matrix &matrix, std::int64_t first, std::int64_t last, const std::uint8_t *inputs, std::int64_t count,
                   std::int32_t *to);
    void (*quantize)(const float *from, std::ptrdiff_t count, float scale, int zero, std::uint8_t *to);
    // The maximum of 2x2 pixels for a row of `width` outputs; `row` is in bytes.
    void (*max_pool)(const std::uint8_t *upper, std::ptrdiff_t row, int channels, int width, std::uint8_t *to);
};

}  // namespace vgg
