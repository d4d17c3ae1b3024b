// 3x3 convolutions with products of bfloat16 and sums of float32, compiled once for each instruction set.
//
// Weights and inputs are transformed by the functions for floats, and then rounded, two channels to a word; outputs are floats.
// Without instructions for bfloat16, the same sums are computed in float32: a product of two bfloat16 is exact in it.
#include "kernels.hpp"
#include "product.hpp"
#include "simd.hpp"
#if defined(VGG_TILES)
#include "tiles.hpp"
#endif

namespace VGG_ISA {

extern const vgg::Kernels table;

namespace {

constexpr int POSITIONS = 36;  // of F(4x4)

constexpr std::uint32_t UPPER = 0xffff0000;

// To the nearest bfloat16, to even if there are two, in the upper half of a word; NaN stays NaN.
inline uvec rounded(vec value) {
    const uvec bits = uvec(value), nan = uvec(value != value);
    return ((bits + 0x7fff + (bits >> 16 & 1)) & ~nan & UPPER) | (nan & 0x7fc00000);
}

// Two channels as words, the first in the lower half.
inline vec paired(vec first, vec second) { return vec(rounded(first) >> 16 | rounded(second)); }

// Adjacent channels of two vectors as words.
template <int... I> inline vec adjacent(vec low, vec high, std::integer_sequence<int, I...>) {
#if defined(__AVX512BF16__)
    return vec(_mm512_cvtne2ps_pbh(__m512(high), __m512(low)));
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    const bfloat16x8_t half = vcvtq_low_bf16_f32(float32x4_t(low));
    return vec(vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(half, float32x4_t(high))));
#else
    return paired(__builtin_shufflevector(low, high, (2 * I)...), __builtin_shufflevector(low, high, (2 * I + 1)...));
#endif
}

struct BFloat16 {
    using Sums = vec;
#if defined(__AVX512BF16__)
    using Pairs = uvec;
    static Pairs pairs(uvec words) { return words; }
    static Sums add(Sums sums, Pairs left, vec right) {
        return Sums(_mm512_dpbf16_ps(__m512(sums), __m512bh(left), __m512bh(right)));
    }
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    using Pairs = uvec;
    static Pairs pairs(uvec words) { return words; }
    static Sums add(Sums sums, Pairs left, vec right) {  // rounded to odd, which differs in the last bit
        return Sums(vbfdotq_f32(float32x4_t(sums), vreinterpretq_bf16_u32(uint32x4_t(left)),
                                vreinterpretq_bf16_f32(float32x4_t(right))));
    }
#else
    struct Pairs {
        vec first, second;
    };
    static Pairs pairs(uvec words) { return {vec(words << 16), vec(words & UPPER)}; }
    static Sums add(Sums sums, Pairs left, vec right) {
        const Pairs other = pairs(uvec(right));
        return sums + left.second * other.second + left.first * other.first;
    }
#endif
    static Pairs splat(const float *word) {
        std::uint32_t bits;
        std::memcpy(&bits, word, sizeof bits);
        return pairs(bits - uvec{});
    }
};

#if defined(VGG_TILES)
static_assert(LANES == 16 && PANEL == 32);

struct Block {
    const float *from;  // [k / LANES, height, LANES]
    int height;
    float *to;
};

// N blocks of rows, N at most two, times a panel, up to a multiple of LANES words; the remaining words are in the sums already.
template <int N> inline void multiply(const Block (&blocks)[2], int k, const float *panel, std::ptrdiff_t to_stride,
                                      const float *ahead, int lines) {
    const Tiles tiles(blocks[0].height, blocks[1].height);
    const std::ptrdiff_t row = to_stride * std::ptrdiff_t(sizeof(float));
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    if (k % LANES) {
        load_tile<0>(blocks[0].to, row);
        load_tile<1>(blocks[0].to + LANES, row);
        if constexpr (N == 2) load_tile<2>(blocks[1].to, row), load_tile<3>(blocks[1].to + LANES, row);
    }
    for (int i = 0; i + LANES <= k; i += LANES, panel += LANES * PANEL) {
        for (int line = 0; line < lines; ++line, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
        load_tile<6>(panel, PANEL * sizeof(float));
        load_tile<7>(panel + LANES, PANEL * sizeof(float));
        load_tile<4>(blocks[0].from + i * blocks[0].height, LANES * sizeof(float));
        multiply_bfloat16<0, 4, 6>();
        multiply_bfloat16<1, 4, 7>();
        if constexpr (N == 2) {
            load_tile<5>(blocks[1].from + i * blocks[1].height, LANES * sizeof(float));
            multiply_bfloat16<2, 5, 6>();
            multiply_bfloat16<3, 5, 7>();
        }
    }
    store_tile<0>(blocks[0].to, row);
    store_tile<1>(blocks[0].to + LANES, row);
    if constexpr (N == 2) store_tile<2>(blocks[1].to, row), store_tile<3>(blocks[1].to + LANES, row);
}

void product_of_rows(const float *rows, std::ptrdiff_t stride, int count, int k, const float *panel, const float *next,
                     float *to, std::ptrdiff_t to_stride) {
    const vgg::Blocks parts(count, ROWS);
    const int whole = k / LANES * LANES;
    const int passes = (parts.number + 1) / 2;
    const int lines = count <= STREAMED ? 0 : (LANES * PANEL / LINE + passes - 1) / passes;
    for (int b = 0; b < parts.number; b += 2) {
        const auto at = [&](int part) {
            const int row = parts.first(part);
            return Block{rows + row * stride, parts.first(part + 1) - row, to + row * to_stride};
        };
        const bool two = b + 1 < parts.number;
        const Block blocks[]{at(b), at(two ? b + 1 : b)};
        for (int n = 0; whole < k && n <= two; ++n)
            sized<BFloat16, ROWS>(
                blocks[n].height, k - whole, panel + whole * PANEL,
                [&](int i, int j) { return blocks[n].from + whole * blocks[n].height + i + j; },
                std::integral_constant<int, LANES>(), [](int) {},
                [&](int r, const vec(&sums)[VECTORS]) {
                    for (int v = 0; v < VECTORS; ++v) store(blocks[n].to + r * to_stride + v * LANES, sums[v]);
                });
        (two ? multiply<2> : multiply<1>)(blocks, k, panel, to_stride, next + std::ptrdiff_t(whole) * PANEL / passes * (b / 2),
                                          lines);
    }
}
#else
constexpr auto product_of_rows = product<BFloat16>;
#endif

void weights(int tile, const vgg::Filters &from, int out, int in, int first, int last, float *to) {
    const int panels = (out + PANEL - 1) / PANEL, words = (in + 1) / 2, size = from.scale ? 1 : sizeof(float);
    const std::ptrdiff_t position = std::ptrdiff_t(panels) * words * PANEL;
    for (int panel = first; panel < last; ++panel)
        for (int word = 0; word < words; ++word) {
            const int begin = panel * PANEL, channels = in - 2 * word < 2 ? 1 : 2;
            const int count = out - begin < PANEL ? out - begin : PANEL;
            float some[PANEL * 2 * 9], floats[POSITIONS * 2 * PANEL];
            for (int i = 0; i < count; ++i)
                std::memcpy(reinterpret_cast<char *>(some) + i * channels * 9 * size,
                            static_cast<const char *>(from.values) + (std::ptrdiff_t(begin + i) * in + 2 * word) * 9 * size,
                            channels * 9 * size);
            table.floats.weights(tile, {some, from.scale ? from.scale + begin : nullptr, nullptr}, count, channels, 0, 1,
                                 floats);
            for (int p = 0; p < POSITIONS; ++p)
                for (int i = 0; i < PANEL; i += LANES) {
                    const float *one = floats + p * channels * PANEL + i;
                    store(to + p * position + (std::ptrdiff_t(panel) * words + word) * PANEL + i,
                          paired(load(one), channels == 2 ? load(one + PANEL) : vec{}));
                }
        }
}

void input(int tile, const float *from, std::ptrdiff_t row, std::ptrdiff_t pixel, int channels, float *to,
           std::ptrdiff_t position, std::ptrdiff_t stride) {
    constexpr int TOGETHER = 2 * LANES;  // channels of a vector of words
    alignas(64) float floats[POSITIONS * TOGETHER];
    for (int c = 0; c < channels; c += TOGETHER, to += stride) {
        table.floats.input(tile, from + c, row, pixel, TOGETHER, floats, TOGETHER, LANES);
        for (int p = 0; p < POSITIONS; ++p)
            store(to + p * position, adjacent(load(floats + p * TOGETHER), load(floats + p * TOGETHER + LANES),
                                              std::make_integer_sequence<int, LANES>()));
    }
}

void output(int tile, const float *from, std::ptrdiff_t position, const vgg::Finish &finish, int channels, int height,
            int width, float *to, std::ptrdiff_t row, float *pooled, std::ptrdiff_t pooled_row, std::ptrdiff_t pixel) {
    table.floats.output(tile, from, position, finish, channels, height, width, to, row, pooled, pooled_row, pixel);
}

}  // namespace

extern const vgg::Convolution bfloat16{2, weights, input, product_of_rows, output};

}  // namespace VGG_ISA
