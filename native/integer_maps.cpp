// Maps of 8-bit integers: quantization, and convolutions without Winograd's filtering.
#include <algorithm>
#include <array>

#include "network.hpp"

namespace vgg {

void Executor::quantize_images(Images to) {
    const Scale scale = to.map.scale;
    std::vector<std::uint8_t> rows(std::size_t(width) * pool.threads());  // one for each worker
    pool.run(height, [&](int y, int worker) {
        std::uint8_t *row = rows.data() + std::ptrdiff_t(width) * worker;
        std::uint8_t *pixels = to.map.bytes(to.first, y, 0);
        for (int c = 0; c < 3; ++c) {
            kernels.integers->quantize(planes.get() + c * plane + (y + 1) * line + 1, width, scale.scale, scale.zero, row);
            for (int x = 0; x < width; ++x) pixels[4 * x + c] = row[x];
        }
    });
}

void Executor::quantize(const Layer &layer, Images from, Images to) {
    const Scale scale = to.map.scale;
    std::array<std::uint8_t, 256> table{};  // of integers, which get another scale
    for (int i = 0; i < 256 && layer.input; ++i) {
        const float value = layer.input.real(std::uint8_t(i));
        kernels.integers->quantize(&value, 1, scale.scale, scale.zero, &table[i]);
    }
    const std::ptrdiff_t count = std::ptrdiff_t(from.map.width) * from.map.channels;
    pool.run(from.count * from.map.height, [&](int index, int) {
        const int n = index / from.map.height, y = index % from.map.height;
        std::uint8_t *target = to.map.bytes(to.first + n, y, 0);
        if (!layer.input) return kernels.integers->quantize(from.pixel(n, y, 0), count, scale.scale, scale.zero, target);
        const std::uint8_t *values = from.map.bytes(from.first + n, y, 0);
        std::transform(values, values + count, target, [&](std::uint8_t value) { return table[value]; });
    });
}

void Executor::dequantize(Images from, Images to) {
    pool.run(from.count * from.map.height, [&](int index, int) {
        const int n = index / from.map.height, y = index % from.map.height;
        for (int x = 0; x < from.map.width; ++x) {
            const std::uint8_t *values = from.map.bytes(from.first + n, y, x);
            float *target = to.pixel(n, y, x);
            for (int c = 0; c < from.map.channels; ++c) target[c] = from.map.scale.real(values[c]);
        }
    });
}

// As a matrix product, of rows whose integers are first widened to 16 bits.
void Executor::direct(const Layer &layer, Images from, Images to) {
    const int kernel = layer.what.kernel, panel = kernels.panel, pixel = from.map.channels / 2;  // words
    const int columns = from.map.width + kernel - 1;
    const std::ptrdiff_t line_words = (std::ptrdiff_t(columns) * pixel + 15) / 16 * 16, size = line_words * kernel;
    transformed.reserve(size * pool.threads());
    std::vector<std::int32_t> offsets;
    for (int y = 0; y < kernel; ++y)
        for (int x = 0; x < kernel; ++x)
            for (int word = 0; word < layer.words; ++word) offsets.push_back(std::int32_t(y * line_words + x * pixel + word));
    const int k = int(offsets.size()), edge = kernel / 2;
    pool.run(from.count * from.map.height, [&](int index, int worker) {
        const int n = index / from.map.height, y = index % from.map.height;
        float *rows = transformed.get() + size * worker;
        for (int i = 0; i < kernel; ++i)
            kernels.integers->widen(from.map.bytes(from.first + n, y + i - edge, -edge),
                                    std::ptrdiff_t(columns) * from.map.channels, rows + i * line_words);
        for (int c = 0; c < layer.channels; c += panel)
            kernels.integers->direct({rows, pixel, offsets.data()}, from.map.width, k,
                                     layer.weight.get() + std::ptrdiff_t(c) * k, layer.finish(), c, to.pixel(n, y, 0),
                                     to.map.step);
    });
}

// As products of bytes, which are read where they are.
void Executor::direct_bytes(const Layer &layer, Images from, Images to) {
    const int kernel = layer.what.kernel, edge = kernel / 2, area = kernel * kernel;
    const std::ptrdiff_t pixel = from.map.step * sizeof(float), row = from.map.row * sizeof(float);
    std::array<std::ptrdiff_t, 9> taps{};
    for (int tap = 0; tap < area; ++tap) taps[tap] = (tap / kernel - edge) * row + (tap % kernel - edge) * pixel;
    pool.run(from.count * from.map.height, [&](int index, int) {
        const int n = index / from.map.height, y = index % from.map.height;
        for (int c = 0; c < layer.channels; c += kernels.panel)
            kernels.integers->bytes.rows(from.map.bytes(from.first + n, y, 0), pixel, from.map.width, taps.data(), area,
                                         layer.what.in, layer.weight.get(), layer.finish(), c, to.pixel(n, y, 0), to.map.step);
    });
}

}  // namespace vgg
