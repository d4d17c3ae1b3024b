// Threads that share the iterations of a loop.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace vgg {

// The pool's threads belong to the process that created it: a forked process has the pool's memory, but not its threads, and
// must neither use nor destroy it.
class Pool {
  public:
    // Throws std::runtime_error if the threads can't be started; then none is left.
    explicit Pool(int threads) : threads_(threads) {
        try {
            for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
        } catch (const std::system_error &error) {
            stop();
            throw std::runtime_error("can't start " + std::to_string(threads) + " threads (" + error.what() + "); use fewer");
        } catch (...) {
            stop();
            throw;
        }
    }
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;
    ~Pool() { stop(); }

    int threads() const { return threads_; }

    // Calls `body(index, worker)` for each index below `count`, on any thread, and returns when all calls have returned. Calls
    // with the same worker don't overlap. `body` must not throw. One caller at a time.
    template <class Body> void run(int count, const Body &body) {
        call_ = [](const void *body, int index, int worker) { (*static_cast<const Body *>(body))(index, worker); };
        body_ = &body;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        if (workers_.empty() || count <= 1) return work(0);
        busy_.store(int(workers_.size()), std::memory_order_relaxed);
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
        work(0);
        for (int busy; (busy = busy_.load(std::memory_order_acquire)) != 0;) wait(busy_, busy);
    }

  private:
    // Long enough to bridge the gaps between the loops of a run, short enough to leave an idle machine idle.
    static constexpr int SPINS = 2000;

    template <class T> static void wait(const std::atomic<T> &value, T old) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__) || defined(__i386__)
            _mm_pause();
#endif
        }
        value.wait(old, std::memory_order_acquire);
    }

    void stop() {
        stop_ = true;
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
        for (auto &worker : workers_) worker.join();
    }

    void work(int worker) {
        for (int index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) call_(body_, index, worker);
    }

    void serve(int worker) {
        for (unsigned seen = 0;;) {
            wait(epoch_, seen);
            seen = epoch_.load(std::memory_order_acquire);
            if (stop_) return;
            work(worker);
            if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_all();
        }
    }

    const int threads_;
    std::atomic<unsigned> epoch_{0};
    std::atomic<int> next_{0}, busy_{0};
    std::atomic<bool> stop_{false};
    void (*call_)(const void *, int, int) = nullptr;
    const void *body_ = nullptr;
    int count_ = 0;
    std::vector<std::thread> workers_;  // last, so that everything they use is initialised before they start
};

}  // namespace vgg
