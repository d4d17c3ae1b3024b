#include "expected.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace {

double activated(int function, double number, double x) {
    switch (function) {
        case VGG_RELU: return std::max(x, 0.0);
        case VGG_LEAKY_RELU: return x < 0 ? number * x : x;
        case VGG_ELU: return x < 0 ? number * (std::exp(x) - 1) : x;
        case VGG_GELU: return x * std::erfc(-x / std::sqrt(2.0)) / 2;
        case VGG_GELU_TANH: return x / (1 + std::exp(-2 * std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
        case VGG_SILU: return x / (1 + std::exp(-x));
        case VGG_TANH: return std::tanh(x);
        case VGG_SIGMOID: return 1 / (1 + std::exp(-x));
        default: return x;
    }
}

}  // namespace

Values empty_output(const vgg_layer &what, const Values &from) {
    Values to{what.out ? what.out : from.channels, from.height, from.width, {}};
    if (what.operation == VGG_MAX_POOL || what.operation == VGG_MEAN_POOL) to.height /= 2, to.width /= 2;
    if (what.operation == VGG_L2_POOL) to.height = (to.height + 1) / 2, to.width = (to.width + 1) / 2;
    if (what.operation == VGG_AVERAGE_POOL || what.operation == VGG_GLOBAL_MAX_POOL) to.height = to.width = what.kernel;
    if (what.operation == VGG_LINEAR) to.height -= what.kernel - 1, to.width -= what.kernel - 1;
    return to;
}

Values expected(const Layer &layer, const Values &from) {
    const vgg_layer &what = layer.what;
    Values to = empty_output(what, from);
    for (int c = 0; c < to.channels; ++c)
        for (int y = 0; y < to.height; ++y)
            for (int x = 0; x < to.width; ++x) {
                double value = 0;
                if (what.operation == VGG_MAX_POOL) {
                    value = std::max(std::max(from.at(c, 2 * y, 2 * x), from.at(c, 2 * y, 2 * x + 1)),
                                     std::max(from.at(c, 2 * y + 1, 2 * x), from.at(c, 2 * y + 1, 2 * x + 1)));
                } else if (what.operation == VGG_MEAN_POOL) {
                    for (int i : {2 * y, 2 * y + 1})
                        for (int j : {2 * x, 2 * x + 1}) value += from.at(c, i, j) / 4;
                } else if (what.operation == VGG_L2_POOL) {
                    for (int i : {-1, 0, 1})
                        for (int j : {-1, 0, 1})
                            value +=
                                (2 - std::abs(i)) * (2 - std::abs(j)) / 16.0 * std::pow(from.at(c, 2 * y + i, 2 * x + j), 2);
                    value = std::sqrt(value + 1e-12);
                } else if (what.operation == VGG_AVERAGE_POOL || what.operation == VGG_GLOBAL_MAX_POOL) {
                    const auto end = [&](int index, int size) { return ((index + 1) * size + what.kernel - 1) / what.kernel; };
                    const int top = y * from.height / what.kernel, bottom = end(y, from.height);
                    const int left = x * from.width / what.kernel, right = end(x, from.width);
                    double sum = 0, most = from.at(c, top, left);
                    for (int i = top; i < bottom; ++i)
                        for (int j = left; j < right; ++j) sum += from.at(c, i, j), most = std::max(most, from.at(c, i, j));
                    value = what.operation == VGG_GLOBAL_MAX_POOL ? most : sum / ((bottom - top) * (right - left));
                } else if (what.operation == VGG_LRN) {
                    const int reach = int(what.numbers[0]) / 2;
                    for (int d = std::max(0, c - reach); d <= std::min(from.channels - 1, c + reach); ++d)
                        value += from.at(d, y, x) * from.at(d, y, x);
                    value = from.at(c, y, x) *
                            std::pow(what.numbers[3] + what.numbers[1] / what.numbers[0] * value, -what.numbers[2]);
                } else {
                    const int edge = what.operation == VGG_CONVOLUTION ? what.kernel / 2 : 0;
                    const float *weight = layer.weight.data() + std::size_t(c) * what.in * what.kernel * what.kernel;
                    for (int d = 0; d < what.in; ++d)
                        for (int i = 0; i < what.kernel; ++i)
                            for (int j = 0; j < what.kernel; ++j) value += *weight++ * from.at(d, y + i - edge, x + j - edge);
                    value += layer.bias[c];
                    value = activated(what.operation == VGG_CONVOLUTION ? VGG_RELU : what.activation, what.numbers[0], value);
                }
                to.data.push_back(value);
            }
    return to;
}

Integers expected(const IntegerLayer &layer, const Integers &from) {
    const vgg_layer &what = layer.what;
    const Layer plain{what, {}, {}, {}, {}};
    if (what.operation == VGG_MAX_POOL) return {expected(plain, from.values), from.scale, from.zero};
    Integers to{empty_output(what, from.values), what.output_scale, what.output_zero};
    const auto store = [&](float real) {
        to.values.data.push_back(to.scale == 0 ? double(real) : std::clamp(std::nearbyint(double(real)) + to.zero, 0.0, 255.0));
    };
    if (what.operation == VGG_QUANTIZE) {
        for (double one : from.values.data) store(from.real(one) / to.scale);
        return to;
    }
    if (what.operation == VGG_AVERAGE_POOL) {
        Values reals = from.values;
        for (double &one : reals.data) one = (one - from.zero) * from.scale;
        for (double one : expected(plain, reals).data) store(float(one) / to.scale);
        return to;
    }
    const bool convolution = what.operation == VGG_CONVOLUTION, scaled = convolution || what.activation <= VGG_RELU;
    const int edge = convolution ? what.kernel / 2 : 0;
    for (int c = 0; c < to.values.channels; ++c) {
        const float unit = from.scale * layer.scale[c];
        const auto bias = std::int64_t(std::nearbyint(double(layer.bias[c]) / unit));
        for (int y = 0; y < to.values.height; ++y)
            for (int x = 0; x < to.values.width; ++x) {
                const signed char *weight = layer.weight.data() + std::size_t(c) * what.in * what.kernel * what.kernel;
                std::int64_t sum = bias;
                for (int d = 0; d < what.in; ++d)
                    for (int i = y - edge; i < y - edge + what.kernel; ++i)
                        for (int j = x - edge; j < x - edge + what.kernel; ++j) {
                            const bool inside = i >= 0 && j >= 0 && i < from.values.height && j < from.values.width;
                            const std::int64_t value = inside ? std::int64_t(from.values.at(d, i, j)) - from.zero : 0;
                            sum += (*weight++ - layer.zero[c]) * value;
                        }
                float real = float(std::int32_t(sum)) * (scaled && to.scale != 0 ? unit / to.scale : unit);
                real = float(activated(convolution ? VGG_RELU : what.activation, what.numbers[0], double(real)));
                store(scaled || to.scale == 0 ? real : real / to.scale);
            }
    }
    return to;
}
