// Python names of the C++ functions; the stub is xelm_nemo/_csrc.pyi.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "balanced_assign.h"
#include "tfidf_bindings.h"

namespace py = pybind11;

namespace {

using FloatMatrix = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::string shape_of(const py::array& array) {
  std::string shape = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    shape += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return shape + "]";
}

py::array_t<int32_t> balanced_assign(const FloatMatrix& distance) {
  if (distance.ndim() != 2) {
    throw std::invalid_argument("balanced_assign: distance has shape " + shape_of(distance) +
                                "; give [documents, clusters]");
  }
  const float* data = distance.data();
  const int64_t num_documents = distance.shape(0), num_clusters = distance.shape(1);
  std::vector<int32_t> cluster_of;
  {
    py::gil_scoped_release release;
    cluster_of = xelm::balanced_assign(data, num_documents, num_clusters);
  }
  return py::array_t<int32_t>(static_cast<py::ssize_t>(cluster_of.size()), cluster_of.data());
}

}  // namespace

PYBIND11_MODULE(_csrc, m) {
  m.doc() = "C++ parts of xelm_nemo.";
  m.def("balanced_assign", &balanced_assign, py::arg("distance"),
        "int32 [N] cluster of each document from float32 [N, K] distances; sizes differ by at most one.");
  bind_tfidf(m);
}
