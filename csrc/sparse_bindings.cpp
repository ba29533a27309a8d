// Python names of the products of sparse matrices; the stub is xelm_nemo/_csrc.pyi.

#include "sparse_bindings.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include <pybind11/numpy.h>

#include "sparse_products.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

xelm::SparseSlice slice_of(const Array<int64_t>& starts, const Array<int32_t>& columns,
                           const Array<double>& values, const py::slice& rows) {
  py::ssize_t begin, end, step, size;
  if (starts.ndim() != 1 || columns.ndim() != 1 || values.ndim() != 1 || starts.shape(0) < 1 ||
      !rows.compute(starts.shape(0) - 1, &begin, &end, &step, &size) || step != 1) {
    throw std::invalid_argument("starts, columns and values are not of one dimension each, or rows have a step");
  }
  const int64_t last = starts.data()[begin + size];
  if (columns.shape(0) != values.shape(0) || last > values.shape(0)) {
    throw std::invalid_argument(std::to_string(columns.shape(0)) + " columns and " +
                                std::to_string(values.shape(0)) + " values do not make rows of " +
                                std::to_string(last));
  }
  return {starts.data(), columns.data(), values.data(), begin, begin + size};
}

Array<double> sparse_times(const Array<int64_t>& starts, const Array<int32_t>& columns,
                           const Array<double>& values, const py::slice& rows, const Array<double>& dense,
                           int num_threads) {
  const xelm::SparseSlice slice = slice_of(starts, columns, values, rows);
  if (dense.ndim() != 2) throw std::invalid_argument("dense is not [F, L]");
  Array<double> out({slice.end - slice.begin, static_cast<int64_t>(dense.shape(1))});
  double* to = out.mutable_data();
  py::gil_scoped_release release;
  xelm::sparse_times(slice, dense.data(), dense.shape(1), to, num_threads);
  return out;
}

void add_transposed_times(const Array<int64_t>& starts, const Array<int32_t>& columns,
                          const Array<double>& values, const py::slice& rows, const Array<double>& dense,
                          Array<double>& total, int num_threads) {
  const xelm::SparseSlice slice = slice_of(starts, columns, values, rows);
  if (dense.ndim() != 2 || total.ndim() != 2 || dense.shape(0) != slice.end - slice.begin ||
      dense.shape(1) != total.shape(1)) {
    throw std::invalid_argument("dense and total are not [n, L] and [F, L] for n rows");
  }
  double* to = total.mutable_data();
  py::gil_scoped_release release;
  xelm::add_transposed_times(slice, dense.data(), dense.shape(1), to, num_threads);
}

}  // namespace

void bind_sparse_products(py::module_& m) {
  m.def("sparse_times", &sparse_times, py::arg("starts"), py::arg("columns"), py::arg("values"), py::arg("rows"),
        py::arg("dense"), py::kw_only(), py::arg("num_threads"), "Rows of a sparse matrix times a dense one.");
  m.def("add_transposed_times", &add_transposed_times, py::arg("starts"), py::arg("columns"), py::arg("values"),
        py::arg("rows"), py::arg("dense"), py::arg("total").noconvert(), py::kw_only(), py::arg("num_threads"),
        "Adds transposed rows of a sparse matrix times a dense one to a total.");
}
