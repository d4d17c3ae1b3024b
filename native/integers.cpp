// Arithmetic of 8-bit integers with exact sums, compiled once for each instruction set.
//
// Winograd's filtering F(4x4, 3x3) needs a quarter of the multiplications of a direct convolution, and is exact in integers.
// For the points 0, +-1, +-2 and infinity, transformed inputs are at most 12,750 and transformed weights at most 49 * 255,
// without the fractions of G, so both fit into 16 bits. The products are added modulo 2^32. The fractions, times 24, are part
// of the output's transform, which gives 576 times the sum modulo 2^32: multiplied by the inverse of 9 and shifted by 6 bits,
// that is the sum itself if its magnitude is below 2^25.
#include "integers.hpp"

#include "product.hpp"
#if defined(VGG_TILES)
#include "tiles.hpp"
#endif

namespace VGG_ISA {

using vgg::Filters;
using vgg::Finish;
using vgg::Matrix;
using vgg::Pixels;

typedef std::int16_t pairs __attribute__((vector_size(LANES * 4)));  // two channels for each lane
typedef std::uint8_t octets __attribute__((vector_size(LANES * 4)));

template <class V, class T> inline V load_as(const T *from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <class V, class T> inline void store_as(T *to, V value) { std::memcpy(to, &value, sizeof value); }

// --- Words of two channels ----------------------------------------------------------------------------------------------

struct Pairs {
    using Sums = ivec;
    static ivec splat(const float *word) { return load_as<std::int32_t>(word) - ivec{}; }
    // Adds the products of the two channels of each lane; wraps.
    static ivec add(ivec sums, ivec left, vec right) {
#if defined(__AVX512VNNI__)
        return ivec(_mm512_dpwssd_epi32(__m512i(sums), __m512i(left), __m512i(right)));
#elif defined(__AVX512BW__)
        return ivec(_mm512_add_epi32(__m512i(sums), _mm512_madd_epi16(__m512i(left), __m512i(right))));
#elif defined(__AVXVNNI__)
        return ivec(_mm256_dpwssd_avx_epi32(__m256i(sums), __m256i(left), __m256i(right)));
#elif defined(__AVX2__)
        return ivec(_mm256_add_epi32(__m256i(sums), _mm256_madd_epi16(__m256i(left), __m256i(right))));
#elif defined(__SSE2__)
        return ivec(_mm_add_epi32(__m128i(sums), _mm_madd_epi16(__m128i(left), __m128i(right))));
#elif defined(__aarch64__)
        const int16x8_t weights = vreinterpretq_s16_f32(float32x4_t(right));
        const int16x4_t inputs = vreinterpret_s16_s32(vget_low_s32(int32x4_t(left)));
        const int32x4_t first = vmlal_lane_s16(int32x4_t(sums), vget_low_s16(weights), inputs, 0);
        return ivec(vmlal_high_lane_s16(first, weights, inputs, 1));
#else
        const pairs a = pairs(left), b = pairs(right);
        for (int lane = 0; lane < LANES; ++lane)
            sums[lane] = std::int32_t(std::uint32_t(sums[lane]) + std::uint32_t(a[2 * lane] * b[2 * lane]) +
                                      std::uint32_t(a[2 * lane + 1] * b[2 * lane + 1]));
        return sums;
#endif
    }
    // A vector of words of two channels' weights, in the order in which `add` reads them.
    static pairs weights(ivec first, ivec second) {
#if defined(__aarch64__)
        return pairs(vcombine_s16(vmovn_s32(int32x4_t(first)), vmovn_s32(int32x4_t(second))));
#else
        return pairs((uvec(first) & 0xffff) | uvec(second) << 16);
#endif
    }
};

// --- Outputs ------------------------------------------------------------------------------------------------------------

// Integers from 0 to 255 as bytes.
inline void store_bytes(std::uint8_t *to, ivec values) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(__m512i(values)));
#elif defined(__AVX2__)
    const __m256i halves = _mm256_packus_epi32(__m256i(values), __m256i(values));
    const __m256i joined = _mm256_permute4x64_epi64(halves, 0x08);
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_packus_epi16(_mm256_castsi256_si128(joined), __m128i{}));
#else
    typedef std::uint8_t bytes __attribute__((vector_size(LANES)));
    store_as(to, __builtin_convertvector(values, bytes));
#endif
}

