// What the test expects of a layer: plain loops in double precision, or exact integers.
#pragma once

#include <cstdint>
#include <vector>

#include "vgg.h"

struct Values {
    int channels, height, width;
    std::vector<double> data;  // [channels, height, width]
    double at(int c, int y, int x) const {
        return y < 0 || x < 0 || y >= height || x >= width ? 0 : data[(std::size_t(c) * height + y) * width + x];
    }
};

struct Layer {
    vgg_layer what{};
    std::vector<float> weight, bias, scale;
    std::vector<signed char> integers;
};

// A layer of integers.
struct IntegerLayer {
    vgg_layer what{};
    std::vector<signed char> weight;
    std::vector<float> bias, scale;
    std::vector<std::int32_t> zero;
};

// The input or output of a layer of integers.
struct Integers {
    Values values;    // integers; reals if the scale is 0
    float scale = 0;  // of a real: (integer - zero) * scale
    int zero = 0;

    float real(double value) const { return scale == 0 ? float(value) : float(int(value) - zero) * scale; }
};

// The output's shape, without values.
Values empty_output(const vgg_layer &what, const Values &from);

Values expected(const Layer &layer, const Values &from);
Integers expected(const IntegerLayer &layer, const Integers &from);
