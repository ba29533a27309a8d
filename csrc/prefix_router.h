// How far every prefix of a document is from the centroids, in time that grows as the document does.
//
// With counts c_t of its terms, a text's vector is z / |z|, z = sum_t c_t idf_t V_t / |c idf|, where V_t is the
// row of term t in the SVD's components [F, D]. So u = sum_t c_t idf_t V_t points where z does, and both u and
// its products with the centroids are sums over terms: a token adds the terms that it settles, and the
// open ones (prefix_terms.h) are added for the one prefix that has them. Nothing is ever subtracted. What is left for each
// prefix is |u|, D squares, and one product a centroid:
//
//   d_k^2 = |u / |u||^2 + |c_k|^2 - 2 u c_k / |u|
//
// scikit-learn leaves z as it is where |z| is below ten times the precision of a double, and so does this: such vectors
// are what rounding left of terms that the SVD does not see. A text without a term has the vector 0.
//
// Sums are in double precision. T tokens, F terms, D dimensions, K centroids.

#pragma once

#include <cstdint>
#include <vector>

#include "prefix_terms.h"
#include "tfidf.h"
#include "token_text.h"

namespace xelm {

// Dense tables, each row by row.
struct RouterTables {
  const double* components;  // [F, D]
  const double* products;    // [F, K], components times centroids
  const double* squares;     // [K], of the centroids' lengths
  int64_t dims, num_centroids;
};

// The terms of every prefix, for the GPU: those that it settles and those that are open in it, of prefix t from
// start t to start t + 1.
struct PrefixTermLists {
  std::vector<int64_t> settled_starts{0}, open_starts{0};
  std::vector<int32_t> settled, open;
};

class PrefixRouter {
 public:
  // All of it has to outlive this.
  PrefixRouter(const Tfidf& tfidf, const RouterTables& tables)
      : tfidf_(tfidf), tables_(tables), lexicon_(tfidf.settings(), tfidf.terms(), tfidf.stop_words()) {}

  const Tfidf& tfidf() const { return tfidf_; }
  const RouterTables& tables() const { return tables_; }
  const Lexicon& lexicon() const { return lexicon_; }

  // d^2 [T, K] of documents one after another, the ids of which end at `ends`: before each token, of the tokens that
  // precede it in its document.
  void distances(const TokenPieces& pieces, const int32_t* ids, const std::vector<int64_t>& ends, double* out,
                 int num_threads) const;

  // What `distances` sums up, of the same documents.
  PrefixTermLists terms(const TokenPieces& pieces, const int32_t* ids, const std::vector<int64_t>& ends,
                        int num_threads) const;

 private:
  const Tfidf& tfidf_;
  RouterTables tables_;
  Lexicon lexicon_;
};

// The sums of one text.
class PrefixSum {
 public:
  explicit PrefixSum(const PrefixRouter& router);

  void clear();
  void add(const int32_t* begin, const int32_t* end);
  // Asks for the memory of these terms' rows.
  void prefetch(const int32_t* begin, const int32_t* end) const;
  // d^2 [K] with these open terms.
  void distances(const int32_t* begin, const int32_t* end, double* out);

 private:
  // The sum of a text's terms.
  struct Sum {
    std::vector<double> vector;    // u [D]
    std::vector<double> products;  // u c_k [K]
    double weight = 0;             // of all its terms, sum_t c_t idf_t

    void add(int32_t term, const PrefixRouter& router);
    // Becomes another sum and a term.
    void set(const Sum& other, int32_t term, const PrefixRouter& router);
  };
  double scale(const Sum& sum, double length, const int32_t* begin, const int32_t* end) const;

  const PrefixRouter& router_;
  Sum settled_, whole_;
  std::vector<int32_t> terms_;  // that have settled
};

// A text that grows, and its distances after each token.
class PrefixStream {
 public:
  explicit PrefixStream(const PrefixRouter& router)
      : num_centroids_(router.tables().num_centroids), terms_(router.lexicon()), sum_(router) {}

  // d^2 [size, K] after each of these tokens.
  void append(const TokenPieces& pieces, const int32_t* ids, int64_t size, double* out);

  // d^2 [K] of this text, which need not go on the one before.
  void replace(const Text& text, double* out);

 private:
  // What a change of the text does to its terms: where those that it settles and those then open begin.
  struct Change {
    size_t settled, open;
    bool is_anew;
  };
  void note();
  void sum_up(double* out);

  int64_t num_centroids_;
  GrowingText text_;
  PrefixTerms terms_;
  PrefixSum sum_;
  std::vector<Change> changes_;
  std::vector<int32_t> settled_, open_;
};

}  // namespace xelm