// The 8-bit integers of numbers in units of their scale, at least `low`: rounded half to even, plus the zero point. NaN is
// `low`.
inline ivec rounded(vec value, float low, int zero) {
    constexpr float MAGIC = 0x1.8p23f;  // added to a number of magnitude below 2^22, leaves the integer in the lowest bits
    return ivec(smaller(larger(splat(low), value), splat(float(255 - zero))) + MAGIC) - (ivec(splat(MAGIC)) - zero);
}

// Stores the outputs of LANES channels of a pixel, after ReLU.
inline void finished(const Finish &finish, int channel, ivec sums, float *pixel) {
    const vec value =
        __builtin_convertvector(sums + load_as<ivec>(finish.offset + channel), vec) * load(finish.factor + channel);
    if (finish.floats)
        store(pixel + channel, relu(value));
    else
        store_bytes(reinterpret_cast<std::uint8_t *>(pixel) + channel, rounded(value, 0, finish.zero));
}

// --- Winograd -----------------------------------------------------------------------------------------------------------

constexpr int TILE = 4, SIDE = TILE + 2;

// `count` weights of an output channel from an index on.
inline void weights_of(const Filters &from, int channel, std::ptrdiff_t index, int count, std::int32_t *to, int stride) {
    const std::int8_t *values = static_cast<const std::int8_t *>(from.values) + index;
    for (int i = 0; i < count; ++i) to[i * stride] = values[i] - (from.zero ? from.zero[channel] : 0);
}

// 4, -6, -6, 24, 24 and 1 times G g, with 6 times the first and the last, which leaves less to do for the outputs.
inline void transform_weights(const ivec (&g)[3], ivec (&u)[SIDE]) {
    const ivec ends = g[0] + g[2], far = g[0] + 4 * g[2];
    u[0] = 6 * g[0], u[1] = ends + g[1], u[2] = ends - g[1], u[3] = far + 2 * g[1], u[4] = far - 2 * g[1], u[5] = 6 * g[2];
}

inline void transform_inputs(const pairs (&d)[SIDE], pairs (&v)[SIDE]) {
    const pairs even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], near = d[4] - d[2], across = 2 * (d[3] - d[1]);
    v[0] = 4 * (d[0] - d[2]) + near, v[1] = even + odd, v[2] = even - odd;
    v[3] = near + across, v[4] = near - across, v[5] = 4 * (d[1] - d[3]) + (d[5] - d[3]);
}

// 24, 12, 6 and 6 times the outputs.
constexpr int HALVED[TILE] = {0, 1, 2, 2};
inline void transform_outputs(const uvec (&m)[SIDE], uvec (&y)[TILE]) {
    const uvec near = m[1] + m[2], across = m[1] - m[2], far = m[3] + m[4], over = m[3] - m[4];
    y[0] = m[0] - 4 * near + far, y[1] = over - 2 * across, y[2] = far - near, y[3] = 2 * over - across + m[5];
}

void winograd_weights(int, const Filters &from, int out, int in, int first, int last, float *to) {
    const int panels = (out + PANEL - 1) / PANEL, words = (in + 1) / 2;
    const std::ptrdiff_t position = std::ptrdiff_t(panels) * words * PANEL;
    for (int panel = first; panel < last; ++panel)
        for (int word = 0; word < words; ++word)
            for (int v = 0; v < VECTORS; ++v) {
                ivec u[2][SIDE][SIDE];
                for (int i = 0; i < 2; ++i) {
                    const int begin = panel * PANEL + v * LANES, channel = 2 * word + i;
                    std::int32_t filters[9][LANES] = {};
                    for (int lane = 0; lane < LANES && begin + lane < out && channel < in; ++lane)
                        weights_of(from, begin + lane, (std::ptrdiff_t(begin + lane) * in + channel) * 9, 9, &filters[0][lane],
                                   LANES);
                    ivec half[3][SIDE];
                    for (int x = 0; x < 3; ++x)
                        transform_weights(
                            {load_as<ivec>(filters[x]), load_as<ivec>(filters[3 + x]), load_as<ivec>(filters[6 + x])}, half[x]);
                    for (int y = 0; y < SIDE; ++y) transform_weights({half[0][y], half[1][y], half[2][y]}, u[i][y]);
                }
                float *target = to + (std::ptrdiff_t(panel) * words + word) * PANEL + v * LANES;
                for (int y = 0; y < SIDE; ++y)
                    for (int x = 0; x < SIDE; ++x)
                        store_as(target + (y * SIDE + x) * position, Pairs::weights(u[0][y][x], u[1][y][x]));
            }
}

