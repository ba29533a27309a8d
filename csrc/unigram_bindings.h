#pragma once

#include <pybind11/pybind11.h>

// Adds the unigram encoder to the module.
void bind_unigram(pybind11::module_& m);
