#pragma once

#include <pybind11/pybind11.h>

// Adds the products of sparse matrices to the module.
void bind_sparse_products(pybind11::module_& m);
