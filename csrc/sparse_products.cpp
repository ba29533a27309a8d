#include "sparse_products.h"

#include <algorithm>

#include "parallel.h"

namespace xelm {
namespace {

constexpr int64_t kRowsAnItem = 64;
constexpr int64_t kAhead = 4;  // entries whose dense rows are asked for at a time
constexpr int64_t kDoublesALine = 8;

inline void add_scaled(double scale, const double* from, double* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] += scale * from[i];
}

inline void prefetch(const double* row, int64_t size) {
  for (int64_t i = 0; i < size; i += kDoublesALine) __builtin_prefetch(row + i);
}

}  // namespace

void sparse_times(const SparseSlice& rows, const double* dense, int64_t width, double* out, int num_threads) {
  const int64_t size = rows.end - rows.begin;
  parallel_for((size + kRowsAnItem - 1) / kRowsAnItem, num_threads, [&](int, int64_t item) {
    for (int64_t i = item * kRowsAnItem; i < std::min(size, (item + 1) * kRowsAnItem); ++i) {
      double* to = out + i * width;
      std::fill(to, to + width, 0.0);
      const int64_t end = rows.starts[rows.begin + i + 1];
      for (int64_t at = rows.starts[rows.begin + i]; at < end; ++at) {
        if (at + kAhead < end) prefetch(dense + rows.columns[at + kAhead] * width, width);
        add_scaled(rows.values[at], dense + rows.columns[at] * width, to, width);
      }
    }
  });
}

// Each thread adds to columns of its own, so that none waits for another and the order stays.
void add_transposed_times(const SparseSlice& rows, const double* dense, int64_t width, double* total,
                          int num_threads) {
  parallel_for(num_threads, num_threads, [&](int, int64_t part) {
    const int64_t first = width * part / num_threads, size = width * (part + 1) / num_threads - first;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const double* from = dense + (row - rows.begin) * width + first;
      const int64_t end = rows.starts[row + 1];
      for (int64_t at = rows.starts[row]; at < end; ++at) {
        if (at + kAhead < end) prefetch(total + rows.columns[at + kAhead] * width + first, size);
        add_scaled(rows.values[at], from, total + rows.columns[at] * width + first, size);
      }
    }
  });
}

}  // namespace xelm
