// The engine against plain loops in double precision, for builds with sanitizers and for other processors, without Python.
// `scripts/sanitize` runs it. Exits with 1 if a check fails. The tests in Python compare with ONNX Runtime and torch.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <thread>
#include <vector>

#if defined(_WIN32)
#include <malloc.h>
#endif

#include "expected.hpp"
#include "vgg.h"

namespace {

std::atomic<long> allocations{-1};  // that succeed before one fails; all if negative

void *allocate(std::size_t bytes, std::size_t alignment) {
    if (allocations >= 0 && allocations-- == 0) throw std::bad_alloc();
#if defined(_WIN32)
    void *memory = _aligned_malloc(bytes, alignment);
    if (!memory) throw std::bad_alloc();
#else
    void *memory = nullptr;
    if (posix_memalign(&memory, alignment, bytes)) throw std::bad_alloc();
#endif
    return memory;
}

void release(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    std::free(memory);
#endif
}

}  // namespace

void *operator new(std::size_t bytes) { return allocate(bytes, sizeof(void *)); }
void *operator new(std::size_t bytes, std::align_val_t alignment) { return allocate(bytes, std::size_t(alignment)); }
void operator delete(void *memory) noexcept { release(memory); }
void operator delete(void *memory, std::size_t) noexcept { release(memory); }
void operator delete(void *memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void *memory, std::size_t, std::align_val_t) noexcept { release(memory); }

