// Comparisons of the layer outputs of pairs of images, made during a run.
#pragma once

#include <vector>

#include "kernels.hpp"
#include "pool.hpp"
#include "vgg.h"

namespace vgg {

struct Map;

// Only images that are in pairs are computed, in the order of their first pair. An image's outputs of compared layers are kept
// until the last image that it is compared with is computed; then their place, a slot, is free for others.
class Comparison {
  public:
    Comparison(int kind, const std::int32_t *pairs, int pair_count, const vgg_comparison *layers, int count);

    // Whether a layer's outputs are compared.
    bool at(int step) const;

    // Compares the images at the positions `first` to `end` of `order` with each other and with earlier ones. `place` gives the
    // image of the map at which a position is.
    template <class Place> void compare(const Kernels &kernels, Pool &pool, int step, const Map &map, int channels, int first,
                                        int end, const Place &place);

    std::vector<int> order;  // the images by position
    std::vector<int> slot;   // of each position
    std::vector<int> last;   // the last position that is compared with each
    int slots = 0;

  private:
    struct Pair {
        int a, b;  // positions
    };

    void differences(const Kernels &kernels, Pool &pool, const vgg_comparison &layer, const Map &map, int channels, int pair,
                     int a, int b);
    void moments(const Kernels &kernels, Pool &pool, const vgg_comparison &layer, const Map &map, int channels, int pair, int a,
                 int b);

    int kind_;
    std::vector<Pair> pairs_;
    const vgg_comparison *layers_;
    int count_;
    std::vector<float> weight_;  // of a layer's channels, padded with zeros
    std::vector<double> sums_;   // of each band of rows
};

template <class Place> void Comparison::compare(const Kernels &kernels, Pool &pool, int step, const Map &map, int channels,
                                                int first, int end, const Place &place) {
    for (int i = 0; i < count_; ++i) {
        if (layers_[i].step != step) continue;
        for (int pair = 0; pair < int(pairs_.size()); ++pair) {
            const auto [a, b] = pairs_[pair];
            const int later = a > b ? a : b;
            if (later < first || later >= end) continue;
            const auto one = kind_ == VGG_MOMENTS ? &Comparison::moments : &Comparison::differences;
            (this->*one)(kernels, pool, layers_[i], map, channels, pair, place(a), place(b));
        }
    }
}

}  // namespace vgg
