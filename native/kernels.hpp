// What an instruction set has to offer: one table of functions each, filled by kernels.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vgg {

// How numbers are stored, as vgg.engines.native numbers them.
enum Kind : int { FLOAT32, FLOAT16, BFLOAT16, INT8, INT4 };

// A matrix of a linear layer, used where it lies: [outputs, inputs], row after row, any alignment.
struct Matrix {
    const void *values;
    Kind kind;
    const float *scale;  // of INT8 and INT4: [outputs, inputs / group]
    std::int64_t outputs, inputs, group;
};

// A convolution's weights [out, in, kernel, kernel]: float32, or int8 where each output channel has a scale. Any alignment.
struct Filters {
    const void *values;
    const float *scale;
};

// Pixels of one line as rows of a matrix: the element (row, k) is at data[row * stride + offsets[k]].
struct Pixels {
    const float *data;
    std::ptrdiff_t stride;
    const std::int32_t *offsets;
};

// `count` rows of a matrix cut into blocks of nearly the same height, `most` at most.
struct Blocks {
    int count, number;
    Blocks(int count, int most) : count(count), number((count + most - 1) / most) {}
    int first(int block) const { return count * block / number; }
    int of(int row) const { return ((row + 1) * number - 1) / count; }
};

struct Kernels {
    const char *name;
    int rows;   // of a product that are computed together, at most
    int panel;  // output channels that are computed together; channels are padded to a multiple of it
    int lanes;  // floats in a vector
    int few;    // rows of inputs that a matrix is multiplied with as they are; more of them are turned into panels first

    // Weights [out, in, 3, 3] -> [(tile + 2)^2, out / panel, in, panel] for F(tile x tile), panels `first` to `last`.
    void (*winograd_weights)(int tile, const Filters &from, int out, int in, int first, int last, float *to);
    // Weights [out, k] -> [out / panel, k, panel].
    void (*plain_weights)(const Filters &from, int out, int k, float *to);
    // A tile's patch, (tile + 2)^2 pixels of `channels`, `row` and `pixel` floats apart -> (tile + 2)^2 positions, each
    // [channels / lanes, lanes] with `stride` from vector to vector. The patch to the right of it is fetched ahead.
    void (*winograd_input)(int tile, const float *from, std::ptrdiff_t row, std::ptrdiff_t pixel, int channels, float *to,
                           std::ptrdiff_t position, std::ptrdiff_t stride);
    // (tile + 2)^2 positions -> `height` x `width` pixels with bias and ReLU; with `pool`, half of that, the larger of 2x2.
    // Where the tile to the right of it goes is fetched ahead. Pixels begin at multiples of a vector's size.
    void (*winograd_output)(int tile, const float *from, std::ptrdiff_t position, const float *bias, int channels, bool pool,
                            int height, int width, float *to, std::ptrdiff_t row, std::ptrdiff_t pixel);
    // Rows of `k` floats times a panel -> `panel` sums a row, `to_stride` apart. `next` is fetched ahead. The rows lie as they
    // are read: block by block, `stride` floats a row, each block [k / lanes, height, lanes].
    void (*product)(const float *rows, std::ptrdiff_t stride, int count, int k, const float *panel, const float *next, float *to,
                    std::ptrdiff_t to_stride);
    // The same for the pixels of a line, with bias and ReLU.
    void (*convolution)(const Pixels &pixels, int count, int k, const float *panel, const float *bias, float *to,
                        std::ptrdiff_t to_stride);
    // Columns `begin` to `end` of rows [count, k] as panels [count / panel, k, panel]; of a last panel, as many as fill vectors.
    void (*panels)(const float *rows, std::int64_t count, std::int64_t k, std::int64_t begin, std::int64_t end, float *to);
    // `count` rows of inputs, as panels where they are more than `few`, times matrix rows `first` to `last`, plus bias ->
    // [count, outputs]. `sums` is memory for [outputs, count], with `count` padded to whole panels, where they are more.
    void (*linear)(const Matrix &matrix, std::int64_t first, std::int64_t last, const float *inputs, std::int64_t count,
                   const float *bias, bool relu, float *sums, float *to);
    // The larger of 2x2 pixels for a line of `width` results.
    void (*max_pool)(const float *upper, std::ptrdiff_t row, int channels, int width, float *to);
    // Multiply-adds in registers: `rounds` times 2 * the number returned; for measuring the peak.
    std::int64_t (*peak)(std::int64_t rounds, float *result);
    // The sum of `count` floats; for measuring the bandwidth.
    float (*read)(const float *from, std::int64_t count);
};

// The table for an instruction set, or none where this processor lacks it. `auto`: the best that it has.
const Kernels *kernels(const char *name);

}  // namespace vgg