namespace {

Layer made(int operation, int in, int out, int kernel, std::mt19937 &random, int activation = VGG_NONE, bool integers = false) {
    Layer layer;
    layer.what.operation = operation, layer.what.in = in, layer.what.out = out, layer.what.kernel = kernel;
    layer.what.activation = activation, layer.what.group = 1;
    const double lrn[] = {5, 5e-4, 0.75, 2};
    std::copy(lrn, lrn + 4, layer.what.numbers);
    if (operation == VGG_LINEAR) layer.what.numbers[0] = 0.3;
    const std::size_t inputs = std::size_t(in) * kernel * kernel;
    std::normal_distribution<float> normal(0, inputs ? std::sqrt(2.0f / inputs) : 1);
    for (std::size_t i = 0; i < inputs * out; ++i) layer.weight.push_back(normal(random));
    for (int i = 0; i < out; ++i) layer.bias.push_back(0.1f * normal(random));
    if (integers) {
        layer.what.kind = 3;
        layer.what.group = std::int64_t(inputs);
        layer.scale.assign(out, 0.02f);
        for (float &value : layer.weight) {
            layer.integers.push_back((signed char)(std::lround(value / 0.02f)));
            value = 0.02f * layer.integers.back();
        }
    }
    return layer;
}

// How the head reads its map.
enum Reading { WHOLE, AVERAGE, SEVERAL, MAXIMUM };

// A network's layers, one of every kind; the seed chooses the pooling and the activation functions.
std::vector<Layer> some_layers(int side, Reading reading, unsigned seed) {
    const int pooling = int(VGG_MAX_POOL + seed % 3);
    std::mt19937 random(seed);
    std::vector<Layer> layers;
    layers.push_back(made(VGG_CONVOLUTION, 3, 6, 3, random));
    layers.push_back(made(VGG_LRN, 0, 0, 0, random));
    layers.push_back(made(VGG_CONVOLUTION, 6, 21, 3, random));
    layers.push_back(made(pooling, 0, 0, 0, random));
    layers.push_back(made(VGG_CONVOLUTION, 21, 16, 1, random));
    layers.push_back(made(VGG_CONVOLUTION, 16, 33, 3, random));
    layers.push_back(made(pooling, 0, 0, 0, random));
    layers.push_back(made(VGG_CONVOLUTION, 33, 18, 3, random));
    layers.push_back(made(pooling, 0, 0, 0, random));
    const int kernel = reading == WHOLE ? side / 8 : reading == SEVERAL ? 2 : 1;
    if (reading == AVERAGE || reading == SEVERAL) layers.push_back(made(VGG_AVERAGE_POOL, 0, 0, kernel, random));
    if (reading == MAXIMUM) layers.push_back(made(VGG_GLOBAL_MAX_POOL, 0, 0, kernel, random));
    layers.push_back(made(VGG_LINEAR, 18, 29, kernel, random, VGG_RELU, seed % 2));
    layers.push_back(made(VGG_LINEAR, 29, 17, 1, random, int(VGG_LEAKY_RELU + seed % 7)));
    layers.push_back(made(VGG_LINEAR, 17, 11, 1, random, int(seed % 3 ? VGG_NONE : VGG_GELU)));
    for (Layer &layer : layers) {
        layer.what.weight = layer.integers.empty() ? (const void *)layer.weight.data() : layer.integers.data();
        layer.what.bias = layer.bias.data();
        layer.what.scale = layer.scale.empty() ? nullptr : layer.scale.data();
    }
    return layers;
}

std::vector<float> some_images(int batch, int height, int width, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> data(std::size_t(batch) * 3 * height * width);
    for (float &value : data) value = normal(random);
    return data;
}

// The comparison of two pixels or, of moments, channels: `count` values that are `step` apart.
std::array<double, 5> compared(int kind, const float *a, const float *b, const float *weight, int count, int step) {
    std::array<double, 5> sums{};
    for (int i = 0; i < count; ++i) {
        const double x = a[std::size_t(i) * step], y = b[std::size_t(i) * step];
        const double terms[] = {x, y, x * x, y * y, x * y};
        for (int k = 0; k < 5; ++k) sums[k] += terms[k];
    }
    if (kind == VGG_MOMENTS) return sums;
    const double length_a = std::sqrt(sums[2]) + 1e-10, length_b = std::sqrt(sums[3]) + 1e-10;
    sums = {};
    for (int i = 0; i < count; ++i) {
        double x = a[std::size_t(i) * step], y = b[std::size_t(i) * step];
        if (kind == VGG_COSINE) x /= length_a, y /= length_b;
        sums[0] += weight[i] * (kind == VGG_L1 ? std::abs(x - y) : (x - y) * (x - y));
    }
    return sums;
}

// Whether random pairs of images compare as their layer outputs do, `found`.
bool compares(vgg_network *network, int kind, const std::vector<float> &data, int batch, int height, int width,
              const std::vector<Layer> &layers, const std::vector<std::vector<float>> &found, std::mt19937 &random) {
    const int count = batch == 1 ? 2 : 2 * batch;
    std::vector<std::int32_t> pairs;
    for (int i = 0; i < 2 * count; ++i) pairs.push_back(std::int32_t(random() % batch));
    std::vector<vgg_comparison> wanted;
    std::vector<std::vector<float>> weights(layers.size()), differences(layers.size());
    std::vector<std::vector<double>> moments(layers.size());
    int channels = 3, down = height, across = width;
    std::vector<std::array<int, 3>> shapes;
    for (std::size_t i = 0; i < 9; ++i) {  // of the trunk
        const Values to = empty_output(layers[i].what, {channels, down, across, {}});
        channels = to.channels, down = to.height, across = to.width;
        shapes.push_back({channels, down, across});
        if (random() % 2) continue;
        for (int c = 0; c < channels; ++c) weights[i].push_back(float(random() % 8));
        differences[i].resize(std::size_t(count) * down * across, NAN);
        moments[i].resize(std::size_t(count) * 5 * channels, NAN);
        wanted.push_back({std::int32_t(i), {0, 0, down, across}, weights[i].data(), differences[i].data(), moments[i].data()});
    }
    if (vgg_compare(network, data.data(), height, width, kind, pairs.data(), count, wanted.data(), int(wanted.size())))
        return false;
    bool fine = true;
    for (const vgg_comparison &one : wanted) {
        const auto [of, rows, columns] = shapes[one.step];
        const int positions = rows * columns;
        double most = 0, off = 0;
        for (int pair = 0; pair < count; ++pair) {
            const float *a = found[one.step].data() + std::size_t(pairs[2 * pair]) * of * positions;
            const float *b = found[one.step].data() + std::size_t(pairs[2 * pair + 1]) * of * positions;
            const auto check = [&](double is, double should) {
                most = std::max(most, std::abs(should));
                off = std::abs(is - should) <= off ? off : std::abs(is - should);
                fine &= a != b || kind == VGG_MOMENTS || is == 0;
            };
            if (kind == VGG_MOMENTS)
                for (int c = 0; c < of; ++c) {
                    const auto sums = compared(kind, a + c * positions, b + c * positions, nullptr, positions, 1);
                    for (int k = 0; k < 5; ++k) check(one.moments[(pair * 5 + k) * of + c], sums[k]);
                }
            else
                for (int i = 0; i < positions; ++i)
                    check(one.differences[pair * positions + i], compared(kind, a + i, b + i, one.weight, of, positions)[0]);
        }
        fine &= off <= 1e-5 * most;
    }
    return fine;
}

// A network of these layers; null if it can't be opened.
template <class Layers> vgg_network *opened(const char *instructions, int threads, int size, const Layers &layers) {
    vgg_network *network = nullptr;
    if (vgg_open(instructions, threads, size, &network)) return nullptr;
    for (const auto &layer : layers)
        if (vgg_add(network, &layer.what)) return nullptr;
    return network;
}

// All layers' outputs, in memory of the sizes that are expected.
template <class T>
std::vector<vgg_output> outputs_of(const std::vector<std::vector<T>> &wanted, std::vector<std::vector<float>> &found) {
    std::vector<vgg_output> outputs;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        found[i].resize(wanted[i].size());
        outputs.push_back({std::int32_t(i), found[i].data()});
    }
    return outputs;
}

