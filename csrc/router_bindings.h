#pragma once

#include <pybind11/pybind11.h>

// Adds the prefix router's classes to the module.
void bind_router(pybind11::module_& m);
