// Vectors of floats over the compiler's vector extensions: one source, any instruction set, compiled once for each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define VGG_LANES 16
#elif defined(__AVX2__)
#define VGG_LANES 8
#else
#define VGG_LANES 4
#endif

namespace VGG_ISA {

constexpr int LANES = VGG_LANES;

// The register block of a matrix product: ROWS x (VECTORS * LANES) sums, with room left for the operands.
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
typedef std::int32_t ivec __attribute__((vector_size(LANES * 4)));

inline vec load(const float *from) {
    vec value;
    std::memcpy(&value, from, sizeof value);  // tensors of foreign files lie anywhere
    return value;
}

inline void store(float *to, vec value) { std::memcpy(to, &value, sizeof value); }

inline vec splat(float value) { return value - vec{}; }

inline vec larger(vec a, vec b) { return a > b ? a : b; }

inline float sum(vec value) {
    float total[LANES];
    std::memcpy(total, &value, sizeof value);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) total[i] += total[i + half];
    return total[0];
}

}  // namespace VGG_ISA
