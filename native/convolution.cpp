// Convolutions and the layers between them.
//
// A 3x3 convolution runs in three steps per tile: the inputs are transformed; each position of the transformed tile is one
// matrix product; the products are transformed back, with bias, ReLU and, if it follows, max pooling. The first convolution,
// with its three input channels, and 1x1 convolutions are plain matrix products.
#include <algorithm>
#include <cmath>

#include "network.hpp"

namespace vgg {
namespace {

constexpr int LARGE_BLOCK = 64, SMALL_BLOCK = 24;  // tiles that are processed together

}  // namespace

// The first layer, as a matrix product: each of the k = (channel, y, x) inputs of a pixel is at a fixed distance from it.
void Executor::first_convolution(const Layer &layer, Images to) {
    const int kernel = layer.what.kernel, k = layer.what.in * kernel * kernel, panel = kernels.panel;
    std::vector<std::int32_t> offsets;
    for (int c = 0; c < layer.what.in; ++c)
        for (int y = 0; y < kernel; ++y)
            for (int x = 0; x < kernel; ++x) offsets.push_back(c * plane + (y + 1 - kernel / 2) * line + x + 1 - kernel / 2);
    pool.run(height, [&](int y, int) {
        for (int c = 0; c < layer.channels; c += panel)
            kernels.convolution({planes.get() + y * line, 1, offsets.data()}, width, k, layer.weight.get() + c * k,
                                layer.bias.data() + c, to.map.pixel(to.first, y, 0) + c, layer.channels);
    });
}

void Executor::pointwise(const Layer &layer, Images from, Images to) {
    const int k = layer.what.in, panel = kernels.panel;
    std::vector<std::int32_t> offsets(k);
    for (int c = 0; c < k; ++c) offsets[c] = c;
    pool.run(from.count * from.map.height, [&](int index, int) {
        const int n = index / from.map.height, y = index % from.map.height;
        for (int c = 0; c < layer.channels; c += panel)
            kernels.convolution({from.map.pixel(from.first + n, y, 0), from.map.channels, offsets.data()}, from.map.width, k,
                                layer.weight.get() + std::ptrdiff_t(c) * k, layer.bias.data() + c,
                                to.map.pixel(to.first + n, y, 0) + c, layer.channels);
    });
}

void Executor::winograd(const Layer &layer, Images from, const Images *to, const Images *pooled) {
    const Convolution &arithmetic = *layer.arithmetic;
    const int tile = layer.tile, positions = (tile + 2) * (tile + 2), panel = kernels.panel;
    const int in = from.map.channels / arithmetic.channels, out = layer.channels, k = layer.words, panels = out / panel;
    const int down = (from.map.height + tile - 1) / tile, across = (from.map.width + tile - 1) / tile;
    const int tiles = from.count * down * across, threads = pool.threads();

    // Tiles are processed in blocks: large ones if there are many weights, which are read once per block, small ones if the
    // weights stay in the cache. Threads share a large block, so that they use the same weights, and have small blocks each.
    const bool large = layer.deep || tiles <= LARGE_BLOCK;
    const bool shared = threads > 1 && (large || tiles < threads * SMALL_BLOCK);
    const int most = large ? LARGE_BLOCK : SMALL_BLOCK;
    int blocks = (tiles + most - 1) / most;
    if (!shared) blocks = up_to_multiple(blocks, threads);
    const int block = (tiles + blocks - 1) / blocks;
    const int workers = shared ? 1 : threads;
    // An odd number of cache lines between positions, so that they don't share a cache set.
    const std::ptrdiff_t in_step = (std::ptrdiff_t(block) * in + 16) | 16, out_step = (std::ptrdiff_t(block) * out + 16) | 16;
    const std::size_t in_size = in_step * positions, out_size = out_step * positions;
    // Positions are stored in descending order, inputs at the start of the memory and products at its end. If one thread
    // processes a block, a position's products replace the inputs of earlier positions, which halves the memory in the cache.
    const std::size_t size = shared ? in_size + out_size : std::max(in_size, out_size) + std::min(in_step, out_step);
    transformed.reserve(size * workers);

    const Finish finishing = layer.finish();
    const auto corner = [&](int index, int &n, int &y, int &x) {
        n = index / (down * across), y = index % (down * across) / across * tile, x = index % across * tile;
    };
    const auto transform = [&](int index, int slot, int count, float *to) {
        int n, y, x;
        corner(index, n, y, x);
        const Blocks rows(count, kernels.rows);  // the order in which the product reads them
        const int b = rows.of(slot), top = rows.first(b), height = rows.first(b + 1) - top;
        arithmetic.input(tile, from.map.corner(from.first + n) + y * from.map.row + x * from.map.step, from.map.row,
                         from.map.step, from.map.channels, to + std::ptrdiff_t(top) * in + (slot - top) * kernels.lanes,
                         -in_step, height * kernels.lanes);
    };
    const auto multiply = [&](int position, int first, int last, int count, const float *from, float *to) {
        const float *weights = layer.weight.get() + std::ptrdiff_t(position) * out * k;
        for (int p = first; p < last; ++p) {
            const float *now = weights + std::ptrdiff_t(p) * k * panel;
            const float *next = now + std::ptrdiff_t(k) * panel;
            arithmetic.product(from - position * in_step, in, count, k, now, next, to - position * out_step + p * panel, out);
        }
    };
    const auto finish = [&](int index, int slot, const float *from_products) {
        int n, y, x;
        corner(index, n, y, x);
        arithmetic.output(
            tile, from_products + std::ptrdiff_t(slot) * out, -out_step, finishing, out, std::min(tile, from.map.height - y),
            std::min(tile, from.map.width - x), to ? to->pixel(n, y, x) : nullptr, to ? to->map.row : 0,
            pooled ? pooled->pixel(n, y / 2, x / 2) : nullptr, pooled ? pooled->map.row : 0, (to ? to : pooled)->map.step);
    };
    if (!shared) {
        pool.run(blocks, [&](int number, int worker) {
            const int first = std::int64_t(tiles) * number / blocks, last = std::int64_t(tiles) * (number + 1) / blocks;
            float *start = transformed.get() + size * worker;
            float *inputs = start + in_size - in_step, *products = start + size - out_step;
            for (int index = first; index < last; ++index) transform(index, index - first, last - first, inputs);
            for (int position = 0; position < positions; ++position)
                multiply(position, 0, panels, last - first, inputs, products);
            for (int index = first; index < last; ++index) finish(index, index - first, products);
        });
        return;
    }
    float *inputs = transformed.get() + in_size - in_step, *products = transformed.get() + size - out_step;
    const int parts = std::min(panels, (4 * threads + positions - 1) / positions);
    for (int number = 0; number < blocks; ++number) {
        const int first = std::int64_t(tiles) * number / blocks, last = std::int64_t(tiles) * (number + 1) / blocks;
        pool.run(last - first, [&](int slot, int) { transform(first + slot, slot, last - first, inputs); });
        pool.run(positions * parts, [&](int index, int) {
            const int part = index % parts;
            multiply(index / parts, panels * part / parts, panels * (part + 1) / parts, last - first, inputs, products);
        });
        pool.run(last - first, [&](int slot, int) { finish(first + slot, slot, products); });
    }
}

// Local response normalisation across channels: value / (k + alpha / size * sum of squares)^beta.
void Executor::normalise(const Layer &layer, Images from, Images to) {
    const int channels = layer.what.out, reach = int(layer.what.numbers[0]) / 2;
    const float alpha = float(layer.what.numbers[1] / layer.what.numbers[0]), beta = float(layer.what.numbers[2]),
                k = float(layer.what.numbers[3]);
    pool.run(from.count * from.map.height, [&](int index, int) {
        const int n = index / from.map.height, y = index % from.map.height;
        for (int x = 0; x < from.map.width; ++x) {
            const float *source = from.map.pixel(from.first + n, y, x);
            float *target = to.map.pixel(to.first + n, y, x);
            for (int c = 0; c < channels; ++c) {
                float squares = 0;
                for (int d = std::max(0, c - reach); d <= std::min(channels - 1, c + reach); ++d)
                    squares += source[d] * source[d];
                target[c] = source[c] * std::pow(k + alpha * squares, -beta);
            }
        }
    });
}

void Executor::halve(const Layer &layer, Images from, Images to) {
    const auto row = layer.what.operation == VGG_MAX_POOL    ? kernels.max_pool
                     : layer.what.operation == VGG_MEAN_POOL ? kernels.mean_pool
                                                             : kernels.l2_pool;
    pool.run(from.count * to.map.height, [&](int index, int) {
        const int n = index / to.map.height, y = index % to.map.height;
        if (layer.input)
            return kernels.integers->max_pool(from.map.bytes(from.first + n, 2 * y, 0), from.map.row * sizeof(float),
                                              from.map.channels, to.map.width, to.map.bytes(to.first + n, y, 0));
        row(from.map.pixel(from.first + n, 2 * y, 0), from.map.row, from.map.channels, to.map.width,
            to.map.pixel(to.first + n, y, 0));
    });
}

}  // namespace vgg