// 8-bit integers as pairs.
inline pairs widened(const std::uint8_t *from) {
#if defined(__AVX512BW__)
    return pairs(_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
#elif defined(__AVX2__)
    return pairs(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#else
    typedef std::uint8_t bytes __attribute__((vector_size(LANES * 2)));
    return __builtin_convertvector(load_as<bytes>(from), pairs);
#endif
}

void winograd_input(int, const float *from, std::ptrdiff_t row, std::ptrdiff_t pixel, int channels, float *to,
                    std::ptrdiff_t position, std::ptrdiff_t stride) {
    for (int c = 0; c < channels; c += 2 * LANES) {
        pairs half[SIDE][SIDE];
        for (int x = 0; x < SIDE; ++x) {
            pairs d[SIDE], v[SIDE];
#pragma GCC unroll 6
            for (int y = 0; y < SIDE; ++y) {
                const std::uint8_t *place = reinterpret_cast<const std::uint8_t *>(from + y * row + x * pixel) + c;
                d[y] = widened(place);
                if (x >= SIDE - TILE) __builtin_prefetch(place + TILE * pixel * sizeof(float), 0, 2);
            }
            transform_inputs(d, v);
#pragma GCC unroll 6
            for (int y = 0; y < SIDE; ++y) half[y][x] = v[y];
        }
        for (int y = 0; y < SIDE; ++y) {
            pairs v[SIDE];
            transform_inputs(half[y], v);
            float *target = to + y * SIDE * position + c / (2 * LANES) * stride;
#pragma GCC unroll 6
            for (int x = 0; x < SIDE; ++x) store_as(target + x * position, v[x]);
        }
    }
}

void winograd_output(int, const float *from, std::ptrdiff_t position, const Finish &finish, int channels, int height, int width,
                     float *to, std::ptrdiff_t row, float *pooled, std::ptrdiff_t pooled_row, std::ptrdiff_t pixel) {
    constexpr std::uint32_t INVERSE = 954'437'177;  // of 9 modulo 2^32
    for (int c = 0; c < channels; c += LANES) {
        uvec half[TILE][SIDE];
        for (int x = 0; x < SIDE; ++x) {
            uvec m[SIDE], y[TILE];
#pragma GCC unroll 6
            for (int i = 0; i < SIDE; ++i) m[i] = load_as<uvec>(from + (i * SIDE + x) * position + c);
            transform_outputs(m, y);
#pragma GCC unroll 4
            for (int i = 0; i < TILE; ++i) half[i][x] = y[i];
        }
        const auto sums = [&](int i, ivec(&to)[TILE]) __attribute__((always_inline)) {
            uvec line[TILE];
            transform_outputs(half[i], line);
#pragma GCC unroll 4
            for (int x = 0; x < TILE; ++x) to[x] = ivec(line[x] * INVERSE) >> (6 - HALVED[i] - HALVED[x]);
        };
        const auto write = [&](int i, const ivec(&line)[TILE]) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int x = 0; x < TILE; ++x)
                if (x < width) finished(finish, c, line[x], to + i * row + x * pixel);
        };
#pragma GCC unroll 2
        for (int i = 0; i < TILE; i += 2) {
            ivec upper[TILE], lower[TILE];
            sums(i, upper);
            if (to && i < height) write(i, upper);
            sums(i + 1, lower);
            if (i + 1 >= height) break;
            if (to) write(i + 1, lower);
            if (!pooled) continue;
#pragma GCC unroll 2
            for (int x = 0; x < TILE; x += 2)
                if (x + 1 < width)
                    finished(finish, c, larger(larger(upper[x], upper[x + 1]), larger(lower[x], lower[x + 1])),
                             pooled + i / 2 * pooled_row + x / 2 * pixel);
        }
    }
}

// --- Direct convolutions ------------------------------------------------------------------------------------------------

