// The head: global average pooling, or the inputs of the first linear layer, and the linear layers.
#include <algorithm>
#include <chrono>

#include "network.hpp"

namespace vgg {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t SLICE = 256;  // columns of a linear layer's inputs that a thread processes at a time

}  // namespace

// The head: the linear layers, for each position (window) where the first of them fits into the map.
void Executor::classify(int end, Images from, int first, const vgg_output *outputs, int count) {
    const auto time = [&](int step, const auto &body) {
        const auto start = Clock::now();
        body();
        seconds[step] += std::chrono::duration<double>(Clock::now() - start).count();
    };
    int step = plan.head;
    const bool average = layers[step].what.operation == VGG_AVERAGE_POOL;
    const int kernel = average ? 1 : layers[step].what.kernel, features = layers[step].what.in * kernel * kernel;
    const int rows = average ? 1 : from.map.height - kernel + 1, columns = average ? 1 : from.map.width - kernel + 1;
    const int windows = rows * columns;
    // Row n * windows + w has the inputs for image n and window w.
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
                kernels.linear(matrix, begin, end, rows, number, layer.bias.data(), layer.what.relu, sums.get(),
                               results.data());
            });
        });
        values = std::move(results);
        record(step);
    }
}

}  // namespace vgg
