// A VGG network at work: who computes what, in which order, in which memory.
//
// Activations are [image, height, width, channels] in maps with a border of zeros, so that no loop asks where a picture
// ends. Convolutions go tile by tile through three steps: inputs transformed, one matrix product for each position of the
// transformed tile, outputs transformed with bias, ReLU and, where it follows, the pooling. The first convolution, with its
// three channels, and those of 1x1 are plain matrix products. Linear layers read their weights where they lie in the file.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.hpp"
#include "pool.hpp"
#include "vgg.h"

namespace vgg {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int LARGE = 32;     // maps of this side and more use F(8x8), smaller ones F(4x4), whose weights are a third
constexpr int TOGETHER = 16;  // images that share a pass over the weights of the deep layers and of the head
constexpr int LARGE_BLOCK = 64, SMALL_BLOCK = 24;  // tiles that are in work at once
constexpr std::int64_t SLICE = 256;  // columns of a linear layer's inputs that a thread takes at a time
constexpr std::size_t CACHE_LINE = 64, HUGE_PAGE = 2 << 20;  // bytes

int up_to_multiple(int value, int of) { return (value + of - 1) / of * of; }

// Floats on huge pages where there are many: the transformed weights span hundreds of megabytes.
class Memory {
  public:
    Memory() = default;
    explicit Memory(std::size_t count, bool zeroed = true) : count_(count) {
        if (count == 0) return;
        const std::size_t page = count * sizeof(float) < HUGE_PAGE ? CACHE_LINE : HUGE_PAGE;
        const std::size_t bytes = (count * sizeof(float) + page - 1) / page * page;
#if defined(_WIN32)
        data_.reset(static_cast<float *>(_aligned_malloc(bytes, page)));
#else
        data_.reset(static_cast<float *>(std::aligned_alloc(page, bytes)));
#endif
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        if (page == HUGE_PAGE) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
        if (zeroed) std::memset(data_.get(), 0, count * sizeof(float));
    }
    float *get() const { return data_.get(); }
    void reserve(std::size_t count) {
        if (count > count_) *this = Memory(), *this = Memory(count);
    }

  private:
    struct Free {
#if defined(_WIN32)
        void operator()(float *memory) const { _aligned_free(memory); }
#else
        void operator()(float *memory) const { std::free(memory); }
#endif
    };
    std::unique_ptr<float, Free> data_;
    std::size_t count_ = 0;
};

// Floats that may lie anywhere, with zeros after them up to `size`.
std::vector<float> copied(const float *from, std::size_t count, std::size_t size) {
    std::vector<float> values(size);
    std::memcpy(values.data(), from, count * sizeof(float));
    return values;
}

struct Layer {
    vgg_layer what;
    int channels;  // of its value in memory: `out`, padded
    int tile = 0;  // of Winograd's transform: 8, 4, or 0 for a plain product
    Memory weight;
    std::vector<float> bias, scale;
};

// The values of one layer for some images, each with a border of zeros.
struct Map {
    int height = 0, width = 0, channels = 0;
    std::ptrdiff_t row = 0, image = 0;  // floats from one to the next
    Memory memory;

    Map() = default;
    Map(int images, int height, int width, int channels)
        : height(height), width(width), channels(channels), row(std::ptrdiff_t(up_to_multiple(width, 8) + 2) * channels),
          image(row * (up_to_multiple(height, 8) + 2)), memory(std::size_t(image) * images) {}
    // One pixel above and left of the first.
    float *corner(int n) const { return memory.get() + n * image; }
    float *pixel(int n, int y, int x) const { return corner(n) + (y + 1) * row + std::ptrdiff_t(x + 1) * channels; }
};

}  // namespace
}  // namespace vgg

using namespace vgg;

struct vgg_network {
    vgg_network(const Kernels &kernels, int threads, int size) : kernels(kernels), pool(threads), side(size) {}

    void add(const vgg_layer &what);
    void run(const float *data, int batch, int height, int width, const vgg_output *outputs, int count);

    std::vector<double> seconds;  // that each layer took
    std::mutex mutex;

  private:
    struct Place {  // some images of a map
        const Map &map;
        int first, count;
    };
    void prepare(int images, int height, int width);
    Map &map(int step);
    void layer(int step, bool pooled, Place from, Place to);
    void first_convolution(const Layer &layer, Place to);
    void pointwise(const Layer &layer, Place from, Place to);
    void winograd(const Layer &layer, bool pooled, Place from, Place to);
    void normalise(const Layer &layer, Place from, Place to);
    void max_pool(Place from, Place to);
    void classify(int end, Place from, int first, const vgg_output *outputs, int count);

