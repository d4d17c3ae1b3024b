// The plan of a network: its layers with their weights in the order in which the kernels read them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "network.hpp"

namespace vgg {
namespace {

constexpr int LARGE = 32;  // maps of this side and more use F(8x8); smaller ones F(4x4), which has a third of the weights

// `count` values at any alignment, padded with zeros to `size`.
template <class T> std::vector<T> copied(const T *from, std::size_t count, std::size_t size) {
    std::vector<T> values(size);
    std::memcpy(values.data(), from, count * sizeof(T));
    return values;
}

// The sums of a row's positive and of its negative weights.
struct Sums {
    std::int64_t positive = 0, negative = 0;
};

Sums sums_of(const std::int8_t *row, std::int64_t count, int zero) {
    Sums sums;
    for (std::int64_t i = 0; i < count; ++i) {
        const int weight = row[i] - zero;
        (weight > 0 ? sums.positive : sums.negative) += weight;
    }
    return sums;
}

}  // namespace

void Plan::add(const vgg_layer &what, Pool &pool) {
    const Scale input = layers.empty() ? Scale() : layers.back().output;
    const bool images = layers.empty() || (layers.size() == 1 && layers[0].what.operation == VGG_QUANTIZE);
    const bool pools = what.operation == VGG_AVERAGE_POOL || what.operation == VGG_GLOBAL_MAX_POOL;
    const bool weighted = what.operation == VGG_CONVOLUTION || what.operation == VGG_LINEAR;
    if (weighted) channels = what.out;
    // The integers of an image's three channels are in one float.
    const int padding = layers.empty() && what.operation == VGG_QUANTIZE ? int(sizeof(float)) : kernels.panel;
    Layer layer{.what = what, .channels = up_to_multiple(channels, padding), .input = input};
    layer.what.out = channels;
    if (pools) layer.what.in = channels;
    if (what.operation == VGG_MAX_POOL)
        layer.output = input;
    else if (what.operation == VGG_QUANTIZE || (input && (weighted || pools)))
        layer.output = {what.output_scale, what.output_zero};
    if (weighted) {
        const int padded = what.operation == VGG_CONVOLUTION ? layer.channels : what.out;
        layer.bias = copied(what.bias, what.out, padded);
        if (what.zero) layer.zero = copied(what.zero, what.out, padded);
        if (what.scale) {
            const std::size_t inputs = std::size_t(what.in) * what.kernel * what.kernel;
            const std::size_t scales = what.out * ((inputs + what.group - 1) / what.group);
            layer.scale = copied(what.scale, scales, scales);
        }
        const bool wide = !input || scale_integers(layer, pool);
        if (what.operation == VGG_CONVOLUTION) transform(layer, images, what.kernel == 3 && !images && wide, pool);
    }
    side = side_after(what, side);
    const int place = int(layers.size());
    const bool in_head = what.operation == VGG_LINEAR || pools;
    if (deep == place && !layer.deep && !in_head) ++deep;
    if (head == place && !in_head) ++head;
    layers.push_back(std::move(layer));
}

// A convolution's weights in the order of Winograd's filtering, or of a plain matrix product.
void Plan::transform(Layer &layer, bool images, bool winograd, Pool &pool) const {
    const vgg_layer &what = layer.what;
    const Filters from{what.weight, layer.scale.empty() ? nullptr : layer.scale.data(),
                       layer.zero.empty() ? nullptr : layer.zero.data()};
    const int area = what.kernel * what.kernel;
    const Bytes &bytes = kernels.integers->bytes;
    const int depth = bytes.depth ? up_to_multiple(what.in, bytes.depth) : 0;
    layer.bytes = layer.input && !images && depth && depth <= up_to_multiple(what.in, kernels.panel) &&
                  std::all_of(layer.zero.begin(), layer.zero.end(), [](int zero) { return zero == 0; });
    if (layer.bytes) {
        layer.weight = Memory(std::size_t(layer.channels) * area * depth / sizeof(float));
        bytes.weights(from, what.out, what.in, area, layer.weight.get());
        return;
    }
    layer.deep = winograd && side < LARGE;
    const Convolution &arithmetic = layer.input                         ? kernels.integers->winograd
                                    : winograd && what.kind == BFLOAT16 ? *kernels.bfloat16
                                                                        : kernels.floats;
    layer.words = (what.in + arithmetic.channels - 1) / arithmetic.channels;
    if (winograd) {
        layer.arithmetic = &arithmetic;
        layer.tile = layer.deep || &arithmetic != &kernels.floats ? 4 : 8;
        const int positions = (layer.tile + 2) * (layer.tile + 2);
        layer.weight = Memory(std::size_t(positions) * layer.channels * layer.words, false);
        pool.run(layer.channels / kernels.panel, [&](int panel, int) {
            arithmetic.weights(layer.tile, from, what.out, what.in, panel, panel + 1, layer.weight.get());
        });
        return;
    }
    layer.weight = Memory(std::size_t(layer.words) * area * layer.channels);
    if (layer.input)
        kernels.integers->plain_weights(from, what.out, what.in, area, layer.weight.get());
    else
        kernels.plain_weights(from, what.out, what.in * area, layer.weight.get());
}

// What follows the integer sums of a layer. Returns whether the kernel of Winograd's filtering has enough bits for them.
bool Plan::scale_integers(Layer &layer, Pool &pool) const {
    constexpr std::int64_t LIMIT = 1 << 25, LARGEST = 255;
    const std::int64_t inputs = std::int64_t(layer.what.in) * layer.what.kernel * layer.what.kernel;
    const bool convolution = layer.what.operation == VGG_CONVOLUTION;
    layer.offset.resize(layer.bias.size());
    layer.factor.resize(layer.bias.size());
    const bool later = layer.output && layer.what.activation > VGG_RELU;  // an activation comes before the output's scale
    std::atomic<bool> enough{true};
    pool.run(layer.what.out, [&](int row, int) {
        Sums sums;
        if (convolution || layer.input.zero != 0)  // else a linear layer's weights need not be read
            sums = sums_of(static_cast<const std::int8_t *>(layer.what.weight) + row * inputs, inputs,
                           layer.zero.empty() ? 0 : layer.zero[row]);
        if (-sums.negative * LARGEST > LIMIT || sums.positive * LARGEST >= LIMIT) enough = false;
        const float scale = layer.input.scale * layer.scale[row];
        const double offset =
            std::nearbyint(double(layer.bias[row]) / scale) - double(layer.input.zero * (sums.positive + sums.negative));
        constexpr double LOWEST = std::numeric_limits<std::int32_t>::min() / 2.0;
        layer.offset[row] = std::int32_t(std::clamp(offset, LOWEST, -LOWEST));
        layer.factor[row] = layer.output && !later ? scale / layer.output.scale : scale;
    });
    if (later) layer.unit = layer.output.scale;
    return enough;
}

}  // namespace vgg
