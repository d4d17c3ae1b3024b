// Vectors of floats, by the compiler's vector extensions: one source that is compiled once for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VGG_LANES 16
#elif defined(__AVX2__)
#define VGG_LANES 8
#else
#define VGG_LANES 4
#endif

namespace VGG_ISA {

constexpr int LANES = VGG_LANES;

// The register block of a matrix product: ROWS x (VECTORS * LANES) sums, which leave registers for the operands.
#if defined(__AVX512F__)
constexpr int ROWS = 12, VECTORS = 2;  // 24 of 32 registers
#elif defined(__aarch64__)
constexpr int ROWS = 6, VECTORS = 4;  // 24 of 32
#else
constexpr int ROWS = 6, VECTORS = 2;  // 12 of 16
#endif
constexpr int PANEL = VECTORS * LANES;

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef double wide __attribute__((vector_size(LANES * 8)));
typedef float narrow __attribute__((vector_size(LANES * 2)));
typedef double doubles __attribute__((vector_size(LANES * 4)));  // as many as a narrow has floats
typedef std::int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef std::uint32_t uvec __attribute__((vector_size(LANES * 4)));

inline vec load(const float *from) {
    vec value;
    std::memcpy(&value, from, sizeof value);  // tensors in files have any alignment
    return value;
}

inline void store(float *to, vec value) { std::memcpy(to, &value, sizeof value); }

// Stores a value that is not read soon. A vector of a whole cache line bypasses the caches, which saves reading the line first;
// other threads see it after any locked instruction, such as the pool's.
inline void stream(float *to, vec value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, __m512(value));
#else
    store(to, value);
#endif
}

// Prefetches a line that will be stored to, unless stores bypass the caches.
inline void fetch_to_write(const float *line) {
#if !defined(__AVX512F__)
    __builtin_prefetch(line, 1, 2);
#else
    (void)line;
#endif
}

inline vec splat(float value) { return value - vec{}; }

// LANES integers of 8 or 16 bits, widened to 32 bits. With intrinsics, since compilers would use scalar registers.
inline ivec widened(const std::int8_t *from) {
#if defined(__AVX512F__)
    return ivec(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#elif defined(__AVX2__)
    return ivec(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
#else
    typedef std::int8_t bytes __attribute__((vector_size(LANES)));
    bytes value;
    std::memcpy(&value, from, sizeof value);
    return __builtin_convertvector(value, ivec);
#endif
}

inline uvec widened(const std::uint16_t *from) {
#if defined(__AVX512F__)
    return uvec(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
#elif defined(__AVX2__)
    return uvec(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#else
    typedef std::uint16_t halves __attribute__((vector_size(LANES * 2)));
    halves value;
    std::memcpy(&value, from, sizeof value);
    return __builtin_convertvector(value, uvec);
#endif
}

#if defined(__AVX512F__)
// The lowest 4 bits of each lane as floats; the other bits are ignored.
inline vec four_bits(uvec bits) {
    const vec numbers{0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
    return vec(_mm512_permutexvar_ps(__m512i(bits), __m512(numbers)));
}
#endif

// LANES 4-bit integers, two per byte, the lower half first, as floats. Each lane gets the word with its eight integers and
// moves its own four bits to the bottom, for a table look-up, or to the top, for an arithmetic shift.
template <int... I> inline vec halves_of_bytes(const char *from, std::integer_sequence<int, I...>) {
#if defined(__AVX512F__)
    const __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
    return four_bits(uvec(_mm512_permutexvar_epi32(__m512i(ivec{(I / 8)...}), words)) >> uvec{(4 * (I % 8))...});
#else
    std::uint32_t word = 0;
    std::memcpy(&word, from, LANES / 2);
    return __builtin_convertvector(ivec((word - uvec{}) << uvec{(28 - 4 * I)...}) >> 28, vec);
#endif
}

inline vec halves_of_bytes(const char *from) { return halves_of_bytes(from, std::make_integer_sequence<int, LANES>()); }

// From LANES words of eight 4-bit integers each, the integer `I` of each word as floats.
template <int I> inline vec halves_of_words(uvec words) {
#if defined(__AVX512F__)
    return four_bits(words >> (4 * I));
#else
    return __builtin_convertvector(ivec(words << (28 - 4 * I)) >> 28, vec);
#endif
}

inline vec root(vec value) {
#if defined(__AVX512F__)
    return vec(_mm512_sqrt_ps(__m512(value)));
#elif defined(__AVX2__)
    return vec(_mm256_sqrt_ps(__m256(value)));
#else
    for (int i = 0; i < LANES; ++i) value[i] = __builtin_sqrtf(value[i]);
    return value;
#endif
}

// The maximum of each lane; NaN if `a` is NaN.
inline vec larger(vec a, vec b) { return a < b ? b : a; }

// NaN stays NaN.
inline vec relu(vec value) { return larger(value, vec{}); }

// The maximum of each lane; NaN if any value is NaN.
inline vec largest(vec a, vec b, vec c, vec d) {
    const ivec nan = (a != a) | (b != b) | (c != c) | (d != d);  // all bits set is a NaN, too
    return vec(ivec(larger(larger(a, b), larger(c, d))) | nan);
}

// The sums of four vectors: adjacent lanes are added, then pairs of them, then groups of four lanes.
template <int... I> inline void sum_each(const vec (&of)[4], float (&to)[4], std::integer_sequence<int, I...>) {
    const vec low = __builtin_shufflevector(of[0], of[1], (I / 2 * 2 + I % 2 * LANES)...) +
                    __builtin_shufflevector(of[0], of[1], (I / 2 * 2 + I % 2 * LANES + 1)...);
    const vec high = __builtin_shufflevector(of[2], of[3], (I / 2 * 2 + I % 2 * LANES)...) +
                     __builtin_shufflevector(of[2], of[3], (I / 2 * 2 + I % 2 * LANES + 1)...);
    const vec all = __builtin_shufflevector(low, high, (I / 4 * 4 + I % 2 + I / 2 % 2 * LANES)...) +
                    __builtin_shufflevector(low, high, (I / 4 * 4 + I % 2 + I / 2 % 2 * LANES + 2)...);
    float groups[LANES];
    store(groups, all);
    for (int i = 0; i < 4; ++i) {
        to[i] = groups[i];
        for (int lane = 4 + i; lane < LANES; lane += 4) to[i] += groups[lane];
    }
}

inline void sum_each(const vec (&of)[4], float (&to)[4]) { sum_each(of, to, std::make_integer_sequence<int, LANES>()); }

inline float sum(vec value) {
    float total[LANES];
    std::memcpy(total, &value, sizeof value);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) total[i] += total[i + half];
    return total[0];
}

}  // namespace VGG_ISA