    const Kernels &kernels;
    Pool pool;
    int side, channels = 3;  // of the map that the next layer gets, for pictures of the intended size
    std::vector<Layer> layers;
    int deep = 0;  // the first layer whose images are worked on together
    int head = 0;  // the first layer of the head

    // Memory for pictures of one shape, kept for the next run.
    int images = 0, height = 0, width = 0;
    std::vector<Map> maps;  // of each layer's value, made when it is first needed
    Memory planes;          // a picture's planes with a border of zeros
    int plane = 0, line = 0;
    Memory transformed;       // Winograd's inputs and products
    Memory panels, sums;      // a linear layer's inputs and outputs
};

void vgg_network::add(const vgg_layer &what) {
    if (what.operation == VGG_CONVOLUTION || what.operation == VGG_LINEAR) channels = what.out;
    Layer layer{what, up_to_multiple(channels, kernels.panel), 0, {}, {}, {}};
    layer.what.out = channels;
    if (what.operation == VGG_AVERAGE_POOL) layer.what.in = channels;
    if (what.operation == VGG_CONVOLUTION) {
        layer.bias = copied(what.bias, what.out, layer.channels);
        const Filters from{what.weight, what.scale};
        if (what.kernel == 3 && !layers.empty()) {
            layer.tile = side >= LARGE ? 8 : 4;
            const int positions = (layer.tile + 2) * (layer.tile + 2);
            layer.weight = Memory(std::size_t(positions) * layer.channels * what.in, false);
            pool.run(layer.channels / kernels.panel, [&](int panel, int) {
                kernels.winograd_weights(layer.tile, from, what.out, what.in, panel, panel + 1, layer.weight.get());
            });
        } else {
            const int k = what.in * what.kernel * what.kernel;
            layer.weight = Memory(std::size_t(k) * layer.channels);
            kernels.plain_weights(from, what.out, k, layer.weight.get());
        }
    } else if (what.operation == VGG_LINEAR) {
        layer.bias = copied(what.bias, what.out, what.out);
        if (what.scale) {
            const std::size_t inputs = std::size_t(what.in) * what.kernel * what.kernel;
            const std::size_t scales = what.out * ((inputs + what.group - 1) / what.group);
            layer.scale = copied(what.scale, scales, scales);
        }
    } else if (what.operation == VGG_MAX_POOL) {
        side /= 2;
    }
    const int place = int(layers.size());
    const bool in_head = what.operation == VGG_LINEAR || what.operation == VGG_AVERAGE_POOL;
    if (deep == place && layer.tile != 4 && !in_head) ++deep;
    if (head == place && !in_head) ++head;
    layers.push_back(std::move(layer));
    seconds.push_back(0);
}

void vgg_network::prepare(int some_images, int some_height, int some_width) {
    if (some_images <= images && some_height == height && some_width == width) return;
    images = 0;  // so that a run that finds no memory here leaves nothing half made
    maps.clear();
    maps.resize(layers.size());
    line = some_width + 2;
    plane = line * (some_height + 2);
    planes = Memory(std::size_t(plane) * 3);
    images = some_images, height = some_height, width = some_width;
}

Map &vgg_network::map(int step) {
    Map &found = maps[step];
    if (!found.memory.get()) {
        int pools = 0;
        for (int i = 0; i <= step; ++i) pools += layers[i].what.operation == VGG_MAX_POOL;
        // A layer before the deep ones sees one image at a time, but the last of them collects them.
        found = Map(step >= deep - 1 ? images : 1, height >> pools, width >> pools, layers[step].channels);
    }
    return found;
}

namespace {

// The values of an image of a map as planes: [channels, height, width].
void copy_planes(const Map &map, int image, int channels, float *to) {
    for (int c = 0; c < channels; ++c)
        for (int y = 0; y < map.height; ++y)
            for (int x = 0; x < map.width; ++x) *to++ = map.pixel(image, y, x)[c];
}

}  // namespace

