// Python names of the C++ functions; the stub is xelm_nemo/_csrc.pyi.

#include <cstdint>
#include <stdexcept>
#include <string>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "balanced_assign.h"
#include "router_bindings.h"
#include "sparse_bindings.h"
#include "tfidf_bindings.h"
#include "unigram_bindings.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

std::string shape_of(const py::array& array) {
  std::string shape = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    shape += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return shape + "]";
}

template <typename T>
py::array_t<T> copy_of(const Array<T>& array) {
  return py::array_t<T>(array.shape(0), array.data());
}

py::tuple balanced_assign(const Array<int32_t>& cost, const Array<int32_t>& cluster_of,
                          const Array<int64_t>& price, const Array<int64_t>& settled, int64_t reach) {
  const bool fits = cost.ndim() == 2 && cluster_of.ndim() == 1 && price.ndim() == 1 && settled.ndim() == 1 &&
                    cluster_of.shape(0) == cost.shape(0) && price.shape(0) == cost.shape(1) &&
                    settled.shape(0) == cost.shape(1);
  if (!fits) {
    throw std::invalid_argument("balanced_assign: cost " + shape_of(cost) + ", cluster_of " +
                                shape_of(cluster_of) + ", price " + shape_of(price) + " and settled " +
                                shape_of(settled) + " are not [N, K], [N], [K] and [K]");
  }
  auto moved = copy_of(cluster_of);
  auto new_price = copy_of(price);
  int32_t* clusters = moved.mutable_data();
  int64_t* prices = new_price.mutable_data();
  int64_t left;
  {
    py::gil_scoped_release release;
    left = xelm::balanced_assign(cost.data(), cost.shape(0), cost.shape(1), clusters, prices, settled.data(),
                                 reach);
  }
  return py::make_tuple(moved, new_price, left);
}

}  // namespace

PYBIND11_MODULE(_csrc, m) {
  m.doc() = "C++ parts of xelm_nemo.";
  m.def("balanced_assign", &balanced_assign, py::arg("cost"), py::arg("cluster_of"), py::arg("price"),
        py::arg("settled"), py::arg("reach"),
        "Clusters of equal size at the least cost, from an assignment that is best at given prices.");
  bind_router(m);
  bind_sparse_products(m);
  bind_tfidf(m);
  bind_unigram(m);
}
