// Who computes the parts of an operation. Kernels ask `share(count, work, body)` to have body(i) called for each i
// below count; `work` is in multiplications. An operation called by itself opens threads if it is worth them; in a pass
// through many operations the threads stay, and meet after each.
#pragma once

#include <atomic>
#include <thread>

#include "native/vectors.h"

#ifdef __x86_64__
inline void relax() { __builtin_ia32_pause(); }
#else
inline void relax() {}
#endif

struct OwnThreads {
    int64_t limit;

    template <class Body>
    void operator()(int64_t count, int64_t work, const Body& body) const {
        for_each(count, threads_for(work, std::min(limit, count)), body);
    }
};

// Threads that go through the same code together: each calls every function of the team in the same order.
class Team {
  public:
    explicit Team(int size) : size_(size) {}

    int size() const { return size_; }

    template <class Body>
    void operator()(int64_t count, int64_t, const Body& body) {
        if (size_ == 1) {
            for (int64_t i = 0; i < count; ++i) body(i);
            return;
        }
        const Turns turns(count, size_);
        for (int64_t first; (first = turns.first(next_.fetch_add(1, std::memory_order_relaxed))) < count;)
            for (int64_t i = first; i < turns.end(first); ++i) body(i);
        meet();
    }

  private:
    // What a thread takes at a time: many parts at first, since asking costs, and few towards the end, where the others
    // wait for who took the last.
    class Turns {
      public:
        Turns(int64_t count, int64_t num_threads)
            : count_(count), many_(std::max<int64_t>(1, count / (8 * num_threads))),
              few_(std::max<int64_t>(1, many_ / 8)), num_many_(3 * count / (4 * many_)) {}

        int64_t first(int64_t turn) const {
            return turn < num_many_ ? turn * many_ : num_many_ * many_ + (turn - num_many_) * few_;
        }

        int64_t end(int64_t first) const {
            return std::min(count_, first + (first < num_many_ * many_ ? many_ : few_));
        }

      private:
        const int64_t count_, many_, few_, num_many_;
    };

    // Meetings are microseconds apart, so that nobody sleeps; but whoever shares a core with the last one lets it run.
    static constexpr int kPatience = 4096;

    void meet() {
        const int meeting = meeting_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            meeting_.store(meeting + 1, std::memory_order_release);
            return;
        }
        for (int i = 0; meeting_.load(std::memory_order_acquire) == meeting; ++i)
            i < kPatience ? relax() : std::this_thread::yield();
    }

    const int size_;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> meeting_{0};
};