void vgg_network::run(const float *data, int batch, int some_height, int some_width, const vgg_output *outputs, int count) {
    prepare(std::min(batch, TOGETHER), some_height, some_width);
    std::fill(seconds.begin(), seconds.end(), 0.0);
    int end = 0;  // of the layers that the outputs need
    for (int i = 0; i < count; ++i) end = std::max(end, outputs[i].step + 1);
    const auto wanted = [&](int step) {
        return std::any_of(outputs, outputs + count, [&](const vgg_output &output) { return output.step == step; });
    };
    // Runs layers for some images of the batch, of which `first` is the first; `slot` is its place in a map of several.
    const auto stretch = [&](int begin, int stop, int first, int slot, int number) {
        for (int step = begin; step < std::min(stop, end); ++step) {
            const int source = step - 1;
            const bool pooled = layers[step].tile && step + 1 < head && layers[step + 1].what.operation == VGG_MAX_POOL &&
                                !wanted(step);
            const auto start = Clock::now();
            const int result = step + pooled;
            const int from = source >= deep - 1 ? slot : 0, to = result >= deep - 1 ? slot : 0;
            layer(step, pooled, {source < 0 ? maps[0] : map(source), from, number}, {map(result), to, number});
            seconds[step] += std::chrono::duration<double>(Clock::now() - start).count();
            for (int i = 0; i < count; ++i)
                if (outputs[i].step == result) {
                    const Map &values = map(result);
                    const std::ptrdiff_t size = std::ptrdiff_t(layers[result].what.out) * values.height * values.width;
                    pool.run(number, [&](int n, int) {
                        copy_planes(values, to + n, layers[result].what.out, outputs[i].values + (first + n) * size);
                    });
                }
            step = result;
        }
    };
    for (int first = 0; first < batch; first += images) {
        const int number = std::min(images, batch - first);
        for (int n = 0; n < number; ++n) {
            for (int c = 0; c < 3; ++c)
                for (int y = 0; y < height; ++y)
                    std::memcpy(planes.get() + c * plane + (y + 1) * line + 1,
                                data + ((std::ptrdiff_t(first + n) * 3 + c) * height + y) * width, width * sizeof(float));
            stretch(0, deep, first + n, n, 1);
        }
        stretch(deep, head, first, 0, number);
        if (end > head) classify(end, {map(head - 1), 0, number}, first, outputs, count);
    }
}

// The head: rows of a picture's features, one each place where the first linear layer fits, through the linear layers.
void vgg_network::classify(int end, Place from, int first, const vgg_output *outputs, int count) {
    const auto time = [&](int step, const auto &body) {
        const auto start = Clock::now();
        body();
        seconds[step] += std::chrono::duration<double>(Clock::now() - start).count();
    };
    int step = head;
    const bool average = layers[step].what.operation == VGG_AVERAGE_POOL;
    const int kernel = average ? 1 : layers[step].what.kernel, features = layers[step].what.in * kernel * kernel;
    const int rows = average ? 1 : from.map.height - kernel + 1, columns = average ? 1 : from.map.width - kernel + 1;
    const int windows = rows * columns;
    // Row n * windows + w: what the linear layers see of image n at window w.
    std::vector<float> values(std::size_t(from.count) * windows * features);
    time(step, [&] {
        pool.run(from.count * windows, [&](int index, int) {
            float *to = values.data() + std::ptrdiff_t(index) * features;
            const int n = from.first + index / windows, top = index % windows / columns, left = index % windows % columns;
            if (average) {
                const float share = 1.0f / (from.map.height * from.map.width);
                for (int y = 0; y < from.map.height; ++y)
                    for (int x = 0; x < from.map.width; ++x)
                        for (int c = 0; c < features; ++c) to[c] += share * from.map.pixel(n, y, x)[c];
            } else {
                for (int y = 0; y < kernel; ++y)
                    for (int x = 0; x < kernel; ++x) {
                        const float *pixel = from.map.pixel(n, top + y, left + x);
                        for (int c = 0; c < layers[step].what.in; ++c) to[(c * kernel + y) * kernel + x] = pixel[c];
                    }
            }
        });
    });
    const auto record = [&](int step) {
        const int channels = layers[step].what.out;
        for (int i = 0; i < count; ++i)
            if (outputs[i].step == step)
                for (int n = 0; n < from.count; ++n)
                    for (int w = 0; w < windows; ++w)
                        for (int c = 0; c < channels; ++c)
                            outputs[i].values[(std::ptrdiff_t(first + n) * channels + c) * windows + w] =
                                values[(std::size_t(n) * windows + w) * channels + c];
    };
    if (average) record(step++);
    for (; step < end; ++step) {
        const Layer &layer = layers[step];
        const std::int64_t outputs_count = layer.what.out;
        std::vector<float> results(std::size_t(from.count) * windows * outputs_count);
        const Matrix matrix{layer.what.weight, Kind(layer.what.kind), layer.scale.data(), outputs_count,
                            std::int64_t(layer.what.in) * layer.what.kernel * layer.what.kernel, layer.what.group};
        time(step, [&] {
            const float *rows = values.data();
            const std::int64_t number = std::int64_t(from.count) * windows;
            if (number > kernels.few) {
                sums.reserve(std::size_t(number + kernels.panel) * outputs_count);
                panels.reserve(std::size_t(number + kernels.panel) * matrix.inputs);
                pool.run(int((matrix.inputs + SLICE - 1) / SLICE), [&](int slice, int) {
                    const std::int64_t begin = std::int64_t(slice) * SLICE;
                    kernels.panels(rows, number, matrix.inputs, begin, std::min(begin + SLICE, matrix.inputs), panels.get());
                });
                rows = panels.get();
            }
            const int parts = int(std::min<std::int64_t>(outputs_count, 8 * pool.threads()));
            pool.run(parts, [&](int part, int) {
                const std::int64_t begin = outputs_count * part / parts, end = outputs_count * (part + 1) / parts;
                kernels.linear(matrix, begin, end, rows, number, layer.bias.data(), layer.what.relu, sums.get(), results.data());
            });
        });
        values = std::move(results);
        record(step);
    }
}

