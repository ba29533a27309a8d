// The terms of a text that grows at its end, without reading all of it again.
//
// A term is settled when nothing that may follow can take it away; the others are open: those that end where the text
// does. What may follow changes what stands there in two ways only. A capital sigma behind a cased letter is a final
// one as long as only characters follow that Unicode calls case-ignorable. And U+FFFD at the end may be
// the beginning of a character whose other bytes come with the next token. What begins with either is read
// anew each time. Texts that change before that are read from their beginning.
//
// So a character is read once, but for those in a row of ignorable ones behind a sigma, and a term costs no more than
// the longest of the vocabulary.

#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "analyzer.h"

namespace xelm {

// What terms are looked up in, and up to which number of bytes there are any.
struct Lexicon {
  AnalyzerSettings settings;
  const TermTable* terms;
  const TermTable* stop_words;  // may be null
  int64_t longest;

  Lexicon(const AnalyzerSettings& settings, const TermTable& terms, const TermTable* stop_words);
  // Adds the number of a term, if it has one; the text needs `kSlack` readable bytes behind it.
  void find(const char* text, int64_t length, std::vector<int32_t>& found) const;
};

// The last word of a text and, for n-grams, those before it.
class WordReader {
 public:
  explicit WordReader(const Lexicon& lexicon);

  // Reads a character in lower case; terms that are then whole are added to `found`.
  void put(const char* utf8, int64_t length, uint8_t flags, std::vector<int32_t>& found);
  // Adds the terms that end with the text.
  void close(std::vector<int32_t>& found) const;

 private:
  bool is_word() const;
  void add_ngrams(std::vector<int32_t>& found) const;

  const Lexicon* lexicon_;
  std::vector<char> bytes_;  // of the word, up to a few more than a term can have, and `kSlack`
  int64_t size_ = 0, num_characters_ = 0;
  bool is_number_ = false;
  std::vector<std::string> before_;  // words, one fewer than in the longest n-gram
};

// The last characters of what stands between white space, the space put before it included.
class CharacterReader {
 public:
  explicit CharacterReader(const Lexicon& lexicon);

  void put(const char* utf8, int64_t length, uint8_t flags, std::vector<int32_t>& found);
  void close(std::vector<int32_t>& found) const;

 private:
  void push(const char* utf8, int64_t length);
  // Takes a character in, with the n-grams that end with it.
  void add(const char* utf8, int64_t length, std::vector<int32_t>& found);

  const Lexicon* lexicon_;
  std::vector<char> bytes_;      // of the last characters, up to the longest n-gram, a space, and `kSlack`
  std::vector<int64_t> starts_;  // of these characters, and the end
  int64_t num_characters_ = 0;   // of the word, the space before it included
};

class PrefixTerms {
 public:
  explicit PrefixTerms(const Lexicon& lexicon) : lexicon_(&lexicon), state_(state()) {}

  // Reads a text of which so many characters are as they were at the call before. Adds to `settled` what has settled
  // since, and to `open` the terms that are open. True: the text was read from its beginning, and what was
  // settled before is void.
  bool read(const std::vector<uint32_t>& text, int64_t kept, std::vector<int32_t>& settled,
            std::vector<int32_t>& open);

 private:
  using State = std::variant<WordReader, CharacterReader>;
  State state() const;
  template <class Reader>
  void read_on(Reader& reader, const std::vector<uint32_t>& text, std::vector<int32_t>& settled,
               std::vector<int32_t>& open);

  const Lexicon* lexicon_;
  State state_;       // behind the first `position_` characters, whose terms have settled
  int64_t position_ = 0;
};

}  // namespace xelm