void plain_weights(const Filters &from, int out, int in, int area, float *to) {
    for (int begin = 0; begin < out; begin += PANEL)
        for (int place = 0; place < area; ++place)
            for (int channel = 0; channel < in; channel += 2)
                for (int v = 0; v < VECTORS; ++v, to += LANES) {
                    std::int32_t values[2][LANES] = {};
                    for (int i = 0; i < 2 && channel + i < in; ++i)
                        for (int lane = 0; lane < LANES; ++lane) {
                            const int row = begin + v * LANES + lane;
                            const std::ptrdiff_t index = (std::ptrdiff_t(row) * in + channel + i) * area + place;
                            if (row < out) weights_of(from, row, index, 1, &values[i][lane], 1);
                        }
                    store_as(to, Pairs::weights(load_as<ivec>(values[0]), load_as<ivec>(values[1])));
                }
}

void widen(const std::uint8_t *from, std::ptrdiff_t count, float *to) {
    std::ptrdiff_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) store_as(to + i / 2, widened(from + i));
    for (; i < count; ++i) reinterpret_cast<std::int16_t *>(to)[i] = from[i];
}

void direct(const Pixels &pixels, int count, int k, const float *panel, const Finish &finish, int channel, float *to,
            std::ptrdiff_t to_stride) {
    product_of_pixels<Pairs>(pixels, count, k, panel, [&](int row, const ivec(&sums)[VECTORS]) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) finished(finish, channel + v * LANES, sums[v], to + row * to_stride);
    });
}

// --- Convolutions of bytes ----------------------------------------------------------------------------------------------

// Where the processor multiplies matrices of bytes, that is faster than Winograd's filtering with 16 bits. DEPTH input channels
// of PIXELS neighbouring pixels are multiplied at a time with the weights of a panel, in the order of `place`.
#if defined(VGG_TILES)
constexpr int DEPTH = 64, PIXELS = 32;
inline int place(int channel, int input) { return channel / 16 * 1024 + input / 4 * 64 + channel % 16 * 4 + input % 4; }
template <int A> inline void multiply_pixels(const std::uint8_t *from, std::ptrdiff_t pixel, const std::ptrdiff_t *taps,
                                             int area, int depth, const std::int8_t *weights,
                                             std::int32_t (&sums)[PIXELS][PANEL]) {
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    for (int tap = 0; tap < area; ++tap)
        for (int c = 0; c < depth; c += DEPTH, weights += DEPTH * PANEL) {
            const std::uint8_t *left = from + taps[tap] + c;
            load_tile<6>(weights, 64);
            load_tile<7>(weights + 1024, 64);
            load_tile<4>(left, pixel);
            multiply_bytes<0, 4, 6>();
            multiply_bytes<1, 4, 7>();
            if constexpr (A == 2) {
                load_tile<5>(left + 16 * pixel, pixel);
                multiply_bytes<2, 5, 6>();
                multiply_bytes<3, 5, 7>();
            }
        }
    store_tile<0>(&sums[0][0], sizeof sums[0]);
    store_tile<1>(&sums[0][16], sizeof sums[0]);
    store_tile<2>(&sums[16][0], sizeof sums[0]);
    store_tile<3>(&sums[16][16], sizeof sums[0]);
}
inline void multiply(const std::uint8_t *from, std::ptrdiff_t pixel, int count, const std::ptrdiff_t *taps, int area, int depth,
                     const std::int8_t *weights, std::int32_t (&sums)[PIXELS][PANEL]) {
    (count > 16 ? multiply_pixels<2> : multiply_pixels<1>)(from, pixel, taps, area, depth, weights, sums);
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int DEPTH = 8, PIXELS = 8;
struct Tiles {};
inline int place(int channel, int input) { return channel * DEPTH + input; }
inline void multiply(const std::uint8_t *from, std::ptrdiff_t pixel, int, const std::ptrdiff_t *taps, int area, int depth,
                     const std::int8_t *weights, std::int32_t (&sums)[PIXELS][PANEL]) {
    for (int half = 0; half < PANEL; half += 8) {
        int32x4_t products[4][4] = {};  // of two by two pixels and channels
        const std::int8_t *right = weights + half * DEPTH;
        for (int tap = 0; tap < area; ++tap)
            for (int c = 0; c < depth; c += DEPTH, right += DEPTH * PANEL) {
                const std::uint8_t *left = from + taps[tap] + c;
                int8x16_t columns[4];
                for (int j = 0; j < 4; ++j) columns[j] = vld1q_s8(right + 16 * j);
                for (int i = 0; i < 4; ++i, left += 2 * pixel) {
                    const uint8x16_t rows = vcombine_u8(vld1_u8(left), vld1_u8(left + pixel));
                    for (int j = 0; j < 4; ++j) products[i][j] = vusmmlaq_s32(products[i][j], rows, columns[j]);
                }
            }
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) {
                vst1_s32(&sums[2 * i][half + 2 * j], vget_low_s32(products[i][j]));
                vst1_s32(&sums[2 * i + 1][half + 2 * j], vget_high_s32(products[i][j]));
            }
    }
}
#endif

