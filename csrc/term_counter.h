// The terms of a stream of documents, counted exactly in bounded memory.
//
// Each thread counts the documents that it gets in a table of its own. A table that has reached its share of
// the memory is written to a file in the order of its terms, and begun anew; a document is always whole in
// one table, so that numbers of documents add up as numbers of occurrences do. In the end all files and
// tables are merged, which gives every term once, in order and with exact counts, however many threads and
// files there were. The merge is done anew for each question, and an answer is what takes memory.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "analyzer.h"
#include "term_runs.h"

namespace xelm {

struct Terms {
  std::vector<std::string> texts;
  std::vector<int64_t> documents;

  void add(const CountedTerm& term) {
    texts.emplace_back(term.text);
    documents.push_back(term.count.documents);
  }
};

class TermCounter {
 public:
  // Tables take up to `memory_bytes` in all, and one document more. Files go to `folder`, which has to be
  // there; what is left of them is the caller's to delete. `stop_words` may be null and has to outlive this.
  TermCounter(const AnalyzerSettings& settings, const TermTable* stop_words, int num_threads,
              int64_t memory_bytes, const std::string& folder);

  void add(const std::vector<Text>& documents);
  int64_t num_documents() const { return num_documents_; }

  // How often each term occurs, in the order of the terms; the first `most` of them.
  std::vector<double> occurrences(int64_t most);

  // All terms, in order.
  Terms all();

  // The terms at these positions in the order of terms; positions ascend.
  Terms at(const std::vector<int64_t>& positions);

  // The `limit` most frequent terms, in the order of terms; of equally frequent ones, the first.
  Terms most_frequent(int64_t limit);

 private:
  struct Worker {
    Worker(const AnalyzerSettings& settings, const TermTable* stop_words) : analyzer(settings, stop_words) {}

    Analyzer analyzer;
    TermTable table;
    std::vector<Count> counts;     // by number of the term
    std::vector<uint32_t> order;  // of the table, once it is asked for
    int64_t document = 0;

    void count(const Text& text);
    int64_t bytes() const;
  };

  struct File {
    std::string path;
    int64_t bytes;
  };

  void spill(Worker& worker);
  File write(Run& run);
  void merge_files();
  void put_in_order();
  template <class Take>
  void each(const Take& take);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<File> files_;
  std::mutex files_mutex_;
  std::atomic<int64_t> num_files_{0};  // that were ever written
  int64_t bytes_a_worker_;
  std::string folder_;
  int64_t num_documents_ = 0;
};

}  // namespace xelm
