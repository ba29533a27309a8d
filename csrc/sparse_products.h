// Products of a sparse matrix with dense ones, some of its rows at a time.
//
// The sparse matrix is large and may lie in a file; nothing of it is copied. Each result is added up in the
// order of the entries, whatever the number of threads.

#pragma once

#include <cstdint>

namespace xelm {

// Rows `begin` to `end` of a sparse matrix.
struct SparseSlice {
  const int64_t* starts;   // where each row of the matrix begins among its entries, and the end of the last
  const int32_t* columns;  // of the entries
  const double* values;
  int64_t begin, end;
};

// out [end - begin, width] = the rows times dense [columns, width].
void sparse_times(const SparseSlice& rows, const double* dense, int64_t width, double* out, int num_threads);

// total [columns, width] += the transposed rows times dense [end - begin, width].
void add_transposed_times(const SparseSlice& rows, const double* dense, int64_t width, double* total,
                          int num_threads);

}  // namespace xelm