// Whether each layer's output is as expected.
bool agrees(const char *instructions, int threads, int batch, int height, int width, Reading reading, unsigned seed) {
    const std::vector<Layer> layers = some_layers(std::min(height, width), reading, seed);
    const std::vector<float> data = some_images(batch, height, width, seed);
    std::mt19937 random(seed);
    vgg_network *network = opened(instructions, threads, std::min(height, width), layers);
    if (!network) return false;

    std::vector<std::vector<float>> found(layers.size());
    std::vector<std::vector<double>> wanted(layers.size());
    for (int n = 0; n < batch; ++n) {
        const float *image = data.data() + std::size_t(n) * 3 * height * width;
        Values value{3, height, width, std::vector<double>(image, image + 3 * height * width)};
        for (std::size_t i = 0; i < layers.size(); ++i) {
            value = expected(layers[i], value);
            wanted[i].insert(wanted[i].end(), value.data.begin(), value.data.end());
        }
    }
    const std::vector<vgg_output> outputs = outputs_of(wanted, found);
    bool fine = true;
    // All outputs, then only the last, for which pooling is fused into the convolutions.
    for (std::size_t first : {std::size_t(0), layers.size() - 1}) {
        for (std::size_t i = first; i < layers.size(); ++i) std::fill(found[i].begin(), found[i].end(), NAN);
        if (vgg_run(network, data.data(), batch, height, width, outputs.data() + first, int(layers.size() - first)))
            return false;
        for (std::size_t i = first; i < layers.size(); ++i) {
            double largest = 0, off = 0;
            for (std::size_t k = 0; k < wanted[i].size(); ++k) {
                largest = std::max(largest, std::abs(wanted[i][k]));
                const double difference = std::abs(found[i][k] - wanted[i][k]);
                off = difference <= off ? off : difference;  // keeps a NaN
            }
            if (!(off <= 1e-4 * largest)) {
                std::printf("%s, %d threads, batch %d, %dx%d: layer %zu is off by %g of %g\n", instructions, threads, batch,
                            height, width, i, off, largest);
                fine = false;
            }
        }
    }
    for (int kind : {VGG_COSINE, VGG_L1, VGG_L2, VGG_MOMENTS})
        if (!compares(network, kind, data, batch, height, width, layers, found, random)) {
            std::printf("%s, %d threads, batch %d, %dx%d: comparison %d is off\n", instructions, threads, batch, height, width,
                        kind);
            fine = false;
        }
    vgg_close(network);
    return fine;
}

// --- Integers -----------------------------------------------------------------------------------------------------------

// Random weights of all 8 bits; an output with `zero` -1 is of floats.
IntegerLayer made_of_integers(int operation, int in, int out, int kernel, std::mt19937 &random, int zero, int largest = 127,
                              int activation = VGG_RELU, bool with_zeros = false) {
    IntegerLayer layer;
    vgg_layer &what = layer.what;
    what.operation = operation, what.in = in, what.out = out, what.kernel = kernel, what.activation = activation, what.kind = 3;
    const int inputs = in * kernel * kernel;
    what.group = std::max(1, inputs);
    std::uniform_int_distribution<int> any(largest > 127 ? 120 : -largest, std::min(127, largest));
    for (int i = 0; i < inputs * out; ++i) layer.weight.push_back((signed char)any(random));
    for (int i = 0; i < out; ++i) {
        layer.bias.push_back(float(any(random)) * 0.003f);
        layer.scale.push_back(0.01f + 0.0001f * float(i));
        layer.zero.push_back(with_zeros ? any(random) / 2 : 0);
    }
    what.output_zero = std::max(0, zero);
    what.output_scale = zero < 0 ? 0 : 0.05f + 0.004f * float(std::sqrt(inputs)) * float(largest) / 127;
    return layer;
}

