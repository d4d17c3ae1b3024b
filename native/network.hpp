// A network: the plan of its layers, and an executor with the threads and the memory that run it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "comparison.hpp"
#include "integers.hpp"
#include "kernels.hpp"
#include "pool.hpp"
#include "vgg.h"

namespace vgg {

inline int up_to_multiple(int value, int of) { return (value + of - 1) / of * of; }

// The side of a layer's output map, for an input map of a side.
inline int side_after(const vgg_layer &layer, int side) {
    if (layer.operation == VGG_MAX_POOL || layer.operation == VGG_MEAN_POOL) return side / 2;
    return layer.operation == VGG_L2_POOL ? (side + 1) / 2 : side;
}

// Floats, on huge pages if there are many: the transformed weights take hundreds of megabytes.
class Memory {
  public:
    Memory() = default;
    explicit Memory(std::size_t count, bool zeroed = true) : count_(count) {
        if (count == 0) return;
        constexpr std::size_t CACHE_LINE = 64, HUGE_PAGE = 2 << 20;  // bytes
        const std::size_t page = count * sizeof(float) < HUGE_PAGE ? CACHE_LINE : HUGE_PAGE;
        const std::size_t bytes = (count * sizeof(float) + page - 1) / page * page;
        data_ = {static_cast<float *>(operator new(bytes, std::align_val_t(page))), Free{page}};
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
        std::size_t page;
        void operator()(float *memory) const { operator delete(memory, std::align_val_t(page)); }
    };
    std::unique_ptr<float, Free> data_;
    std::size_t count_ = 0;
};

// What 8-bit integers mean: (integer - zero) * scale. Without a scale, values are floats.
struct Scale {
    float scale = 0;
    int zero = 0;

    explicit operator bool() const { return scale != 0; }
    float real(std::uint8_t value) const { return float(value - zero) * scale; }
};

// The output of a layer for some images, [image, height, width, channels], floats or 8-bit integers, each image with a border
// of zeros, so that no loop has to handle the edges.
struct Map {
    int images = 0, height = 0, width = 0, channels = 0;
    std::ptrdiff_t step = 0, row = 0, image = 0;  // floats from one pixel, row and image to the next
    Scale scale;
    Memory memory;

    Map() = default;
    Map(int images, int height, int width, int channels, Scale scale)
        : images(images),
          height(height),
          width(width),
          channels(channels),
          step(scale ? channels / int(sizeof(float)) : channels),
          row((up_to_multiple(width, 8) + 2) * step),
          image(row * (up_to_multiple(height, 8) + 2)),
          scale(scale),
          memory(std::size_t(image) * images + (scale ? Bytes::SLACK * step : 0)) {
        if (scale.zero) std::memset(memory.get(), scale.zero, image * images * sizeof(float));
    }
    // The pixel above and left of the first.
    float *corner(int n) const { return memory.get() + n * image; }
    // The bytes of a map of integers.
    std::uint8_t *bytes(int n, int y, int x) const { return reinterpret_cast<std::uint8_t *>(pixel(n, y, x)); }
    float *pixel(int n, int y, int x) const { return corner(n) + (y + 1) * row + (x + 1) * step; }
};

struct Layer {
    vgg_layer what;
    int channels;                             // of its output in memory: `out`, padded
    int tile = 0;                             // of Winograd's transform: 8, 4, or 0 for a plain matrix product
    bool deep = false;                        // has more weights than inputs
    const Convolution *arithmetic = nullptr;  // of Winograd's filtering
    int words = 0;                            // of the transformed input of a position
    bool bytes = false;                       // is computed as products of bytes
    Memory weight = {};
    std::vector<float> bias = {}, scale = {};
    Scale input = {}, output = {};          // of its maps, if they are integers
    std::vector<std::int32_t> zero = {};    // zero points of integer weights
    std::vector<std::int32_t> offset = {};  // of integer sums
    std::vector<float> factor = {};
    float unit = 1;  // what its outputs are divided by before they are rounded to integers

    Finish finish() const { return {bias.data(), offset.data(), factor.data(), output.zero, !output}; }
};

struct Plan {
    const Kernels &kernels;
    int threads;
    int side;          // of the next layer's input map, for images of the intended size
    int channels = 3;  // of that map
    std::vector<Layer> layers = {};
    int deep = 0;  // the first layer that processes several images together
    int head = 0;  // the first layer of the head

    // Appends a layer, and transforms its weights if it is a convolution.
    void add(const vgg_layer &what, Pool &pool);

  private:
    void transform(Layer &layer, bool images, bool winograd, Pool &pool) const;
    bool scale_integers(Layer &layer, Pool &pool) const;
};

class Executor {
  public:
    explicit Executor(const Plan &plan) : plan(plan), kernels(plan.kernels), layers(plan.layers), pool(plan.threads) {}

    // Runs a batch for the outputs, or for a comparison of its images.
    void run(const float *data, int batch, int height, int width, const vgg_output *outputs, int count,
             Comparison *comparison = nullptr);

    const Plan &plan;
    const Kernels &kernels;
    const std::vector<Layer> &layers;
    Pool pool;
    std::mutex mutex;             // held while anything below is in use
    std::vector<double> seconds;  // of each layer in the last run

  private:
    struct Images {  // some images of a map
        const Map &map;
        int first, count;
        float *pixel(int n, int y, int x) const { return map.pixel(first + n, y, x); }
    };

    // network.cpp
    void prepare(int images, int height, int width);
    Map &map(int step, int count);
    void layer(int step, Images from, Images to);
    // convolution.cpp
    void first_convolution(const Layer &layer, Images to);
    void pointwise(const Layer &layer, Images from, Images to);
    // Writes the whole output, its max pooling, or both.
    void winograd(const Layer &layer, Images from, const Images *to, const Images *pooled);
    void normalise(const Layer &layer, Images from, Images to);
    void halve(const Layer &layer, Images from, Images to);
    // integer_maps.cpp
    void quantize_images(Images to);
    void quantize(const Layer &layer, Images from, Images to);
    void dequantize(Images from, Images to);
    void direct(const Layer &layer, Images from, Images to);
    void direct_bytes(const Layer &layer, Images from, Images to);
    // head.cpp
    void classify(int end, Images from, int first, const vgg_output *outputs, int count);
    void linear(const Layer &layer, const Matrix &matrix, std::int64_t number, std::int64_t begin, std::int64_t end,
                const float *inputs, float *to);
    void linear(const Layer &layer, const Matrix &matrix, std::int64_t number, std::int64_t begin, std::int64_t end,
                const std::uint8_t *inputs, std::int32_t *sums, float *floats, std::uint8_t *integers);

    // Memory for images of one size, kept for the next run.
    int images = 0, height = 0, width = 0;
    std::vector<Map> maps;  // the output of each layer, allocated on first use
    Memory planes;          // the channels of an input image, with a border of zeros
    int plane = 0, line = 0;
    Memory transformed;   // Winograd's inputs and products; the inputs of a direct convolution of integers
    Memory panels, sums;  // a linear layer's inputs and outputs
};

}  // namespace vgg

struct vgg_network {
    vgg_network(const vgg::Kernels &kernels, int threads, int size);
    ~vgg_network();

    // The executor of this process. A forked process gets a new one: the threads of the parent's don't exist in it, and its
    // mutex and memory may be in any state, so it is left as it is.
    vgg::Executor &executor();

    vgg::Plan plan;

  private:
    struct Owned {
        long process;
        vgg::Executor executor;
    };
    std::atomic<Owned *> current_;
};
