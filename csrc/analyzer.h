// Text to terms, as scikit-learn's CountVectorizer takes them from a lower-cased document.
//
// Words are the matches of `(?u)\b\w\w+\b`, which are the runs of two or more word characters, then
// n-grams of words. Upstream's words are those that do not start with a digit. `char_wb` takes n-grams
// of characters from every run without white space, with one space put before and behind it.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "term_table.h"
#include "unicode.h"

namespace xelm {

struct AnalyzerSettings {
  bool characters;     // char_wb, else words
  bool drops_numbers;  // whether words that start with a digit are left out
  int shortest, longest;  // n-grams
};

class Analyzer {
 public:
  // Words of `stop_words`, which may be null and has to outlive this, are left out before n-grams are made.
  Analyzer(const AnalyzerSettings& settings, const TermTable* stop_words)
      : settings_(settings), stop_words_(stop_words) {}

  // The terms in scikit-learn's order; they lie here until the next call.
  const std::vector<Term>& terms(const Text& text);

 private:
  // A word in the buffer, of which more may follow.
  struct Word {
    int64_t begin, num_characters;
    bool is_number;
  };
  struct Span {
    int64_t begin, end;
  };

  template <class Char>
  void read_words(const Char* text, int64_t length);
  template <class Char>
  char* read_specially(const Char* text, int64_t length, int64_t from, int64_t to, char* out, Word& word);
  template <class Char>
  void read_characters(const Char* text, int64_t length);
  void end_word(const Word& word, int64_t end);
  void add_word_ngrams();
  void add_character_ngrams();
  void add(const char* text, int64_t length) { terms_.push_back({text, static_cast<uint32_t>(length), 0}); }

  AnalyzerSettings settings_;
  const TermTable* stop_words_;
  std::unique_ptr<char[]> buffer_;  // the document in lower case
  int64_t capacity_ = 0;
  std::vector<Span> words_;         // where n-grams are asked for
  std::vector<char> joined_;        // these words, a space behind each
  std::vector<int64_t> characters_;  // where the characters of a word begin, and its end
  std::vector<Term> terms_;
};

}  // namespace xelm
