// The arithmetic as a table of functions, which kernels.cpp fills once for each instruction set.
//
// Code that is compiled for an instruction set has internal linkage or is in the namespace of that set. The linker may merge
// inline functions of the same name from several object files, and must not choose a copy that the processor can't run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vgg {

// Storage of a linear layer's weights; vgg.engines.native uses the same numbers.
enum Kind : int { FLOAT32, FLOAT16, BFLOAT16, INT8, INT4 };

// A linear layer's weights, used in place: [outputs, inputs] in rows, at any alignment.
struct Matrix {
    const void *values;
    Kind kind;
    const float *scale;  // of INT8 and INT4: [outputs, inputs / group]
    std::int64_t outputs, inputs, group;
};

// A convolution's weights [out, in, kernel, kernel], at any alignment: float32, or int8 with a scale per output channel; of
// integer arithmetic int8, with a zero point per output channel or null for 0.
struct Filters {
    const void *values;
    const float *scale;
    const std::int32_t *zero;
};

// The pixels of an image row as the rows of a matrix: element (row, k) is data[row * stride + offsets[k]].
struct Pixels {
    const float *data;
    std::ptrdiff_t stride;
    const std::int32_t *offsets;
};

// What follows the sums of a convolution's output channels, before its ReLU: sum + bias; of integer sums (sum + offset) *
// factor, which is rounded to an 8-bit integer, plus the zero point, unless the output is floats.
struct Finish {
    const float *bias;
    const std::int32_t *offset;
    const float *factor;
    int zero;
    bool floats;
};

// `count` rows of a matrix in blocks of nearly the same height, at most `most`.
namespace {
struct Blocks {
    int count, number;
    Blocks(int count, int most) : count(count), number((count + most - 1) / most) {}
    int first(int block) const { return count * block / number; }
    int of(int row) const { return ((row + 1) * number - 1) / count; }
};
}  // namespace

// The arithmetic of 3x3 convolutions by Winograd's filtering. Transformed inputs and weights consist of words of 32 bits, in
// memory of floats: a float, or two channels of 16 bits. A row of transformed inputs has a word for each one or two channels.
struct Convolution {
    int channels;  // in a word
    // Weights [out, in, 3, 3] -> [(tile + 2)^2, out / panel, words, panel] for F(tile x tile), panels `first` to `last`.
    void (*weights)(int tile, const Filters &from, int out, int in, int first, int last, float *to);
    // A tile's input, (tile + 2)^2 pixels of `channels`, `row` and `pixel` floats apart -> (tile + 2)^2 positions, each
    // [words / lanes, lanes] with `stride` between vectors. Prefetches the input of the tile to the right.
    void (*input)(int tile, const float *from, std::ptrdiff_t row, std::ptrdiff_t pixel, int channels, float *to,
                  std::ptrdiff_t position, std::ptrdiff_t stride);
    // Rows of `k` words times a panel -> `panel` sums per row, `to_stride` apart. Prefetches the panel `next`. The rows are in
    // the order in which they are read: in blocks, `stride` words per row, each block [k / lanes, height, lanes].
    void (*product)(const float *rows, std::ptrdiff_t stride, int count, int k, const float *panel, const float *next,
                    float *to, std::ptrdiff_t to_stride);
    // (tile + 2)^2 positions -> `height` x `width` pixels with bias and ReLU in `to`, and half of that, by 2x2 max pooling, in
    // `pooled`; null for what isn't needed. Prefetches the output of the tile to the right. Pixels are aligned to vectors.
    void (*output)(int tile, const float *from, std::ptrdiff_t position, const Finish &finish, int channels, int height,
                   int width, float *to, std::ptrdiff_t row, float *pooled, std::ptrdiff_t pooled_row, std::ptrdiff_t pixel);
};

struct Integers;

struct Kernels {
    const char *name;
    int rows;   // maximum number of rows of a product that are computed together
    int panel;  // output channels that are computed together; channels are padded to a multiple of it
    int lanes;  // floats in a vector
    int few;    // maximum number of input rows that a matrix is multiplied with directly; more are packed into panels first

    Convolution floats;
    const Convolution *bfloat16;  // products of bfloat16, which are added in floats
    const Integers *integers;
    // Weights [out, k] -> [out / panel, k, panel].
    void (*plain_weights)(const Filters &from, int out, int k, float *to);
    // The pixels of an image row times a panel, with bias and ReLU.
    void (*convolution)(const Pixels &pixels, int count, int k, const float *panel, const float *bias, float *to,
                        std::ptrdiff_t to_stride);
    // Packs columns `begin` to `end` of rows [count, k] into panels [count / panel, k, panel]; the last panel has whole
    // vectors.
    void (*panels)(const float *rows, std::int64_t count, std::int64_t k, std::int64_t begin, std::int64_t end, float *to);
    // `count` rows of inputs, in panels if they are more than `few`, times matrix rows `first` to `last`, plus bias ->
    // [count, outputs]. If they are more than `few`, `sums` is memory for [outputs, count], with `count` padded to panels.
    void (*linear)(const Matrix &matrix, std::int64_t first, std::int64_t last, const float *inputs, std::int64_t count,
                   const float *bias, bool relu, float *sums, float *to);
    // Pooling of 2x2 positions for a row of `width` outputs: their maximum, or their mean.
    void (*max_pool)(const float *upper, std::ptrdiff_t row, int channels, int width, float *to);
    void (*mean_pool)(const float *upper, std::ptrdiff_t row, int channels, int width, float *to);
    // The same for the root of the squares' mean, weighted by [1, 2, 1]^T [1, 2, 1], around every second position.
    void (*l2_pool)(const float *middle, std::ptrdiff_t row, int channels, int width, float *to);
    // The differences of two rows of pixels with `channels` each, of the kinds of vgg.h. Reads up to three pixels more than
    // `width`.
    void (*differences)(int kind, const float *a, const float *b, const float *weight, int channels, int width, float *to);
    // Adds the moments of two rows of pixels to `sums`, [5, channels].
    void (*moments)(const float *a, const float *b, int channels, int width, double *sums);
    // Computes `rounds` times the returned number of multiply-adds in registers, to measure the peak.
    std::int64_t (*peak)(std::int64_t rounds, float *result);
    // The sum of `count` floats, to measure the bandwidth.
    float (*read)(const float *from, std::int64_t count);
};

// The table of an instruction set; of the best one available for `auto`. Throws std::invalid_argument if it is unknown or the
// processor does not support it.
const Kernels &kernels(const char *name);

}  // namespace vgg
