// Tiles of up to 16 rows of 64 bytes, as registers of AMX: 0 to 3 are sums, 4 the left operand of 0 and 1, 5 of 2 and 3, and 6
// and 7 are right operands. Built with VGG_EMULATED_TILES, they are arrays, by which processors without AMX test the code
// around them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(VGG_EMULATED_TILES)

namespace VGG_ISA { namespace {

thread_local std::int32_t tiles[8][16][16];
thread_local int heights[8];

// While an object exists, tiles may be used, with `upper` rows of 0, 1 and 4, and `lower` rows of 2, 3 and 5.
struct Tiles {
    explicit Tiles(int upper = 16, int lower = 16) {
        const int rows[] = {upper, upper, lower, lower, upper, lower, 16, 16};
        std::memcpy(heights, rows, sizeof heights);
    }
};
template <int N> void zero_tile() { std::memset(tiles[N], 0, sizeof tiles[N]); }
template <int N> [[gnu::noinline]] void load_tile(const void *from, std::ptrdiff_t stride) {
    for (int row = 0; row < heights[N]; ++row) std::memcpy(tiles[N][row], static_cast<const char *>(from) + row * stride, 64);
}
template <int N> [[gnu::noinline]] void store_tile(void *to, std::ptrdiff_t stride) {
    for (int row = 0; row < heights[N]; ++row) std::memcpy(static_cast<char *>(to) + row * stride, tiles[N][row], 64);
}
// Adds the products of unsigned and signed bytes: of row i and column j, four of each word.
template <int SUMS, int LEFT, int RIGHT> void multiply_bytes() {
    for (int i = 0; i < heights[SUMS]; ++i)
        for (int k = 0; k < 16; ++k) {
            std::uint8_t left[4];
            std::memcpy(left, &tiles[LEFT][i][k], 4);
            for (int j = 0; j < 16; ++j) {
                std::int8_t right[4];
                std::memcpy(right, &tiles[RIGHT][k][j], 4);
                for (int b = 0; b < 4; ++b) tiles[SUMS][i][j] += left[b] * right[b];
            }
        }
}
// Adds the products of bfloat16 to floats: of row i and column j, two of each word.
template <int SUMS, int LEFT, int RIGHT> void multiply_bfloat16() {
    const auto number = [](std::uint32_t bits) {
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    };
    for (int i = 0; i < heights[SUMS]; ++i)
        for (int j = 0; j < 16; ++j) {
            float first = 0, second = 0;
            for (int k = 0; k < 16; ++k) {
                const std::uint32_t left = tiles[LEFT][i][k], right = tiles[RIGHT][k][j];
                first += number(left << 16) * number(right << 16);
                second += number(left & 0xffff0000) * number(right & 0xffff0000);
            }
            float sum = number(tiles[SUMS][i][j]) + (first + second);
            std::memcpy(&tiles[SUMS][i][j], &sum, sizeof sum);
        }
}

}}  // namespace VGG_ISA

#else

// In assembly, since GCC's intrinsics are macros that don't take a template's parameter as the number of a tile.
namespace VGG_ISA {

struct Tiles {
    explicit Tiles(int upper = 16, int lower = 16) {
        const std::uint8_t first = std::uint8_t(upper), second = std::uint8_t(lower);
        struct alignas(64) {
            std::uint8_t palette = 1, start = 0, reserved[14] = {};
            std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            std::uint8_t rows[16];
        } const shape{.rows = {first, first, second, second, first, second, 16, 16}};
        __asm__ volatile("ldtilecfg %0" ::"m"(shape));
    }
    ~Tiles() { __asm__ volatile("tilerelease"); }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
};
template <int N> inline void zero_tile() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(N)); }
template <int N> inline void load_tile(const void *from, std::ptrdiff_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(N) : "memory");
}
template <int N> inline void store_tile(void *to, std::ptrdiff_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(N) : "memory");
}
template <int SUMS, int LEFT, int RIGHT> inline void multiply_bytes() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(LEFT), "i"(RIGHT));
}
template <int SUMS, int LEFT, int RIGHT> inline void multiply_bfloat16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(LEFT), "i"(RIGHT));
}

}  // namespace VGG_ISA

#endif
