// The order in which pairs of images are computed and compared, and their comparison.
#include "comparison.hpp"

#include <algorithm>

#include "network.hpp"

namespace vgg {
namespace {

constexpr int BANDS = 16;  // of rows, whose moments are added up by themselves, so that the sums don't depend on the threads

}  // namespace

Comparison::Comparison(int kind, const std::int32_t *pairs, int pair_count, const vgg_comparison *layers, int count)
    : kind_(kind), layers_(layers), count_(count) {
    std::vector<int> positions;  // of the images, -1 if they have none yet
    const auto position = [&](std::int32_t image) {
        if (image >= int(positions.size())) positions.resize(image + 1, -1);
        if (positions[image] < 0) {
            positions[image] = int(order.size());
            order.push_back(image);
            last.push_back(positions[image]);
        }
        return positions[image];
    };
    for (int i = 0; i < pair_count; ++i) {
        const int a = position(pairs[2 * i]), b = position(pairs[2 * i + 1]);
        last[a] = std::max(last[a], b), last[b] = std::max(last[b], a);
        pairs_.push_back({a, b});
    }
    std::vector<int> until;  // the last position at which each slot is needed
    for (int now = 0; now < int(order.size()); ++now) {
        const auto free = std::find_if(until.begin(), until.end(), [&](int end) { return end < now; });
        slot.push_back(int(free - until.begin()));
        if (free == until.end())
            until.push_back(last[now]);
        else
            *free = last[now];
    }
    slots = int(until.size());
}

bool Comparison::at(int step) const {
    return std::any_of(layers_, layers_ + count_, [&](const vgg_comparison &layer) { return layer.step == step; });
}

void Comparison::differences(const Kernels &kernels, Pool &pool, const vgg_comparison &layer, const Map &map, int channels,
                             int pair, int a, int b) {
    weight_.assign(map.channels, 0.0f);
    std::copy(layer.weight, layer.weight + channels, weight_.begin());
    float *to = layer.differences + std::ptrdiff_t(pair) * map.height * map.width;
    pool.run(map.height, [&](int y, int) {
        kernels.differences(kind_, map.pixel(a, y, 0), map.pixel(b, y, 0), weight_.data(), map.channels, map.width,
                            to + std::ptrdiff_t(y) * map.width);
    });
}

void Comparison::moments(const Kernels &kernels, Pool &pool, const vgg_comparison &layer, const Map &map, int channels,
                         int pair, int a, int b) {
    const auto [top, left, bottom, right] = layer.area;
    const int rows = bottom - top;
    const std::size_t size = std::size_t(5) * map.channels;
    sums_.assign(BANDS * size, 0.0);
    pool.run(BANDS, [&, top = top, left = left, right = right](int band, int) {
        for (int y = top + rows * band / BANDS; y < top + rows * (band + 1) / BANDS; ++y)
            kernels.moments(map.pixel(a, y, left), map.pixel(b, y, left), map.channels, right - left, &sums_[band * size]);
    });
    double *to = layer.moments + std::ptrdiff_t(pair) * 5 * channels;
    for (int sum = 0; sum < 5; ++sum)
        for (int c = 0; c < channels; ++c, ++to) {
            *to = 0;
            for (int band = 0; band < BANDS; ++band) *to += sums_[band * size + sum * map.channels + c];
        }
}

}  // namespace vgg