std::vector<IntegerLayer> some_integer_layers(int side, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<IntegerLayer> layers;
    const auto add = [&](auto... arguments) { layers.push_back(made_of_integers(arguments...)); };
    add(VGG_QUANTIZE, 0, 0, 0, std::ref(random), 100);
    add(VGG_CONVOLUTION, 3, 64, 3, std::ref(random), 0);
    add(VGG_CONVOLUTION, 64, 21, 3, std::ref(random), 3);
    add(VGG_MAX_POOL, 0, 0, 0, std::ref(random), 0);
    add(VGG_CONVOLUTION, 21, 150, 1, std::ref(random), 7, 200);
    add(VGG_QUANTIZE, 0, 0, 0, std::ref(random), 9);             // another scale, of which most integers are 255
    add(VGG_CONVOLUTION, 150, 40, 3, std::ref(random), 0, 200);  // sums above 2^25
    add(VGG_MAX_POOL, 0, 0, 0, std::ref(random), 0);
    add(VGG_CONVOLUTION, 40, 33, 3, std::ref(random), seed % 2 ? -1 : 0, 127, int(VGG_RELU), true);
    add(VGG_MAX_POOL, 0, 0, 0, std::ref(random), 0);
    if (seed % 2) add(VGG_QUANTIZE, 0, 0, 0, std::ref(random), 1);
    if (seed % 3 == 0) add(VGG_AVERAGE_POOL, 0, 0, 2, std::ref(random), 5);
    add(VGG_LINEAR, 33, 37, seed % 3 ? side / 8 : 2, std::ref(random), 0, 127, int(VGG_RELU), seed % 2 == 0);
    add(VGG_LINEAR, 37, 19, 1, std::ref(random), 128, 127, int(VGG_TANH));
    add(VGG_LINEAR, 19, 11, 1, std::ref(random), -1, 127, int(VGG_NONE), true);
    for (IntegerLayer &layer : layers) {
        layer.what.weight = layer.weight.data(), layer.what.bias = layer.bias.data(), layer.what.scale = layer.scale.data();
        layer.what.zero = layer.zero.data();
    }
    return layers;
}

// Whether each layer's output is exactly as expected, or the nearest integer, after an activation function or a mean.
bool agrees_in_integers(const char *instructions, int threads, int batch, int height, int width, unsigned seed) {
    const int side = std::min(height, width);
    const std::vector<IntegerLayer> layers = some_integer_layers(side, seed);
    const std::vector<float> data = some_images(batch, height, width, seed);
    vgg_network *network = opened(instructions, threads, side, layers);
    if (!network) return false;
    std::vector<std::vector<float>> found(layers.size()), wanted(layers.size());
    for (int n = 0; n < batch; ++n) {
        const float *image = data.data() + std::size_t(n) * 3 * height * width;
        Integers value{{3, height, width, std::vector<double>(image, image + 3 * height * width)}};
        for (std::size_t i = 0; i < layers.size(); ++i) {
            value = expected(layers[i], value);
            for (double one : value.values.data) wanted[i].push_back(float(value.real(one)));
        }
    }
    const std::vector<vgg_output> outputs = outputs_of(wanted, found);
    bool fine = true;
    for (std::size_t first : {std::size_t(0), layers.size() - 1}) {
        for (std::size_t i = first; i < layers.size(); ++i) std::fill(found[i].begin(), found[i].end(), NAN);
        if (vgg_run(network, data.data(), batch, height, width, outputs.data() + first, int(layers.size() - first)))
            return false;
        for (std::size_t i = first; i < layers.size(); ++i)
            for (std::size_t k = 0; k < wanted[i].size(); ++k)
                if (found[i][k] != wanted[i][k]) {
                    std::printf("%s, %d threads, batch %d, %dx%d, integers: layer %zu, value %zu is %.9g, not %.9g\n",
                                instructions, threads, batch, height, width, i, k, found[i][k], wanted[i][k]);
                    fine = false;
                    break;
                }
    }
    vgg_close(network);
    return fine;
}

// --- Bfloat16 -----------------------------------------------------------------------------------------------------------

