// The C interface, and the machine's limits.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>

#include "network.hpp"

namespace {

using Clock = std::chrono::steady_clock;

thread_local char message[256] = "";  // of the last error

int failed(int code, const char *text) {
    std::snprintf(message, sizeof message, "%s", text);
    return code;
}

// Calls `body` and returns VGG_OK, or the code of the exception that it threw.
template <class Body> int guarded(const Body &body) noexcept {
    try {
        body();
        return VGG_OK;
    } catch (const std::bad_alloc &) {
        return failed(VGG_NO_MEMORY, "not enough memory");
    } catch (const std::exception &error) {
        return failed(VGG_FAILED, error.what());
    } catch (...) {
        return failed(VGG_FAILED, "unknown error");
    }
}

}  // namespace

void vgg_interface(int32_t *version, int32_t *layer_bytes, int32_t *output_bytes, int32_t *comparison_bytes) {
    *version = VGG_INTERFACE;
    *layer_bytes = sizeof(vgg_layer);
    *output_bytes = sizeof(vgg_output);
    *comparison_bytes = sizeof(vgg_comparison);
}

const char *vgg_error() { return message; }

int vgg_instructions(const char *name, const char **chosen) {
    return guarded([&] { *chosen = vgg::kernels(name).name; });
}

int vgg_open(const char *instructions, int threads, int size, vgg_network **network) {
    return guarded([&] { *network = new vgg_network(vgg::kernels(instructions), threads, size); });
}

int vgg_add(vgg_network *network, const vgg_layer *layer) {
    return guarded([&] {
        vgg::Executor &executor = network->executor();
        const std::lock_guard lock(executor.mutex);
        network->plan.add(*layer, executor.pool);
    });
}

void vgg_close(vgg_network *network) { delete network; }

int vgg_run(vgg_network *network, const float *data, int batch, int height, int width, const vgg_output *outputs, int count) {
    return guarded([&] {
        vgg::Executor &executor = network->executor();
        const std::lock_guard lock(executor.mutex);
        executor.run(data, batch, height, width, outputs, count);
    });
}

int vgg_compare(vgg_network *network, const float *data, int height, int width, int kind, const int32_t *pairs, int pair_count,
                const vgg_comparison *layers, int count) {
    return guarded([&] {
        vgg::Executor &executor = network->executor();
        const std::lock_guard lock(executor.mutex);
        vgg::Comparison comparison(kind, pairs, pair_count, layers, count);
        executor.run(data, int(comparison.order.size()), height, width, nullptr, 0, &comparison);
    });
}

int vgg_times(vgg_network *network, double *seconds) {
    return guarded([&] {
        vgg::Executor &executor = network->executor();
        const std::lock_guard lock(executor.mutex);
        executor.seconds.resize(network->plan.layers.size());
        std::copy(executor.seconds.begin(), executor.seconds.end(), seconds);
    });
}

int vgg_peak(const char *instructions, int threads, double seconds, double *result) {
    return guarded([&] {
        const vgg::Kernels &kernels = vgg::kernels(instructions);
        constexpr std::int64_t ROUNDS = 100'000;
        std::vector<float> results(std::size_t(threads) * 16, 0.0f);  // in a cache line each
        std::atomic<std::int64_t> total{0};
        vgg::Pool pool(threads);
        const auto start = Clock::now();
        const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
        pool.run(threads, [&](int index, int) {
            while (passed() < seconds) total += ROUNDS * kernels.peak(ROUNDS, &results[std::size_t(index) * 16]);
        });
        *result = double(total) / passed();
    });
}

int vgg_bandwidth(const char *instructions, int threads, const float *memory, int64_t count, double *result) {
    return guarded([&] {
        const vgg::Kernels &kernels = vgg::kernels(instructions);
        vgg::Pool pool(threads);
        std::atomic<float> sink{0};  // uses the sums, so that the compiler keeps the reads
        const auto start = Clock::now();
        pool.run(threads, [&](int index, int) {
            const std::int64_t begin = count * index / threads, end = count * (index + 1) / threads;
            sink = kernels.read(memory + begin, end - begin);
        });
        *result = double(count) * sizeof(float) / std::chrono::duration<double>(Clock::now() - start).count();
    });
}
