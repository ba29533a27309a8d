// Python name of the unigram encoder; the stub is xelm_nemo/_csrc.pyi.

#include "unigram_bindings.h"

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "python_texts.h"
#include "unigram_encoder.h"

namespace py = pybind11;

namespace {

using Step = xelm::UnigramSettings::Step;

std::vector<xelm::CodePoints> code_points_of(const py::list& list) {
  std::vector<xelm::CodePoints> strings;
  strings.reserve(list.size());
  for (const xelm::Text& text : xelm::texts_of(list)) {
    xelm::CodePoints& codes = strings.emplace_back(text.length);
    for (int64_t i = 0; i < text.length; ++i) codes[i] = PyUnicode_READ(text.kind, text.data, i);
  }
  return strings;
}

std::vector<Step> steps_of(const std::vector<std::string>& names) {
  static const std::map<std::string, Step> kSteps = {{"strip_left", Step::kStripLeft},
                                                     {"strip_right", Step::kStripRight},
                                                     {"spaces_to_space", Step::kSpacesToSpace},
                                                     {"spaces_to_meta", Step::kSpacesToMeta}};
  std::vector<Step> steps;
  for (const std::string& name : names) {
    const auto found = kSteps.find(name);
    if (found == kSteps.end()) throw std::invalid_argument("steps: there is no '" + name + "'");
    steps.push_back(found->second);
  }
  return steps;
}

template <class Id>
py::bytes bytes_of(const int32_t* ids, int64_t size) {
  const std::vector<Id> narrow(ids, ids + size);
  return py::bytes(reinterpret_cast<const char*>(narrow.data()), narrow.size() * sizeof(Id));
}

py::list encode(xelm::UnigramEncoder& encoder, const py::list& list, int itemsize) {
  if (itemsize != 2 && itemsize != 4) {
    throw std::invalid_argument("itemsize=" + std::to_string(itemsize) + " is not 2 or 4");
  }
  const std::vector<xelm::Text> texts = xelm::texts_of(list);
  std::vector<int32_t> ids;
  std::vector<int64_t> ends;
  {
    py::gil_scoped_release release;
    ends = encoder.encode(texts, ids);
  }
  py::list encoded;
  int64_t start = 0;
  for (const int64_t end : ends) {
    if (end < 0) {
      encoded.append(py::none());
      continue;
    }
    const int32_t* const first = ids.data() + start;
    encoded.append(itemsize == 2 ? bytes_of<uint16_t>(first, end - start) : bytes_of<int32_t>(first, end - start));
    start = end;
  }
  return encoded;
}

}  // namespace

void bind_unigram(py::module_& m) {
  py::class_<xelm::UnigramEncoder>(m, "UnigramEncoder", "Texts to the ids of a SentencePiece unigram model.")
      .def(py::init([](const py::list& pieces, const std::vector<double>& scores, int32_t unk_id,
                       const py::bytes& charsmap, const std::vector<std::string>& steps, bool cuts_at_whitespace,
                       const py::list& raw_stoppers, const py::list& stoppers) {
             xelm::UnigramSettings settings{steps_of(steps), cuts_at_whitespace, code_points_of(raw_stoppers),
                                            code_points_of(stoppers)};
             return std::make_unique<xelm::UnigramEncoder>(
                 charsmap, settings, xelm::Unigram(code_points_of(pieces), scores, unk_id));
           }),
           py::arg("pieces"), py::arg("scores"), py::kw_only(), py::arg("unk_id"), py::arg("charsmap"),
           py::arg("steps"), py::arg("cuts_at_whitespace"), py::arg("raw_stoppers"), py::arg("stoppers"))
      .def("encode", &encode, py::arg("texts"), py::arg("itemsize"));
}