// Whether convolutions with products of bfloat16 are nearly as expected, nearly the same as of the baseline, whose transforms
// round otherwise, and with AVX512-BF16 the same as without. (AMX adds in another order; NEON's sums are rounded to odd.)
bool agrees_in_bfloat16(const char *instructions, int threads, int batch, int height, int width, unsigned seed) {
    constexpr double MOST = 0.03, LEAST = 1e-4, APART = 0.02;  // of the largest value
    const bool exact = std::strcmp(instructions, "avx512bf16") == 0;
    const char *other = exact ? "avx512" : "portable";
    std::vector<Layer> layers = some_layers(std::min(height, width), AVERAGE, seed);
    layers.resize(8);
    std::mt19937 random(seed);
    layers.push_back(made(VGG_CONVOLUTION, 18, 64, 3, random));
    layers.push_back(made(VGG_CONVOLUTION, 64, 18, 3, random));  // more channels than an instruction multiplies
    for (Layer &layer : layers) layer.what.weight = layer.weight.data(), layer.what.bias = layer.bias.data();
    for (Layer &layer : layers) layer.what.kind = layer.what.operation == VGG_CONVOLUTION ? 2 : 0;
    const std::vector<float> data = some_images(batch, height, width, seed);
    std::vector<double> wanted;
    for (int n = 0; n < batch; ++n) {
        const float *image = data.data() + std::size_t(n) * 3 * height * width;
        Values value{3, height, width, std::vector<double>(image, image + 3 * height * width)};
        for (const Layer &layer : layers) value = expected(layer, value);
        wanted.insert(wanted.end(), value.data.begin(), value.data.end());
    }
    std::vector<float> found(wanted.size(), NAN), same(wanted.size(), NAN);
    for (const bool first : {true, false}) {
        vgg_network *network = nullptr;
        if (vgg_open(first ? instructions : other, threads, std::min(height, width), &network)) return false;
        for (const Layer &layer : layers)
            if (vgg_add(network, &layer.what)) return false;
        const vgg_output output{std::int32_t(layers.size()) - 1, (first ? found : same).data()};
        if (vgg_run(network, data.data(), batch, height, width, &output, 1)) return false;
        vgg_close(network);
    }
    double largest = 0, off = 0, apart = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        largest = std::max(largest, std::abs(wanted[i]));
        off = std::abs(found[i] - wanted[i]) <= off ? off : std::abs(found[i] - wanted[i]);  // keeps a NaN
        apart = std::abs(found[i] - same[i]) <= apart ? apart : std::abs(found[i] - same[i]);
    }
    if (off >= LEAST * largest && off <= MOST * largest && apart <= (exact ? 0 : APART * largest)) return true;
    std::printf("%s, %d threads, batch %d, %dx%d: bfloat16 is off by %g and %g of %g\n", instructions, threads, batch, height,
                width, off, apart, largest);
    return false;
}

// Whether a linear layer has the expected result at each of more positions than its kernel has columns in the cache.
bool agrees_at_many_positions() {
    constexpr int SIDE = 260;
    std::mt19937 random(0);
    std::vector<Layer> layers{made(VGG_CONVOLUTION, 3, 8, 3, random), made(VGG_LINEAR, 8, 5, 1, random)};
    for (Layer &layer : layers) layer.what.weight = layer.weight.data(), layer.what.bias = layer.bias.data();
    const std::vector<float> data = some_images(1, SIDE, SIDE, 0);
    Values value{3, SIDE, SIDE, std::vector<double>(data.begin(), data.end())};
    for (const Layer &layer : layers) value = expected(layer, value);
    std::vector<float> found(value.data.size(), NAN);
    const vgg_output output{1, found.data()};
    vgg_network *network = opened("auto", 2, SIDE, layers);
    if (!network || vgg_run(network, data.data(), 1, SIDE, SIDE, &output, 1)) return false;
    vgg_close(network);
    bool fine = true;
    for (std::size_t i = 0; i < found.size(); ++i) fine &= std::abs(found[i] - value.data[i]) <= 1e-4;
    return fine;
}

