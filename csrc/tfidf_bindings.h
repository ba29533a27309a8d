#pragma once

#include <pybind11/pybind11.h>

// Adds the classes of tf-idf to the module.
void bind_tfidf(pybind11::module_& m);
