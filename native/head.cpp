// The head: pooling, or the inputs of the first linear layer, and the linear layers.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

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
            const std::uint8_t *integers = map.bytes(image, y, x);
            const bool first = y == rows.begin && x == columns.begin;
            for (int c = 0; c < channels; ++c) {
                float &value = to[c * step];
                const float next = map.scale ? map.scale.real(integers[c]) : pixel[c];
                if (largest)
                    value = first || next > value || next != next ? next : value;  // NaN stays
                else
                    value = (first ? 0.0f : value) + share * next;
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

// The values of a step of the head: floats, or 8-bit integers.
struct Values {
    std::vector<float> floats = {};
    std::vector<std::uint8_t> integers = {};
    Scale scale = {};

    Values(std::size_t size, Scale scale) : scale(scale) { scale ? integers.resize(size) : floats.resize(size); }
    std::size_t size() const { return scale ? integers.size() : floats.size(); }
    float real(std::size_t i) const { return scale ? scale.real(integers[i]) : floats[i]; }
};

// The same values with another scale, or as floats.
Values converted(const Kernels &kernels, const Values &from, Scale scale) {
    Values to(from.size(), {});
    for (std::size_t i = 0; i < from.size(); ++i) to.floats[i] = from.real(i);
    if (!scale) return to;
    Values integers(from.size(), scale);
    kernels.integers->quantize(to.floats.data(), std::ptrdiff_t(from.size()), scale.scale, scale.zero,
                               integers.integers.data());
    return integers;
}

}  // namespace

// A linear layer of `number` rows of inputs, for outputs `begin` to `end`.
void Executor::linear(const Layer &layer, const Matrix &matrix, std::int64_t number, std::int64_t begin, std::int64_t end,
                      const float *inputs, float *to) {
    kernels.linear(matrix, begin, end, inputs, number, layer.bias.data(), layer.what.activation == VGG_RELU, sums.get(), to);
    if (layer.what.activation > VGG_RELU)
        for (std::int64_t n = 0; n < number; ++n)
            activate(layer.what.activation, float(layer.what.numbers[0]), to + n * matrix.outputs + begin, end - begin);
}

// The same of integers. `integers` receives the outputs if they are integers, else `floats`; `sums` is memory for as many sums.
void Executor::linear(const Layer &layer, const Matrix &matrix, std::int64_t number, std::int64_t begin, std::int64_t end,
                      const std::uint8_t *inputs, std::int32_t *sums, float *floats, std::uint8_t *integers) {
    kernels.integers->linear(matrix, begin, end, inputs, number, sums);
    for (std::int64_t n = 0; n < number; ++n) {
        const std::uint8_t *row = inputs + n * matrix.inputs;
        const std::int32_t total = layer.zero.empty() ? 0 : std::accumulate(row, row + matrix.inputs, 0);
        const std::int64_t place = n * matrix.outputs;
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int32_t sum = sums[place + i] - (total == 0 ? 0 : layer.zero[i] * total);
            const float value = float(sum + layer.offset[i]) * layer.factor[i];
            floats[place + i] = layer.what.activation == VGG_RELU && value < 0 ? 0.0f : value;
        }
        if (layer.what.activation > VGG_RELU)
            activate(layer.what.activation, float(layer.what.numbers[0]), floats + place + begin, end - begin);
        if (layer.output)
            kernels.integers->quantize(floats + place + begin, end - begin, layer.unit, layer.output.zero,
                                       integers + place + begin);
    }
}

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
    const std::int64_t number = std::int64_t(from.count) * windows;
    // Row n * windows + w has the inputs for image n and window w.
    Values values(number * features, pools ? Scale() : from.map.scale);
    time(step, [&] {
        pool.run(int(number), [&](int index, int) {
            const std::ptrdiff_t place = std::ptrdiff_t(index) * features;
            const int n = from.first + index / windows, top = index % windows / columns, left = index % windows % columns;
            for (int y = 0; y < kernel; ++y)
                for (int x = 0; x < kernel; ++x) {
                    const std::ptrdiff_t at = place + y * kernel + x,
                                         step_size = std::ptrdiff_t(kernel) * kernel;  // of a channel
                    if (pools)
                        pool_part(from.map, n, part(y, kernel, from.map.height), part(x, kernel, from.map.width), channels,
                                  layers[step].what.operation == VGG_GLOBAL_MAX_POOL, step_size, values.floats.data() + at);
                    else if (values.scale)
                        for (int c = 0; c < channels; ++c)
                            values.integers[at + c * step_size] = from.map.bytes(n, top + y, left + x)[c];
                    else
                        for (int c = 0; c < channels; ++c)
                            values.floats[at + c * step_size] = from.map.pixel(n, top + y, left + x)[c];
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
                                values.real((std::size_t(n) * windows + w) * size + c);
    };
    if (pools) {
        if (layers[step].output) values = converted(kernels, values, layers[step].output);
        record(step++, features);
    }
    for (; step < end; ++step) {
        const Layer &layer = layers[step];
        if (layer.what.operation != VGG_LINEAR) {
            time(step, [&] { values = converted(kernels, values, layer.output); });
            record(step, values.size() / number);
            continue;
        }
        const std::int64_t outputs_count = layer.what.out;
        Values results(number * outputs_count, layer.output);
        const Matrix matrix{layer.what.weight,
                            Kind(layer.what.kind),
                            layer.scale.data(),
                            outputs_count,
                            std::int64_t(layer.what.in) * layer.what.kernel * layer.what.kernel,
                            layer.what.group};
        const auto each_part = [&](const auto &body) {
            const int parts = int(std::min<std::int64_t>(outputs_count, 8 * pool.threads()));
            pool.run(parts, [&](int part, int) { body(outputs_count * part / parts, outputs_count * (part + 1) / parts); });
        };
        time(step, [&] {
            if (layer.input) {
                std::vector<std::int32_t> integer_sums(number * outputs_count);
                if (layer.output) results.floats.resize(number * outputs_count);
                each_part([&](std::int64_t begin, std::int64_t end) {
                    linear(layer, matrix, number, begin, end, values.integers.data(), integer_sums.data(),
                           results.floats.data(), results.integers.data());
                });
                return;
            }
            const float *inputs = values.floats.data();
            if (number > kernels.few) {
                sums.reserve(std::size_t(number + kernels.panel) * outputs_count);
                panels.reserve(std::size_t(number + kernels.panel) * matrix.inputs);
                pool.run(int((matrix.inputs + SLICE - 1) / SLICE), [&](int slice, int) {
                    const std::int64_t begin = std::int64_t(slice) * SLICE;
                    kernels.panels(inputs, number, matrix.inputs, begin, std::min(begin + SLICE, matrix.inputs), panels.get());
                });
                inputs = panels.get();
            }
            each_part([&](std::int64_t begin, std::int64_t end) {
                linear(layer, matrix, number, begin, end, inputs, results.floats.data());
            });
        });
        values = std::move(results);
        record(step, outputs_count);
    }
}

}  // namespace vgg
