// Python strings where they lie.

#pragma once

#include <string>
#include <vector>

#include <pybind11/pybind11.h>

#include "unicode.h"

namespace xelm {

// Where the texts of a list lie. The list keeps them, and the caller of the binding keeps the list.
inline std::vector<Text> texts_of(const pybind11::list& list) {
  std::vector<Text> texts;
  texts.reserve(list.size());
  for (const pybind11::handle item : list) {
    PyObject* text = item.ptr();
    if (!PyUnicode_Check(text)) {
      throw pybind11::type_error("texts[" + std::to_string(texts.size()) + "] is a " + Py_TYPE(text)->tp_name +
                           ", not a str");
    }
#if PY_VERSION_HEX < 0x030c0000
    if (PyUnicode_READY(text) < 0) throw pybind11::error_already_set();
#endif
    texts.push_back({PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text), static_cast<int>(PyUnicode_KIND(text))});
  }
  return texts;
}

}  // namespace xelm
