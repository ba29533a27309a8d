#include "prefix_router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"

namespace xelm {
namespace {

constexpr double kTooShort = 10 * std::numeric_limits<double>::epsilon();  // scikit-learn's bound
constexpr int64_t kLanes = 4, kDoublesALine = 8;

// Compiled for wider registers too, where the system can choose when the program is loaded. The bits are the same.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define XELM_ALSO_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define XELM_ALSO_WIDE
#endif
constexpr size_t kAhead = 4;  // changes whose rows are asked for at a time

// out = start + scale * row; `out` may be `start`, which compilers have to be told for vector instructions.
XELM_ALSO_WIDE
void add_scaled(const std::vector<double>& start, double scale, const double* row, std::vector<double>& out) {
  const double* const from = start.data();
  double* const to = out.data();
  const size_t size = out.size();
  if (from == to) {
    for (size_t i = 0; i < size; ++i) to[i] += scale * row[i];
  } else {
    for (size_t i = 0; i < size; ++i) to[i] = from[i] + scale * row[i];
  }
}

// Several sums side by side, so that none waits for its last addition.
XELM_ALSO_WIDE
double square_of(const std::vector<double>& vector) {
  double sums[kLanes] = {};
  const auto size = static_cast<int64_t>(vector.size());
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += vector[i + lane] * vector[i + lane];
  }
  for (; i < size; ++i) sums[0] += vector[i] * vector[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Adds a document's prefixes, from the empty one on.
void read_document(const Lexicon& lexicon, const TokenPieces& pieces, const int32_t* ids, int64_t size,
                   PrefixTermLists& out) {
  GrowingText text;
  PrefixTerms terms(lexicon);
  for (int64_t i = 0; i < size; ++i) {
    if (i > 0) {
      text.append(pieces, ids[i - 1]);
      terms.read(text.characters(), text.kept(), out.settled, out.open);
    }
    out.settled_starts.push_back(static_cast<int64_t>(out.settled.size()));
    out.open_starts.push_back(static_cast<int64_t>(out.open.size()));
  }
}

void append(const std::vector<int64_t>& starts, const std::vector<int32_t>& terms, std::vector<int64_t>& all_starts,
            std::vector<int32_t>& all_terms) {
  const auto before = static_cast<int64_t>(all_terms.size());
  for (size_t i = 1; i < starts.size(); ++i) all_starts.push_back(before + starts[i]);
  all_terms.insert(all_terms.end(), terms.begin(), terms.end());
}

}  // namespace

PrefixSum::PrefixSum(const PrefixRouter& router) : router_(router) {
  for (Sum* sum : {&settled_, &whole_}) {
    sum->vector.resize(router.tables().dims);
    sum->products.resize(router.tables().num_centroids);
  }
}

void PrefixSum::clear() {
  std::fill(settled_.vector.begin(), settled_.vector.end(), 0.0);
  std::fill(settled_.products.begin(), settled_.products.end(), 0.0);
  settled_.weight = 0;
  terms_.clear();
}

void PrefixSum::Sum::add(int32_t term, const PrefixRouter& router) { set(*this, term, router); }

void PrefixSum::Sum::set(const Sum& other, int32_t term, const PrefixRouter& router) {
  const RouterTables& tables = router.tables();
  const double idf = router.tfidf().idf()[term];
  add_scaled(other.vector, idf, tables.components + term * tables.dims, vector);
  add_scaled(other.products, idf, tables.products + term * tables.num_centroids, products);
  weight = other.weight + idf;
}

void PrefixSum::add(const int32_t* begin, const int32_t* end) {
  for (const int32_t* term = begin; term < end; ++term) settled_.add(*term, router_);
  terms_.insert(terms_.end(), begin, end);
}

void PrefixSum::prefetch(const int32_t* begin, const int32_t* end) const {
  const RouterTables& tables = router_.tables();
  for (const int32_t* term = begin; term < end; ++term) {
    const double* const row = tables.components + *term * tables.dims;
    for (int64_t i = 0; i < tables.dims; i += kDoublesALine) __builtin_prefetch(row + i);
    __builtin_prefetch(tables.products + *term * tables.num_centroids);
  }
}

void PrefixSum::distances(const int32_t* begin, const int32_t* end, double* out) {
  const Sum* sum = &settled_;
  if (begin < end) {
    whole_.set(settled_, *begin, router_);
    for (const int32_t* term = begin + 1; term < end; ++term) whole_.add(*term, router_);
    sum = &whole_;
  }
  const RouterTables& tables = router_.tables();
  const double square = square_of(sum->vector);
  const double by = scale(*sum, std::sqrt(square), begin, end);
  const double own = by > 0 ? square / (by * by) : 0, twice = by > 0 ? 2 / by : 0;
  for (int64_t k = 0; k < tables.num_centroids; ++k) {
    out[k] = std::max(0.0, own + tables.squares[k] - twice * sum->products[k]);
  }
}

// What u is divided by: its length, or |c idf| where z is too short. The sum of all weights is no less than that, so
// that it is only worked out for vectors that may be too short.
double PrefixSum::scale(const Sum& sum, double length, const int32_t* begin, const int32_t* end) const {
  if (length >= kTooShort * sum.weight) return length;
  std::vector<int32_t> terms(terms_);
  terms.insert(terms.end(), begin, end);
  std::sort(terms.begin(), terms.end());
  double squares = 0;
  for (auto from = terms.begin(), to = from; from < terms.end(); from = to) {
    to = std::upper_bound(from, terms.end(), *from);
    const double value = static_cast<double>(to - from) * router_.tfidf().idf()[*from];
    squares += value * value;
  }
  const double row = std::sqrt(squares);
  return length < kTooShort * row ? row : length;
}

void PrefixStream::append(const TokenPieces& pieces, const int32_t* ids, int64_t size, double* out) {
  for (int64_t i = 0; i < size; ++i) {
    text_.append(pieces, ids[i]);
    note();
  }
  sum_up(out);
}

void PrefixStream::replace(const Text& text, double* out) {
  text_.replace(text);
  note();
  sum_up(out);
}

void PrefixStream::note() {
  Change change{settled_.size(), open_.size(), false};
  change.is_anew = terms_.read(text_.characters(), text_.kept(), settled_, open_);
  changes_.push_back(change);
}

// Apart from the reading, for its rows lie far from each other in memory: they are asked for ahead.
void PrefixStream::sum_up(double* out) {
  changes_.push_back({settled_.size(), open_.size(), false});
  for (size_t i = 0; i + 1 < changes_.size(); ++i, out += num_centroids_) {
    if (i + kAhead + 1 < changes_.size()) {
      const Change &ahead = changes_[i + kAhead], &behind = changes_[i + kAhead + 1];
      sum_.prefetch(settled_.data() + ahead.settled, settled_.data() + behind.settled);
      sum_.prefetch(open_.data() + ahead.open, open_.data() + behind.open);
    }
    const Change &change = changes_[i], &next = changes_[i + 1];
    if (change.is_anew) sum_.clear();
    sum_.add(settled_.data() + change.settled, settled_.data() + next.settled);
    sum_.distances(open_.data() + change.open, open_.data() + next.open, out);
  }
  changes_.clear();
  settled_.clear();
  open_.clear();
}

void PrefixRouter::distances(const TokenPieces& pieces, const int32_t* ids, const std::vector<int64_t>& ends,
                             double* out, int num_threads) const {
  parallel_for(static_cast<int64_t>(ends.size()), num_threads, [&](int, int64_t document) {
    const int64_t begin = document > 0 ? ends[document - 1] : 0, end = ends[document];
    if (begin == end) return;
    double* const rows = out + begin * tables_.num_centroids;
    std::copy(tables_.squares, tables_.squares + tables_.num_centroids, rows);  // the empty text's vector is 0
    PrefixStream(*this).append(pieces, ids + begin, end - begin - 1, rows + tables_.num_centroids);
  });
}

PrefixTermLists PrefixRouter::terms(const TokenPieces& pieces, const int32_t* ids, const std::vector<int64_t>& ends,
                                    int num_threads) const {
  std::vector<PrefixTermLists> parts(ends.size());
  parallel_for(static_cast<int64_t>(ends.size()), num_threads, [&](int, int64_t document) {
    const int64_t begin = document > 0 ? ends[document - 1] : 0;
    read_document(lexicon_, pieces, ids + begin, ends[document] - begin, parts[document]);
  });
  PrefixTermLists all;
  for (const PrefixTermLists& part : parts) {
    append(part.settled_starts, part.settled, all.settled_starts, all.settled);
    append(part.open_starts, part.open, all.open_starts, all.open);
  }
  return all;
}

}  // namespace xelm
