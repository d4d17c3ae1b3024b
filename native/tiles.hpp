// Tiles of 16 rows of 64 bytes, as registers of AMX. Built with VGG_EMULATED_TILES, they are arrays, by which processors
// without AMX test the code around them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(VGG_EMULATED_TILES)

namespace VGG_ISA { namespace {

thread_local std::int32_t tiles[8][16][16];

struct Tiles {};  // while an object exists, tiles may be used
template <int N> void zero_tile() { std::memset(tiles[N], 0, sizeof tiles[N]); }
template <int N> [[gnu::noinline]] void load_tile(const void *from, std::ptrdiff_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(tiles[N][row], static_cast<const char *>(from) + row * stride, 64);
}
template <int N> [[gnu::noinline]] void store_tile(void *to, std::ptrdiff_t stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char *>(to) + row * stride, tiles[N][row], 64);
}
// Adds the products of unsigned and signed bytes: of row i and column j, four of each word.
template <int SUMS, int LEFT, int RIGHT> void multiply_tiles() {
    for (int i = 0; i < 16; ++i)
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

}}  // namespace VGG_ISA

#else

#include <immintrin.h>

namespace VGG_ISA {

struct Tiles {
    Tiles() {
        struct alignas(64) {
            std::uint8_t palette = 1, start = 0, reserved[14] = {};
            std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
};
// In assembly, since GCC's intrinsics take the numbers of tiles as text.
template <int N> inline void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(N)); }
template <int N> inline void load_tile(const void *from, std::ptrdiff_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(N) : "memory");
}
template <int N> inline void store_tile(void *to, std::ptrdiff_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(N) : "memory");
}
template <int SUMS, int LEFT, int RIGHT> inline void multiply_tiles() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(LEFT), "i"(RIGHT));
}

}  // namespace VGG_ISA

#endif
