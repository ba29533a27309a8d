// Work divided among threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace xelm {

// Calls work(worker, item) once for each item below `num_items`, from `num_workers` threads, each a
// worker with its own number; whoever is free takes the next item. Rethrows the first exception.
template <class Work>
void parallel_for(int64_t num_items, int num_workers, const Work& work) {
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> failures(num_workers);
  const auto run = [&](int worker) noexcept {
    try {
      for (int64_t item; (item = next++) < num_items;) work(worker, item);
    } catch (...) {
      failures[worker] = std::current_exception();
      next = num_items;
    }
  };
  std::vector<std::thread> threads;
  for (int worker = 1; worker < std::min<int64_t>(num_workers, num_items); ++worker) {
    try {
      threads.emplace_back(run, worker);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: those there are do all of it
    }
  }
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace xelm
