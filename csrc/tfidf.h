// Documents to rows of a sparse matrix, with scikit-learn's values bit for bit.
//
// A value is count * idf, in double precision, divided by the square root of the sum of the row's squares,
// which are added up in the order in which the row lies. scikit-learn's `transform` has rows in the order of
// their terms; its `fit_transform` has them in the order in which the corpus first showed the terms.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "analyzer.h"

namespace xelm {

struct SparseRows {
  std::vector<int64_t> starts;  // where a row begins; one more than there are rows
  std::unique_ptr<int32_t[]> terms;
  std::unique_ptr<double[]> values;

  int64_t size() const { return starts.back(); }
};

// The order in which a corpus first shows its terms, whatever the parts that it comes in.
struct FirstUse {
  std::vector<int32_t> rank;  // by term, -1 where it has not come yet
  int32_t size = 0;           // how many have come
};

class Tfidf {
 public:
  // Terms in the order of their numbers, each with its idf. Throws std::invalid_argument where a term comes
  // twice, or the numbers of terms and idf differ.
  Tfidf(const AnalyzerSettings& settings, const std::vector<std::string>& stop_words,
        const std::vector<std::string>& terms, std::vector<double> idf);

  // Rows in the order of terms; or in that of first use, with the terms that come for the first time ranked
  // behind those of the parts of the corpus that were transformed before.
  SparseRows transform(const std::vector<Text>& documents, FirstUse* first_use, int num_threads) const;

  const AnalyzerSettings& settings() const { return settings_; }
  const TermTable& terms() const { return terms_; }
  const std::vector<double>& idf() const { return idf_; }

  // The stop words that terms are looked up behind; null where none can be a term anyway.
  const TermTable* stop_words() const {
    // Without n-grams of words a stop word is no term of the vocabulary, and need not be looked for.
    return settings_.longest > 1 && stop_words_.size() ? &stop_words_ : nullptr;
  }

 private:
  class Worker;

  SparseRows count(const std::vector<Text>& documents, bool in_order, int num_threads) const;
  void order_by_first_use(SparseRows& rows, FirstUse& first_use, int num_threads) const;
  void weigh(const int32_t* terms, double* values, int64_t size) const;

  AnalyzerSettings settings_;
  TermTable stop_words_, terms_;
  std::vector<double> idf_;
};

// A table of these terms; a term that comes again has no second number.
TermTable table_of(const std::vector<std::string>& terms);

}  // namespace xelm