// Whether each failed allocation is an error code, after which the same call succeeds with the same result.
bool survives_failed_allocations() {
    std::vector<Layer> layers = some_layers(32, AVERAGE, 1);
    std::mt19937 random(0);
    layers.insert(layers.begin(), 2, made(VGG_QUANTIZE, 0, 0, 0, random));  // of the images, in threads
    layers[0].what.output_scale = 0.02f, layers[0].what.output_zero = 128;
    layers[1].what.operation = VGG_DEQUANTIZE;
    const std::vector<float> data = some_images(3, 32, 32, 1);
    std::array<float, 34> found{}, wanted{};  // of the head, and a difference
    double found_moment = 0, wanted_moment = 0;
    const vgg_output output{std::int32_t(layers.size()) - 1, found.data()};
    int failures = 0;
    for (bool failing : {false, true}) {
        const auto succeeds = [&](const auto &call) {
            for (long count = 0; failing; ++count, ++failures) {
                allocations = count;
                const int code = call();
                allocations = -1;
                if (code == VGG_OK) return true;
                if (code != VGG_NO_MEMORY) return false;
            }
            return call() == VGG_OK;
        };
        vgg_network *network = nullptr;
        bool fine = succeeds([&] { return vgg_open("auto", 3, 32, &network); });
        for (const Layer &layer : layers) fine = fine && succeeds([&] { return vgg_add(network, &layer.what); });
        fine = fine && succeeds([&] { return vgg_run(network, data.data(), 3, 32, 32, &output, 1); });
        std::vector<float> weight(64, 1.0f), differences(3 * 32 * 32);
        std::vector<double> moments(3 * 5 * 33);
        const std::int32_t pairs[] = {0, 1, 2, 0, 1, 1};
        const vgg_comparison first{2, {}, weight.data(), differences.data(), nullptr},
            deep{7, {0, 0, 8, 8}, nullptr, nullptr, moments.data()};
        fine = fine && succeeds([&] { return vgg_compare(network, data.data(), 32, 32, VGG_COSINE, pairs, 3, &first, 1); });
        fine = fine && succeeds([&] { return vgg_compare(network, data.data(), 32, 32, VGG_MOMENTS, pairs, 3, &deep, 1); });
        if (!fine) return false;
        vgg_close(network);
        found.back() = differences[500], found_moment = moments[20];
        if (!failing) wanted = found, wanted_moment = found_moment;
    }
    return failures > 30 && found == wanted && found_moment == wanted_moment;
}

// Whether errors are codes with messages.
bool reports_errors() {
    const char *chosen = nullptr;
    vgg_network *network = nullptr;
    double result = 0;
    bool fine = vgg_instructions("mmx", &chosen) == VGG_FAILED && !chosen && std::strstr(vgg_error(), "'mmx'");
    fine &= vgg_open("mmx", 1, 32, &network) == VGG_FAILED && !network;
    fine &= vgg_peak("mmx", 1, 0.001, &result) == VGG_FAILED && vgg_bandwidth("mmx", 1, nullptr, 0, &result) == VGG_FAILED;
    fine &=
        vgg_instructions("auto", &chosen) == VGG_OK && chosen && vgg_peak("auto", 2, 0.001, &result) == VGG_OK && result > 0;
    return fine;
}

}  // namespace

int main() {
    int passed = 0, failed = 0;
    reports_errors() ? ++passed : ++failed;
    survives_failed_allocations() ? ++passed : ++failed;
    agrees_at_many_positions() ? ++passed : ++failed;
    for (const char *instructions : {"portable", "avx2", "avx2vnni", "avx512", "avx512vnni", "avx512bf16", "amx", "neonbf16"}) {
        const char *chosen = nullptr;
        if (vgg_instructions(instructions, &chosen)) continue;
        for (int threads : {1, 2, 5})
            for (auto [batch, height, width] : {std::array{1, 64, 64}, {3, 71, 96}, {18, 40, 33}, {2, 24, 112}}) {
                const auto reading = Reading((threads + batch) % 4);
                agrees(instructions, threads, batch, height, width, reading, threads + batch) ? ++passed : ++failed;
                agrees_in_integers(instructions, threads, batch, height, width, threads + batch) ? ++passed : ++failed;
                agrees_in_bfloat16(instructions, threads, batch, height, width, threads + batch) ? ++passed : ++failed;
            }
        std::vector<std::thread> callers;  // several engines at once
        std::vector<int> fine(4);
        for (int i = 0; i < 4; ++i) callers.emplace_back([&, i] { fine[i] = agrees(instructions, 3, 2, 48, 64, AVERAGE, i); });
        for (auto &caller : callers) caller.join();
        for (int one : fine) one ? ++passed : ++failed;
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
