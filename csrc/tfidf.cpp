#include "tfidf.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "parallel.h"
#include "row_counter.h"

namespace xelm {
namespace {

constexpr int64_t kDocumentsAnItem = 32;
constexpr int64_t kAhead = 12;  // lookups whose memory is asked for at a time

// The rows of one item of work.
struct Piece {
  std::vector<int64_t> ends;
  std::vector<int32_t> terms;
  std::vector<double> values;
};

}  // namespace

TermTable table_of(const std::vector<std::string>& terms) {
  TermTable table;
  std::string padded;
  for (const std::string& term : terms) {
    padded.assign(term).append(kSlack, '\0');
    table.insert(TermTable::term(padded.data(), static_cast<uint32_t>(term.size())));
  }
  return table;
}

Tfidf::Tfidf(const AnalyzerSettings& settings, const std::vector<std::string>& stop_words,
             const std::vector<std::string>& terms, std::vector<double> idf)
    : settings_(settings), stop_words_(table_of(stop_words)), terms_(table_of(terms)), idf_(std::move(idf)) {
  const size_t distinct = terms_.size();
  if (distinct != terms.size() || idf_.size() != terms.size()) {
    throw std::invalid_argument(std::to_string(terms.size()) + " terms, of which " + std::to_string(distinct) +
                                " are distinct, with " + std::to_string(idf_.size()) + " idf");
  }
}

// Counts documents, one at a time.
class Tfidf::Worker {
 public:
  Worker(const Tfidf& tfidf, bool in_order)
      : tfidf_(tfidf),
        analyzer_(tfidf.settings_, tfidf.stop_words()),
        counter_(tfidf.terms_.size()),
        in_order_(in_order) {}

  void append(const Text& document, Piece& piece) {
    const std::vector<Term>& terms = analyzer_.terms(document);
    const auto size = static_cast<int64_t>(terms.size());
    found_.resize(size);
    size_t num_found = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (i + kAhead < size) tfidf_.terms_.prefetch(terms[i + kAhead]);
      const int64_t term = tfidf_.terms_.find(terms[i]);
      found_[num_found] = static_cast<int32_t>(term);
      num_found += term >= 0;
    }
    found_.resize(num_found);
    counter_.add(found_);
    const size_t begin = piece.terms.size();
    const int64_t row_size = counter_.size();
    piece.terms.resize(begin + row_size);
    piece.values.resize(begin + row_size);
    int32_t* row_terms = piece.terms.data() + begin;
    double* values = piece.values.data() + begin;
    if (in_order_) {
      counter_.drain_in_order(row_terms, values);
      tfidf_.weigh(row_terms, values, row_size);
    } else {
      counter_.drain(row_terms, values);
    }
    piece.ends.push_back(static_cast<int64_t>(piece.terms.size()));
  }

 private:
  const Tfidf& tfidf_;
  Analyzer analyzer_;
  RowCounter counter_;
  bool in_order_;
  std::vector<int32_t> found_;
};

SparseRows Tfidf::transform(const std::vector<Text>& documents, FirstUse* first_use, int num_threads) const {
  SparseRows rows = count(documents, !first_use, num_threads);
  if (first_use) order_by_first_use(rows, *first_use, num_threads);
  return rows;
}

// Rows that are ready, or, for the order of first use, the counts in the order in which a document has them.
SparseRows Tfidf::count(const std::vector<Text>& documents, bool in_order, int num_threads) const {
  const auto size = static_cast<int64_t>(documents.size());
  std::vector<Piece> pieces((size + kDocumentsAnItem - 1) / kDocumentsAnItem);
  std::vector<std::unique_ptr<Worker>> workers(num_threads);
  parallel_for(static_cast<int64_t>(pieces.size()), num_threads, [&](int worker, int64_t item) {
    if (!workers[worker]) workers[worker] = std::make_unique<Worker>(*this, in_order);
    for (int64_t i = item * kDocumentsAnItem; i < std::min(size, (item + 1) * kDocumentsAnItem); ++i) {
      workers[worker]->append(documents[i], pieces[item]);
    }
  });

  SparseRows rows;
  rows.starts.reserve(size + 1);
  rows.starts.push_back(0);
  std::vector<int64_t> begins;
  for (const Piece& piece : pieces) {
    begins.push_back(rows.size());
    for (const int64_t end : piece.ends) rows.starts.push_back(begins.back() + end);
  }
  rows.terms.reset(new int32_t[rows.size()]);
  rows.values.reset(new double[rows.size()]);
  parallel_for(static_cast<int64_t>(pieces.size()), num_threads, [&](int, int64_t item) {
    Piece& piece = pieces[item];
    std::copy(piece.terms.begin(), piece.terms.end(), rows.terms.get() + begins[item]);
    std::copy(piece.values.begin(), piece.values.end(), rows.values.get() + begins[item]);
    piece = {};
  });
  return rows;
}

// Puts counted rows into the order in which the terms first come in them, and weighs them.
void Tfidf::order_by_first_use(SparseRows& rows, FirstUse& first_use, int num_threads) const {
  std::vector<int32_t>& rank = first_use.rank;
  rank.resize(terms_.size(), -1);
  for (int64_t i = 0; i < rows.size(); ++i) {
    if (rank[rows.terms[i]] < 0) rank[rows.terms[i]] = first_use.size++;
  }
  std::vector<std::vector<std::pair<int32_t, double>>> scratch(num_threads);
  parallel_for(static_cast<int64_t>(rows.starts.size()) - 1, num_threads, [&](int worker, int64_t row) {
    const int64_t begin = rows.starts[row], size = rows.starts[row + 1] - begin;
    int32_t* terms = rows.terms.get() + begin;
    double* values = rows.values.get() + begin;
    auto& pairs = scratch[worker];
    pairs.clear();
    for (int64_t i = 0; i < size; ++i) pairs.emplace_back(terms[i], values[i]);
    std::sort(pairs.begin(), pairs.end(),
              [&](const auto& a, const auto& b) { return rank[a.first] < rank[b.first]; });
    for (int64_t i = 0; i < size; ++i) std::tie(terms[i], values[i]) = pairs[i];
    weigh(terms, values, size);
  });
}

void Tfidf::weigh(const int32_t* terms, double* values, int64_t size) const {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) {
    values[i] *= idf_[terms[i]];
    sum += values[i] * values[i];
  }
  if (sum == 0) return;
  const double norm = std::sqrt(sum);
  for (int64_t i = 0; i < size; ++i) values[i] /= norm;
}

}  // namespace xelm