void vgg_network::layer(int step, bool pooled, Place from, Place to) {
    const Layer &layer = layers[step];
    switch (layer.what.operation) {
        case VGG_CONVOLUTION:
            if (layer.tile) return winograd(layer, pooled, from, to);
            return step == 0 ? first_convolution(layer, to) : pointwise(layer, from, to);
        case VGG_LRN: return normalise(layer, from, to);
        default: return max_pool(from, to);
    }
}

// A picture's planes times the first layer's weights: each of the k = (channel, y, x) of a pixel is at a fixed distance.
void vgg_network::first_convolution(const Layer &layer, Place to) {
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

void vgg_network::pointwise(const Layer &layer, Place from, Place to) {
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

void vgg_network::winograd(const Layer &layer, bool pooled, Place from, Place to) {
    const int tile = layer.tile, positions = (tile + 2) * (tile + 2), panel = kernels.panel;
    const int in = from.map.channels, out = layer.channels, k = layer.what.in, panels = out / panel;
    const int down = (from.map.height + tile - 1) / tile, across = (from.map.width + tile - 1) / tile;
    const int tiles = from.count * down * across, threads = pool.threads();

    // A block of tiles at a time: large where the weights are many and pass by once a block, small where they stay in the
    // cache. Threads share a large block, which keeps them on the same weights, and have small ones of their own.
    const bool large = tile == 4 || tiles <= LARGE_BLOCK;
    const bool shared = threads > 1 && (large || tiles < threads * SMALL_BLOCK);
    const int most = large ? LARGE_BLOCK : SMALL_BLOCK;
    int blocks = (tiles + most - 1) / most;
    if (!shared) blocks = up_to_multiple(blocks, threads);
    const int block = (tiles + blocks - 1) / blocks;
    const int workers = shared ? 1 : threads;
    // An odd number of cache lines from position to position, so that they do not fall into the same set.
    const std::ptrdiff_t in_step = (std::ptrdiff_t(block) * in + 16) | 16, out_step = (std::ptrdiff_t(block) * out + 16) | 16;
    const std::size_t in_size = in_step * positions, out_size = out_step * positions;
    // Positions lie downwards, inputs from the start of the memory and products to its end, so that where one thread does a block,
    // a position's products take the place of inputs of those before it: the cache has half as much to hold.
    const std::size_t size = shared ? in_size + out_size : std::max(in_size, out_size) + std::min(in_step, out_step);
    transformed.reserve(size * workers);

    const auto corner = [&](int index, int &n, int &y, int &x) {
        n = index / (down * across), y = index % (down * across) / across * tile, x = index % across * tile;
    };
    const auto transform = [&](int index, int slot, int count, float *to) {
        int n, y, x;
        corner(index, n, y, x);
        const Blocks rows(count, kernels.rows);  // as the product reads them
        const int b = rows.of(slot), top = rows.first(b), height = rows.first(b + 1) - top;
        kernels.winograd_input(tile, from.map.corner(from.first + n) + y * from.map.row + std::ptrdiff_t(x) * in, from.map.row, in,
                               in, to + std::ptrdiff_t(top) * in + (slot - top) * kernels.lanes, -in_step,
                               height * kernels.lanes);
    };
    const auto multiply = [&](int position, int first, int last, int count, const float *from, float *to) {
        const float *weights = layer.weight.get() + std::ptrdiff_t(position) * out * k;
        for (int p = first; p < last; ++p) {
            const float *now = weights + std::ptrdiff_t(p) * k * panel;
            const float *next = now + std::ptrdiff_t(k) * panel;
            kernels.product(from - position * in_step, in, count, k, now, next, to - position * out_step + p * panel, out);
        }
    };
    const auto finish = [&](int index, int slot, const float *from_products) {
        int n, y, x;
        corner(index, n, y, x);
        const int half = pooled ? 2 : 1;
        kernels.winograd_output(tile, from_products + std::ptrdiff_t(slot) * out, -out_step, layer.bias.data(), out, pooled,
                                std::min(tile, from.map.height - y), std::min(tile, from.map.width - x),
                                to.map.pixel(to.first + n, y / half, x / half), to.map.row, out);
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

// Response normalisation across channels: value / (k + alpha / size * sum of squares)^beta.
void vgg_network::normalise(const Layer &layer, Place from, Place to) {
    const int channels = layer.what.out, reach = int(layer.what.lrn[0]) / 2;
    const float alpha = float(layer.what.lrn[1] / layer.what.lrn[0]), beta = float(layer.what.lrn[2]), k = float(layer.what.lrn[3]);
    pool.run(from.count * from.map.height, [&](int index, int) {
        const int n = index / from.map.height, y = index % from.map.height;
        for (int x = 0; x < from.map.width; ++x) {
            const float *source = from.map.pixel(from.first + n, y, x);
            float *target = to.map.pixel(to.first + n, y, x);
            for (int c = 0; c < channels; ++c) {
                float squares = 0;
                for (int d = std::max(0, c - reach); d <= std::min(channels - 1, c + reach); ++d) squares += source[d] * source[d];
                target[c] = source[c] * std::pow(k + alpha * squares, -beta);
            }
        }
    });
}

void vgg_network::max_pool(Place from, Place to) {
    pool.run(from.count * to.map.height, [&](int index, int) {
        const int n = index / to.map.height, y = index % to.map.height;
        kernels.max_pool(from.map.pixel(from.first + n, 2 * y, 0), from.map.row, from.map.channels, to.map.width,
                         to.map.pixel(to.first + n, y, 0));
    });
}

// --- The C interface ----------------------------------------------------------------------------------------------------

const char *vgg_instructions(const char *name) {
    const Kernels *found = kernels(name);
    return found ? found->name : nullptr;
}

vgg_network *vgg_open(const char *instructions, int threads, int size) {
    try {
        return new vgg_network(*kernels(instructions), threads, size);
    } catch (...) {  // no memory, or no more threads
        return nullptr;
    }
}

int vgg_add(vgg_network *network, const vgg_layer *layer) {
    try {
        network->add(*layer);
        return 0;
    } catch (const std::bad_alloc &) {
        return VGG_NO_MEMORY;
    }
}

void vgg_close(vgg_network *network) { delete network; }

int vgg_run(vgg_network *network, const float *data, int batch, int height, int width, const vgg_output *outputs, int count) {
    const std::lock_guard lock(network->mutex);
    try {
        network->run(data, batch, height, width, outputs, count);
        return 0;
    } catch (const std::bad_alloc &) {
        return VGG_NO_MEMORY;
    }
}

void vgg_times(const vgg_network *network, double *seconds) {
    std::copy(network->seconds.begin(), network->seconds.end(), seconds);
}

// --- The machine's limits -----------------------------------------------------------------------------------------------

double vgg_peak(const char *instructions, int threads, double seconds) {
    const Kernels &chosen = *kernels(instructions);
    constexpr std::int64_t ROUNDS = 100'000;
    std::vector<float> results(std::size_t(threads) * 16, 0.0f);
    std::atomic<std::int64_t> total{0};
    Pool pool(threads);
    const auto start = Clock::now();
    const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    pool.run(threads, [&](int index, int) {
        while (passed() < seconds) total += ROUNDS * chosen.peak(ROUNDS, &results[std::size_t(index) * 16]);
    });
    return double(total) / passed();
}

double vgg_bandwidth(const char *instructions, int threads, const float *memory, std::int64_t count) {
    const Kernels &chosen = *kernels(instructions);
    Pool pool(threads);
    std::atomic<float> sink{0};  // so that nothing is left out
    const auto start = Clock::now();
    pool.run(threads, [&](int index, int) {
        const std::int64_t begin = count * index / threads, end = count * (index + 1) / threads;
        sink = chosen.read(memory + begin, end - begin);
    });
    return double(count) * sizeof(float) / std::chrono::duration<double>(Clock::now() - start).count();
}