#if defined(VGG_TILES) || defined(__ARM_FEATURE_MATMUL_INT8)
void byte_weights(const Filters &from, int out, int in, int area, float *to) {
    const int depth = (in + DEPTH - 1) / DEPTH * DEPTH;
    const std::int8_t *values = static_cast<const std::int8_t *>(from.values);
    std::int8_t *bytes = reinterpret_cast<std::int8_t *>(to);
    for (int channel = 0; channel < out; ++channel)
        for (int input = 0; input < in; ++input)
            for (int tap = 0; tap < area; ++tap) {
                const std::ptrdiff_t block = (std::ptrdiff_t(channel / PANEL) * area + tap) * depth + input / DEPTH * DEPTH;
                bytes[block * PANEL + place(channel % PANEL, input % DEPTH)] =
                    values[(std::ptrdiff_t(channel) * in + input) * area + tap];
            }
}

void byte_rows(const std::uint8_t *from, std::ptrdiff_t pixel, int count, const std::ptrdiff_t *taps, int area, int in,
               const float *weights, const Finish &finish, int channel, float *to, std::ptrdiff_t to_stride) {
    [[maybe_unused]] const Tiles tiles;
    const int depth = (in + DEPTH - 1) / DEPTH * DEPTH;
    const std::int8_t *panel = reinterpret_cast<const std::int8_t *>(weights) + std::ptrdiff_t(channel) * area * depth;
    for (int x = 0; x < count; x += PIXELS) {
        alignas(64) std::int32_t sums[PIXELS][PANEL];
        multiply(from + x * pixel, pixel, count - x, taps, area, depth, panel, sums);
        for (int i = 0; i < PIXELS && x + i < count; ++i)
            for (int v = 0; v < PANEL; v += LANES)
                finished(finish, channel + v, load_as<ivec>(&sums[i][v]), to + (x + i) * to_stride);
    }
}

constexpr vgg::Bytes BYTES{DEPTH, byte_weights, byte_rows};
#else
constexpr vgg::Bytes BYTES{};
#endif

// --- Linear layers ------------------------------------------------------------------------------------------------------

// The products of unsigned inputs and signed weights, STEP of them at a time, added to the lanes of a vector.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr int STEP = 4 * LANES;
using Inputs = octets;
inline Inputs inputs_at(const std::uint8_t *from) { return load_as<octets>(from); }
inline ivec add_products(ivec sums, Inputs inputs, const std::int8_t *weights) {
#if defined(__AVX512VNNI__)
    return ivec(_mm512_dpbusd_epi32(__m512i(sums), __m512i(inputs), _mm512_loadu_si512(weights)));
#else
    const __m256i right = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights));
    return ivec(_mm256_dpbusd_avx_epi32(__m256i(sums), __m256i(inputs), right));
#endif
}
#else
constexpr int STEP = 2 * LANES;
using Inputs = pairs;
inline Inputs inputs_at(const std::uint8_t *from) { return widened(from); }
inline ivec add_products(ivec sums, Inputs inputs, const std::int8_t *weights) {
#if defined(__AVX512BW__)
    const __m512i right = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights)));
    return ivec(_mm512_add_epi32(__m512i(sums), _mm512_madd_epi16(__m512i(inputs), right)));
#elif defined(__AVX2__)
    const __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(weights)));
    return ivec(_mm256_add_epi32(__m256i(sums), _mm256_madd_epi16(__m256i(inputs), right)));
#elif defined(__SSE2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(weights));
    const __m128i right = _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
    return ivec(_mm_add_epi32(__m128i(sums), _mm_madd_epi16(__m128i(inputs), right)));
#elif defined(__aarch64__)
    const int16x8_t left = int16x8_t(inputs), right = vmovl_s8(vld1_s8(weights));
    const int32x4_t half = vmlal_s16(int32x4_t(sums), vget_low_s16(left), vget_low_s16(right));
    return ivec(vmlal_high_s16(half, left, right));
#else
    for (int i = 0; i < STEP; ++i) sums[i % LANES] += inputs[i] * weights[i];
    return sums;
