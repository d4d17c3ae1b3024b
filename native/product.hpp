// The matrix product of all convolutions. Its operands are words of 32 bits in memory of floats: a float, or two channels of 16
// bits. `Operands` has the type of a vector of sums, and functions that copy a word to all lanes and that add products.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace VGG_ISA {

struct Floats {
    using Sums = vec;
    static Sums splat(const float *word) { return VGG_ISA::splat(*word); }
    static Sums add(Sums sums, Sums left, vec right) { return sums + left * right; }
};

// R rows times a panel of V vectors. `at(i, j)` points to the first row's word k = i + j, with j below 8 and zero unless i is a
// multiple of it, so that the part that depends on i is computed once for eight words; the other rows follow, `stride` apart, a
// type if it is constant, so that it is part of the addresses. `finish` stores a row's sums. `fetch` is called for every eighth
// k, to prefetch: weights come from memory, and hardware prefetching stops at page boundaries.
template <class Operands, int R, int V, class At, class Stride, class Fetch, class Finish>
inline void block(int k, const float *panel, const At &at, Stride stride, const Fetch &fetch, const Finish &finish) {
    typename Operands::Sums sums[R][V] = {};
    const auto step = [&](int i, int j) __attribute__((always_inline)) {
        vec right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) right[v] = load(panel + ((i + j) * V + v) * LANES);
        const float *column = at(i, j);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
            const auto left = Operands::splat(column + r * stride);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[r][v] = Operands::add(sums[r][v], left, right[v]);
        }
    };
    int i = 0;
    for (; i + 8 <= k; i += 8) {
        fetch(i);
#pragma GCC unroll 2
        for (int j = 0; j < 8; ++j) step(i, j);
    }
    for (; i < k; ++i) step(i, 0);
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) finish(r, sums[r]);
}

template <class Operands, int R, class At, class Stride, class Fetch, class Finish>
inline void sized(int rows, int k, const float *panel, const At &at, Stride stride, const Fetch &fetch, const Finish &finish) {
    if constexpr (R > 0) {
        if (rows == R)
            block<Operands, R, VECTORS>(k, panel, at, stride, fetch, finish);
        else
            sized<Operands, R - 1>(rows, k, panel, at, stride, fetch, finish);
    }
}

constexpr int LINE = 16;      // words in a cache line
constexpr int STREAMED = 16;  // rows up to which hardware prefetching alone is faster; measured

template <class Operands> void product(const float *rows, std::ptrdiff_t stride, int count, int k, const float *panel,
                                       const float *next, float *to, std::ptrdiff_t to_stride) {
    const vgg::Blocks blocks(count, ROWS);
    for (int b = 0; b < blocks.number; ++b) {
        const int row = blocks.first(b), height = blocks.first(b + 1) - row;
        const float *from = rows + row * stride;
        float *target = to + row * to_stride;
        // This block's share of the next panel, in several streams, a cache line of each at a time; the hardware follows them.
        // With few rows, these would be more lines at once than the core can wait for.
        const float *ahead = next + std::ptrdiff_t(k) * PANEL * b / blocks.number;
        const int streams = count <= STREAMED ? 0 : (8 * PANEL / LINE + blocks.number - 1) / blocks.number;
        const std::ptrdiff_t apart = k / 8 * LINE;
        sized<Operands, ROWS>(
            height, k, panel,
            [&](int i, int j) {
                return from + (i / LANES + j / LANES) * std::ptrdiff_t(height * LANES) + i % LANES + j % LANES;
            },
            std::integral_constant<int, LANES>(),
            [&](int) {
                for (int s = 0; s < streams; ++s) __builtin_prefetch(ahead + s * apart, 0, 2);
                ahead += LINE;
            },
            [&](int r, const typename Operands::Sums(&sums)[VECTORS]) {
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) std::memcpy(target + r * to_stride + v * LANES, &sums[v], sizeof sums[v]);
            });
    }
}

// The pixels of an image row times a panel; `finish` stores the sums of a pixel.
template <class Operands, class Finish>
inline void product_of_pixels(const vgg::Pixels &pixels, int count, int k, const float *panel, const Finish &finish) {
    const vgg::Blocks blocks(count, ROWS);
    for (int b = 0; b < blocks.number; ++b) {
        const int first = blocks.first(b), height = blocks.first(b + 1) - first;
        const float *from = pixels.data + first * pixels.stride;
        sized<Operands, ROWS>(
            height, k, panel, [&](int i, int j) { return from + pixels.offsets[i + j]; }, pixels.stride, [](int) {},
            [&](int r, const typename Operands::Sums(&sums)[VECTORS]) { finish(first + r, sums); });
    }
}

}  // namespace VGG_ISA
