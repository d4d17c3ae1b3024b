// The head: pooling, or the inputs of the first linear layer, and the linear layers.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "network.hpp"

namespace vgg {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t SLICE = 256;  // columns of a linear layer's inputs that a thread processes at a time

// Rows or columns of a map.
struct Part {
    int begin, end;
};

// Part `index` of `count` of a map's `size` rows or columns; parts overlap if the size is not a multiple of their number.
Part part(int index, int count, int size) { return {index * size / count, ((index + 1) * size + count - 1) / count}; }

// The mean or the maximum of part of a map for each channel, written `step` floats apart.
void pool_part(const Map &map, int image, Part rows, Part columns, int channels, bool largest, std::ptrdiff_t step, float *to) {
    const float share = 1.0f / ((rows.end - rows.begin) * (columns.end - columns.begin));
    for (int y = rows.begin; y < rows.end; ++y)
        for (int x = columns.begin; x < columns.end; ++x) {
            const float *pixel = map.pixel(image, y, x);
            const bool first = y == rows.begin && x == columns.begin;
            for (int c = 0; c < channels; ++c) {
                float &value = to[c * step];
                if (largest)
                    value = first || !(pixel[c] <= value) ? pixel[c] : value;  // NaN stays
                else
                    value = (first ? 0.0f : value) + share * pixel[c];
            }
        }
}

void activate(int function, float number, float *values, std::int64_t count) {
    const auto each = [&](const auto &of) {
        for (std::int64_t i = 0; i < count; ++i) values[i] = of(values[i] + (values[i] - values[i]));  // infinity becomes NaN
    };
    switch (function) {
        case VGG_LEAKY_RELU: return each([&](float x) { return x < 0 ? number * x : x; });
        case VGG_ELU: return each([&](float x) { return x < 0 ? number * std::expm1(x) : x; });
        case VGG_GELU: return each([](float x) { return 0.5f * x * (1 + std::erf(x * 0.70710678f)); });
        case VGG_GELU_TANH:
            return each([](float x) { return 0.5f * x * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x))); });
        case VGG_SILU: return each([](float x) { return x / (1 + std::exp(-x)); });
        case VGG_TANH: return each([](float x) { return std::tanh(x); });
        case VGG_SIGMOID: return each([](float x) { return 1 / (1 + std::exp(-x)); });
        default: return;
    }
}

}  // namespace

// The head: the linear layers, for each position (window) where the first of them fits into the map.
void Executor::classify(int end, Images from, int first, const vgg_output *outputs, int count) {
    const auto time = [&](int step, const auto &body) {
        const auto start = Clock::now();
        body();
        seconds[step] += std::chrono::duration<double>(Clock::now() - start).count();
    };
    int step = plan.head;
    const bool pools = layers[step].what.operation != VGG_LINEAR;
    const int kernel = layers[step].what.kernel, channels = layers[step].what.in, features = channels * kernel * kernel;
    const int rows = pools ? 1 : from.map.height - kernel + 1, columns = pools ? 1 : from.map.width - kernel + 1;
    const int windows = rows * columns;
    // Row n * windows + w has the inputs for image n and window w.
    std::vector<float> values(std::size_t(from.count) * windows * features);
    time(step, [&] {
        pool.run(from.count * windows, [&](int index, int) {
            float *to = values.data() + std::ptrdiff_t(index) * features;
            const int n = from.first + index / windows, top = index % windows / columns, left = index % windows % columns;
            for (int y = 0; y < kernel; ++y)
                for (int x = 0; x < kernel; ++x) {
                    float *at = to + y * kernel + x;  // the values of one channel are kernel * kernel apart
                    const std::ptrdiff_t step_size = std::ptrdiff_t(kernel) * kernel;
                    if (pools) {
                        pool_part(from.map, n, part(y, kernel, from.map.height), part(x, kernel, from.map.width), channels,
                                  layers[step].what.operation == VGG_GLOBAL_MAX_POOL, step_size, at);
                    } else {
                        const float *pixel = from.map.pixel(n, top + y, left + x);
                        for (int c = 0; c < channels; ++c) at[c * step_size] = pixel[c];
                    }
                }
        });
    });
    const auto record = [&](int step, std::size_t size) {
        for (int i = 0; i < count; ++i)
            if (outputs[i].step == step)
                for (int n = 0; n < from.count; ++n)
                    for (int w = 0; w < windows; ++w)
                        for (std::size_t c = 0; c < size; ++c)
                            outputs[i].values[((first + n) * size + c) * windows + w] =
                                values[(std::size_t(n) * windows + w) * size + c];
    };
    if (pools) record(step++, features);
    for (; step < end; ++step) {
        const Layer &layer = layers[step];
        const std::int64_t outputs_count = layer.what.out;
        std::vector<float> results(std::size_t(from.count) * windows * outputs_count);
        const Matrix matrix{layer.what.weight,
                            Kind(layer.what.kind),
                            layer.scale.data(),
                            outputs_count,
                            std::int64_t(layer.what.in) * layer.what.kernel * layer.what.kernel,
                            layer.what.group};
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
                kernels.linear(matrix, begin, end, rows, number, layer.bias.data(), layer.what.activation == VGG_RELU,
                               sums.get(), results.data());
                if (layer.what.activation > VGG_RELU)
                    for (std::int64_t n = 0; n < number; ++n)
                        activate(layer.what.activation, float(layer.what.numbers[0]), &results[n * outputs_count + begin],
                                 end - begin);
            });
        });
        values = std::move(results);
        record(step, outputs_count);
    }
}

}  // namespace vgg
