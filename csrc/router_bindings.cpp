// Python names of the prefix router; the stub is xelm_nemo/_csrc.pyi.

#include "router_bindings.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "prefix_router.h"
#include "python_texts.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

xelm::Metas metas_of(const std::string& name) {
  if (name == "kept") return xelm::Metas::kKept;
  if (name == "left_out_of_first") return xelm::Metas::kLeftOutOfFirst;
  if (name == "stripped") return xelm::Metas::kStripped;
  throw std::invalid_argument("metas='" + name + "' is not 'kept', 'left_out_of_first' or 'stripped'");
}

void check_ids(const Array<int32_t>& ids, const xelm::TokenPieces& pieces) {
  const int32_t *begin = ids.data(), *end = begin + ids.size();
  const auto wrong = std::find_if(begin, end, [&](int32_t id) { return id < 0 || id >= pieces.size(); });
  if (wrong == end) return;
  throw std::invalid_argument("ids[" + std::to_string(wrong - begin) + "]=" + std::to_string(*wrong) +
                              " is no token; there are " + std::to_string(pieces.size()));
}

void check_documents(const xelm::TokenPieces& pieces, const Array<int32_t>& ids, const std::vector<int64_t>& ends) {
  check_ids(ids, pieces);
  int64_t last = 0;
  for (const int64_t end : ends) {
    if (end < last) throw std::invalid_argument("ends do not ascend");
    last = end;
  }
  if (last != ids.size()) throw std::invalid_argument("ends do not end where ids do");
}

template <class Value>
Array<Value> array_of(const std::vector<Value>& values) {
  return Array<Value>(static_cast<py::ssize_t>(values.size()), values.data());
}

// What the first token, the first two, ... decode to.
py::list texts(const xelm::TokenPieces& pieces, const Array<int32_t>& ids) {
  check_ids(ids, pieces);
  py::list list;
  xelm::GrowingText text;
  for (py::ssize_t i = 0; i < ids.size(); ++i) {
    text.append(pieces, ids.data()[i]);
    const auto size = static_cast<py::ssize_t>(text.characters().size());
    const auto copy = PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.characters().data(), size);
    if (!copy) throw py::error_already_set();
    list.append(py::reinterpret_steal<py::str>(copy));
  }
  return list;
}

// A router with the arrays that it looks at.
class Router {
 public:
  Router(const xelm::Tfidf& tfidf, Array<double> components, Array<double> products, Array<double> squares)
      : components_(std::move(components)), products_(std::move(products)), squares_(std::move(squares)) {
    const py::ssize_t num_terms = tfidf.terms().size(), num_centroids = squares_.size();
    if (components_.ndim() != 2 || products_.ndim() != 2 || squares_.ndim() != 1 ||
        components_.shape(0) != num_terms || products_.shape(0) != num_terms ||
        products_.shape(1) != num_centroids) {
      throw std::invalid_argument("components, products and squares are not [F, D], [F, K] and [K] for F=" +
                                  std::to_string(num_terms) + " terms");
    }
    const xelm::RouterTables tables{components_.data(), products_.data(), squares_.data(), components_.shape(1),
                                    num_centroids};
    router_ = std::make_unique<xelm::PrefixRouter>(tfidf, tables);
  }

  const xelm::PrefixRouter& get() const { return *router_; }

  Array<double> distances(const xelm::TokenPieces& pieces, const Array<int32_t>& ids,
                          const std::vector<int64_t>& ends, int num_threads) const {
    check_documents(pieces, ids, ends);
    Array<double> out({static_cast<py::ssize_t>(ids.size()), squares_.size()});
    double* const to = out.mutable_data();
    py::gil_scoped_release release;
    router_->distances(pieces, ids.data(), ends, to, num_threads);
    return out;
  }

  py::tuple terms(const xelm::TokenPieces& pieces, const Array<int32_t>& ids, const std::vector<int64_t>& ends,
                  int num_threads) const {
    check_documents(pieces, ids, ends);
    xelm::PrefixTermLists lists;
    {
      py::gil_scoped_release release;
      lists = router_->terms(pieces, ids.data(), ends, num_threads);
    }
    return py::make_tuple(array_of(lists.settled_starts), array_of(lists.settled), array_of(lists.open_starts),
                          array_of(lists.open));
  }

 private:
  Array<double> components_, products_, squares_;
  std::unique_ptr<xelm::PrefixRouter> router_;
};

class Stream {
 public:
  explicit Stream(const Router& router)
      : num_centroids_(router.get().tables().num_centroids), stream_(router.get()) {}

  Array<double> append(const xelm::TokenPieces& pieces, const Array<int32_t>& ids) {
    check_ids(ids, pieces);
    Array<double> out({static_cast<py::ssize_t>(ids.size()), num_centroids_});
    double* const to = out.mutable_data();
    py::gil_scoped_release release;
    stream_.append(pieces, ids.data(), ids.size(), to);
    return out;
  }

  Array<double> replace(const py::list& list) {
    const std::vector<xelm::Text> texts = xelm::texts_of(list);
    Array<double> out({static_cast<py::ssize_t>(texts.size()), num_centroids_});
    double* to = out.mutable_data();
    py::gil_scoped_release release;
    for (const xelm::Text& text : texts) {
      stream_.replace(text, to);
      to += num_centroids_;
    }
    return out;
  }

 private:
  py::ssize_t num_centroids_;
  xelm::PrefixStream stream_;
};

}  // namespace

void bind_router(py::module_& m) {
  py::class_<xelm::TokenPieces>(m, "TokenPieces", "The tokens of a tokenizer, for what it decodes ids to.")
      .def(py::init([](std::vector<std::string> pieces, std::vector<bool> is_special, const std::string& metas) {
             if (pieces.size() != is_special.size()) {
               throw std::invalid_argument(std::to_string(pieces.size()) + " pieces with " +
                                           std::to_string(is_special.size()) + " of is_special");
             }
             return xelm::TokenPieces(std::move(pieces), std::move(is_special), metas_of(metas));
           }),
           py::arg("pieces"), py::arg("is_special"), py::kw_only(), py::arg("metas"))
      .def("__len__", &xelm::TokenPieces::size)
      .def("texts", &texts, py::arg("ids"));
  py::class_<Router>(m, "PrefixRouter", "Distances from prefixes of documents to centroids.")
      .def(py::init<const xelm::Tfidf&, Array<double>, Array<double>, Array<double>>(), py::keep_alive<1, 2>(),
           py::arg("tfidf"), py::kw_only(), py::arg("components"), py::arg("products"), py::arg("squares"))
      .def("distances", &Router::distances, py::arg("pieces"), py::arg("ids"), py::arg("ends"), py::kw_only(),
           py::arg("num_threads"))
      .def("terms", &Router::terms, py::arg("pieces"), py::arg("ids"), py::arg("ends"), py::kw_only(),
           py::arg("num_threads"));
  py::class_<Stream>(m, "PrefixStream", "A text that grows, and how far it is from the centroids.")
      .def(py::init<const Router&>(), py::keep_alive<1, 2>(), py::arg("router"))
      .def("append", &Stream::append, py::arg("pieces"), py::arg("ids"))
      .def("replace", &Stream::replace, py::arg("texts"));
}
