// Python names of the tf-idf classes; the stub is xelm_nemo/_csrc.pyi.

#include "tfidf_bindings.h"

#include <cstdint>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "python_texts.h"
#include "term_counter.h"
#include "tfidf.h"

namespace py = pybind11;

namespace {

using xelm::AnalyzerSettings;

// A lone surrogate is a code point like others to scikit-learn, so it is one here.
std::vector<std::string> utf8_of(const py::list& list) {
  std::vector<std::string> terms;
  terms.reserve(list.size());
  for (const py::handle item : list) {
    const py::bytes bytes =
        py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(item.ptr(), "utf-8", "surrogatepass"));
    if (!bytes) throw py::error_already_set();
    terms.push_back(bytes);
  }
  return terms;
}

py::list strings_of(const std::vector<std::string>& terms) {
  py::list list(terms.size());
  for (size_t i = 0; i < terms.size(); ++i) {
    PyObject* text =
        PyUnicode_DecodeUTF8(terms[i].data(), static_cast<Py_ssize_t>(terms[i].size()), "surrogatepass");
    if (!text) throw py::error_already_set();
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), text);
  }
  return list;
}

template <class Value>
py::array_t<Value> array_of(const std::vector<Value>& values) {
  return py::array_t<Value>(static_cast<py::ssize_t>(values.size()), values.data());
}

// An array that takes the memory over.
template <class Value>
py::array_t<Value> array_of(std::unique_ptr<Value[]> values, int64_t size) {
  const py::capsule owner(values.get(), [](void* memory) { delete[] static_cast<Value*>(memory); });
  return py::array_t<Value>(size, values.release(), owner);
}

// What `ask` answers without the interpreter's lock.
template <class Ask>
auto unlocked(const Ask& ask) {
  py::gil_scoped_release release;
  return ask();
}

py::tuple tuple_of(const xelm::Terms& terms) {
  return py::make_tuple(strings_of(terms.texts), array_of(terms.documents));
}

// A counter with the stop words that it looks at.
class Counter {
 public:
  Counter(const AnalyzerSettings& settings, const py::list& stop_words, int num_threads, int64_t memory_bytes,
          const std::string& folder)
      : stop_words_(xelm::table_of(utf8_of(stop_words))),
        counter_(settings, stop_words_.size() ? &stop_words_ : nullptr, num_threads, memory_bytes, folder) {}

  void add(const py::list& list) {
    const std::vector<xelm::Text> texts = xelm::texts_of(list);
    unlocked([&] { counter_.add(texts); });
  }

  int64_t num_documents() const { return counter_.num_documents(); }
  py::array_t<double> occurrences(int64_t most) {
    return array_of(unlocked([&] { return counter_.occurrences(most); }));
  }
  py::tuple all() {
    return tuple_of(unlocked([&] { return counter_.all(); }));
  }
  py::tuple at(const std::vector<int64_t>& positions) {
    return tuple_of(unlocked([&] { return counter_.at(positions); }));
  }
  py::tuple most_frequent(int64_t limit) {
    return tuple_of(unlocked([&] { return counter_.most_frequent(limit); }));
  }

 private:
  xelm::TermTable stop_words_;
  xelm::TermCounter counter_;
};

py::tuple transform(const xelm::Tfidf& tfidf, const py::list& list, xelm::FirstUse* first_use, int num_threads) {
  const std::vector<xelm::Text> texts = xelm::texts_of(list);
  xelm::SparseRows rows = unlocked([&] { return tfidf.transform(texts, first_use, num_threads); });
  const int64_t size = rows.size();
  return py::make_tuple(array_of(std::move(rows.values), size), array_of(std::move(rows.terms), size),
                        array_of(rows.starts));
}

}  // namespace

void bind_tfidf(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::system_error& failure) {
      PyErr_SetObject(PyExc_OSError, py::make_tuple(failure.code().value(), failure.what()).ptr());
    }
  });
  py::class_<AnalyzerSettings>(m, "AnalyzerSettings", "How a text is cut into terms.")
      .def(py::init<bool, bool, int, int>(), py::kw_only(), py::arg("characters"), py::arg("drops_numbers"),
           py::arg("shortest"), py::arg("longest"));
  py::class_<Counter>(m, "TermCounter", "Counts the terms of a stream of documents in bounded memory.")
      .def(py::init<const AnalyzerSettings&, const py::list&, int, int64_t, const std::string&>(),
           py::arg("settings"), py::arg("stop_words"), py::kw_only(), py::arg("num_threads"),
           py::arg("memory_bytes"), py::arg("folder"))
      .def("add", &Counter::add, py::arg("texts"))
      .def_property_readonly("num_documents", &Counter::num_documents)
      .def("occurrences", &Counter::occurrences, py::arg("most"))
      .def("all", &Counter::all)
      .def("at", &Counter::at, py::arg("positions"))
      .def("most_frequent", &Counter::most_frequent, py::arg("limit"));
  py::class_<xelm::FirstUse>(m, "FirstUse", "The order in which a corpus first shows its terms.").def(py::init<>());
  py::class_<xelm::Tfidf>(m, "Tfidf", "Turns documents into rows of a sparse matrix.")
      .def(py::init([](const AnalyzerSettings& settings, const py::list& stop_words, const py::list& terms,
                       std::vector<double> idf) {
             return xelm::Tfidf(settings, utf8_of(stop_words), utf8_of(terms), std::move(idf));
           }),
           py::arg("settings"), py::arg("stop_words"), py::arg("terms"), py::arg("idf"))
      .def("transform", &transform, py::arg("texts"), py::kw_only(), py::arg("first_use") = nullptr,
           py::arg("num_threads"));
}
