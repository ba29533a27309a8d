// Counted terms in order: in a table or in a file, and merged from many of both.

#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "term_table.h"

namespace xelm {

struct Count {
  int64_t occurrences = 0, documents = 0;
  int64_t last_document = 0;  // while documents are counted: which one had the term last
};

struct CountedTerm {
  std::string_view text;
  Count count;
};

// Terms in the order of their bytes, each once.
class Run {
 public:
  virtual ~Run() = default;
  // Goes to the next term, the first at first; false where there is none. `term` is valid until the next call.
  virtual bool next() = 0;
  const CountedTerm& term() const { return term_; }

 protected:
  CountedTerm term_;
};

// The terms of a table in their order; `counts` are by number. Table and counts have to outlive it.
class TableRun : public Run {
 public:
  TableRun(const TermTable& table, std::vector<uint32_t> order, const std::vector<Count>& counts)
      : table_(table), order_(std::move(order)), counts_(counts) {}
  bool next() override;

 private:
  const TermTable& table_;
  std::vector<uint32_t> order_;
  const std::vector<Count>& counts_;
  size_t at_ = 0;
};

// A file that `write_run` wrote. Throws std::system_error where it cannot be read.
class FileRun : public Run {
 public:
  explicit FileRun(const std::string& path);
  bool next() override;

 private:
  void read(char* to, int64_t length);

  std::string path_;
  std::vector<char> buffer_;  // before the stream, which uses it to its end
  std::ifstream file_;
  std::string text_;
};

// Many runs as one; the counts of a term that several have are added up.
class MergedRun : public Run {
 public:
  explicit MergedRun(std::vector<std::unique_ptr<Run>> runs);
  bool next() override;

 private:
  static bool comes_later(const Run* a, const Run* b) { return a->term().text > b->term().text; }
  void advance(Run* run);

  std::vector<std::unique_ptr<Run>> runs_;
  std::vector<Run*> heap_;  // those that have a term, the first one on top
  std::string text_;
};

// Writes all terms of a run and returns the bytes of the file. Throws std::system_error where it cannot.
int64_t write_run(const std::string& path, Run& run);

}  // namespace xelm
