// The order in which a network's layers run, and the memory of their outputs.
#include "network.hpp"

#include <algorithm>
#include <chrono>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace vgg {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int TOGETHER = 16;  // images that share a pass over the weights of the deep layers and of the head

// An image of a map as [channels, height, width].
void copy_planes(const Map &map, int image, int channels, float *to) {
    for (int c = 0; c < channels; ++c)
        for (int y = 0; y < map.height; ++y)
            for (int x = 0; x < map.width; ++x)
                *to++ = map.scale ? map.scale.real(map.bytes(image, y, x)[c]) : map.pixel(image, y, x)[c];
}

long process_id() {
#if defined(_WIN32)
    return 0;  // there is no fork
#else
    return getpid();
#endif
}

}  // namespace

void Executor::prepare(int some_images, int some_height, int some_width) {
    if (some_images <= images && some_height == height && some_width == width) return;
    images = 0;  // if memory runs out here, the next run starts over
    maps.clear();
    maps.resize(layers.size());
    line = some_width + 2;
    plane = line * (some_height + 2);
    planes = Memory(std::size_t(plane) * 3);
    images = some_images, height = some_height, width = some_width;
}

Map &Executor::map(int step, int count) {
    Map &output = maps[step];
    if (output.images < count) {
        int down = height, across = width;
        for (int i = 0; i <= step; ++i) down = side_after(layers[i].what, down), across = side_after(layers[i].what, across);
        output = Map();
        output = Map(count, down, across, layers[step].channels, layers[step].output);
    }
    return output;
}

void Executor::run(const float *data, int batch, int some_height, int some_width, const vgg_output *outputs, int count,
                   Comparison *comparison) {
    prepare(std::min(batch, TOGETHER), some_height, some_width);
    seconds.assign(layers.size(), 0.0);
    const auto wanted = [&](int step) {
        if (comparison) return comparison->at(step);
        return std::any_of(outputs, outputs + count, [&](const vgg_output &output) { return output.step == step; });
    };
    int end = int(layers.size());  // of the layers that are needed
    while (end > 0 && !wanted(end - 1)) --end;
    // Layers before the deep ones process one image at a time; the output of the last of them has all images of a part of the
    // batch. Images that are compared later are kept, in slots; those of earlier parts after the images.
    const auto together = [&](int step) { return step >= plan.deep - 1; };
    const auto output = [&](int step) -> Map & {
        const int kept = comparison && wanted(step) ? comparison->slots : 0;
        return map(step, together(step) ? images + (batch > images ? kept : 0) : std::max(1, kept));
    };
    int part = 0, part_end = 0;  // the images that are processed now
    const auto place = [&](int step, int image) {
        if (together(step) && image >= part) return image - part;
        const int slot = comparison && wanted(step) ? comparison->slot[image] : 0;
        return together(step) ? images + slot : slot;
    };
    const auto use = [&](int step, int first, int number) {
        const Map &values = output(step);
        const std::ptrdiff_t size = std::ptrdiff_t(layers[step].what.out) * values.height * values.width;
        for (int i = 0; i < count; ++i)
            if (outputs[i].step == step)
                pool.run(number, [&](int n, int) {
                    copy_planes(values, place(step, first + n), layers[step].what.out, outputs[i].values + (first + n) * size);
                });
        if (!comparison) return;
        comparison->compare(kernels, pool, step, values, layers[step].what.out, first, first + number,
                            [&](int image) { return place(step, image); });
        if (!together(step) || first + number < part_end) return;
        for (int image = part; image < part_end; ++image)
            if (comparison->last[image] >= part_end)
                std::memcpy(values.corner(images + comparison->slot[image]), values.corner(image - part),
                            values.image * sizeof(float));
    };
    // Runs layers for `number` images from `first` on.
    const auto stretch = [&](int begin, int stop, int first, int number) {
        for (int step = begin; step < std::min(stop, end); ++step) {
            const auto at = [&](int step) { return Images{output(step), place(step, first), number}; };
            const Images from = step ? at(step - 1) : Images{maps[0], 0, number};
            const auto start = Clock::now();
            const int done = step;
            if (layers[step].tile) {
                const bool pools = step + 1 < std::min(end, plan.head) && layers[step + 1].what.operation == VGG_MAX_POOL;
                const bool whole = !pools || wanted(step);
                const Images to = at(whole ? step : step + 1), pooled = at(pools ? step + 1 : step);
                winograd(layers[step], from, whole ? &to : nullptr, pools ? &pooled : nullptr);
                step += pools;
            } else {
                layer(step, from, at(step));
            }
            seconds[done] += std::chrono::duration<double>(Clock::now() - start).count();
            for (int ready = done; ready <= step; ++ready)
                if (wanted(ready)) use(ready, first, number);
        }
    };
    for (; part < batch; part = part_end) {
        part_end = std::min(batch, part + images);
        for (int image = part; image < part_end; ++image) {
            const std::ptrdiff_t index = comparison ? comparison->order[image] : image;
            for (int c = 0; c < 3; ++c)
                for (int y = 0; y < height; ++y)
                    std::memcpy(planes.get() + c * plane + (y + 1) * line + 1, data + ((index * 3 + c) * height + y) * width,
                                width * sizeof(float));
            stretch(0, plan.deep, image, 1);
        }
        stretch(plan.deep, plan.head, part, part_end - part);
        if (end > plan.head) classify(end, {output(plan.head - 1), 0, part_end - part}, part, outputs, count);
    }
}

void Executor::layer(int step, Images from, Images to) {
    const Layer &layer = layers[step];
    switch (layer.what.operation) {
        case VGG_CONVOLUTION:
            if (layer.input) return direct(layer, from, to);
            return step == 0 ? first_convolution(layer, to) : pointwise(layer, from, to);
        case VGG_QUANTIZE: return step == 0 ? quantize_images(to) : quantize(layer, from, to);
        case VGG_DEQUANTIZE: return dequantize(from, to);
        case VGG_LRN: return normalise(layer, from, to);
        default: return halve(layer, from, to);
    }
}

}  // namespace vgg

vgg_network::vgg_network(const vgg::Kernels &kernels, int threads, int size)
    : plan{kernels, threads, size}, current_(new Owned{vgg::process_id(), vgg::Executor(plan)}) {}

vgg_network::~vgg_network() {
    Owned *owned = current_.load();
    if (owned->process == vgg::process_id()) delete owned;
}

vgg::Executor &vgg_network::executor() {
    Owned *owned = current_.load(std::memory_order_acquire);
    if (owned->process != vgg::process_id()) {
        auto fresh = std::unique_ptr<Owned>(new Owned{vgg::process_id(), vgg::Executor(plan)});
        if (current_.compare_exchange_strong(owned, fresh.get(), std::memory_order_acq_rel)) owned = fresh.release();
    }
    return owned->executor;
}