#endif
}
#endif

constexpr int AHEAD = 1024;  // prefetch distance in bytes of a row, if the matrix is read once

inline std::int32_t total(ivec value) {
    std::int32_t sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += value[lane];
    return sum;
}

// R rows of the matrix times B rows of inputs. The weights are prefetched into the second-level cache, of the next R rows if B
// is more than one, else further along the rows.
template <int R, int B> inline void dots(const Matrix &matrix, std::int64_t row, const std::uint8_t *inputs, std::int32_t *to) {
    const std::int64_t n = matrix.inputs;
    const std::int8_t *weights = static_cast<const std::int8_t *>(matrix.values) + row * n;
    ivec sums[R][B] = {};
    std::int64_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        Inputs right[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) right[b] = inputs_at(inputs + b * n + i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const std::int8_t *left = weights + r * n + i;
            __builtin_prefetch(left + (B > 1 ? R * n : AHEAD), 0, 2);
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) sums[r][b] = add_products(sums[r][b], right[b], left);
        }
    }
    if (i < n)  // the rest, padded with zeros
        for (int r = 0; r < R; ++r) {
            std::int8_t left[STEP] = {};
            std::memcpy(left, weights + r * n + i, n - i);
            for (int b = 0; b < B; ++b) {
                std::uint8_t right[STEP] = {};
                std::memcpy(right, inputs + b * n + i, n - i);
                sums[r][b] = add_products(sums[r][b], inputs_at(right), left);
            }
        }
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) to[b * matrix.outputs + row + r] = total(sums[r][b]);
}

void linear(const Matrix &matrix, std::int64_t first, std::int64_t last, const std::uint8_t *inputs, std::int64_t count,
            std::int32_t *to) {
    constexpr int SHARING = ROWS / 2;  // rows of the matrix that share loads of inputs, at most four at once
    const auto rows = [&]<int R>(std::integral_constant<int, R>, std::int64_t row) {
        std::int64_t b = 0;
        const auto times = [&]<int B>(std::integral_constant<int, B>) {
            for (; b + B <= count; b += B) dots<R, B>(matrix, row, inputs + b * matrix.inputs, to + b * matrix.outputs);
        };
        times(std::integral_constant<int, 4>());
        times(std::integral_constant<int, 2>());
        times(std::integral_constant<int, 1>());
    };
    std::int64_t row = first;
    if (count == 1)
        for (; row + 8 <= last; row += 8) dots<8, 1>(matrix, row, inputs, to);
    else
        for (; row + SHARING <= last; row += SHARING) rows(std::integral_constant<int, SHARING>(), row);
    for (; row < last; ++row) rows(std::integral_constant<int, 1>(), row);
}

// --- Other layers, the table --------------------------------------------------------------------------------------------

void quantize(const float *from, std::ptrdiff_t count, float scale, int zero, std::uint8_t *to) {
    for (std::ptrdiff_t i = 0; i < count; i += LANES) {
        float values[LANES] = {};
        std::uint8_t bytes[LANES];
        const std::ptrdiff_t size = count - i < LANES ? count - i : LANES;
        std::memcpy(values, from + i, size * sizeof(float));
        store_bytes(bytes, rounded(load(values) / scale, float(-zero), zero));
        std::memcpy(to + i, bytes, size);
    }
}

void max_pool(const std::uint8_t *upper, std::ptrdiff_t row, int channels, int width, std::uint8_t *to) {
    typedef std::uint8_t bytes __attribute__((vector_size(LANES)));
    const auto larger = [](bytes a, bytes b) { return a > b ? a : b; };
    for (int x = 0; x < width; ++x)
        for (int c = 0; c < channels; c += LANES) {
            const std::uint8_t *from = upper + 2 * x * std::ptrdiff_t(channels) + c;
            store_as(to + x * std::ptrdiff_t(channels) + c,
                     larger(larger(load_as<bytes>(from), load_as<bytes>(from + channels)),
                            larger(load_as<bytes>(from + row), load_as<bytes>(from + row + channels))));
        }
}

extern const vgg::Integers integers;
const vgg::Integers integers{{2, winograd_weights, winograd_input, product<Pairs>, winograd_output},
                             plain_weights,
                             widen,
                             direct,
                             BYTES,
                             linear,
                             quantize,
                             max_pool};

}  // namespace VGG_ISA
