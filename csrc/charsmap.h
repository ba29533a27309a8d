// SentencePiece's normalisation of characters as Hugging Face's `tokenizers` applies it.
//
// A precompiled map is a trie of UTF-8 strings with what each becomes. `tokenizers` cuts a text into graphemes.
// One below six bytes becomes, as a whole, what the shortest key that begins it becomes; otherwise each character
// is looked up alone. The graphemes are found here only where that is simple; elsewhere `normalize` gives up.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xelm {

class Charsmap {
 public:
  // Takes the bytes of a `precompiled_charsmap`; none leave every text as it is. Throws std::invalid_argument
  // where they are cut short.
  explicit Charsmap(const std::string& bytes);

  // Appends the code points of a text. False where that needs all of Unicode's rules for graphemes, or where
  // the text has half a surrogate pair.
  template <class Char>
  bool normalize(const Char* text, int64_t length, std::vector<uint32_t>& out) const;

 private:
  static constexpr uint32_t kContinues = 1;  // longer keys begin with the character

  uint32_t first_key(const char* bytes, int64_t size, bool* continues) const;
  template <class Char>
  uint32_t short_key(const Char* text, int64_t length) const;
  template <class Char>
  int64_t rewrite(const Char* text, int64_t length, int64_t at, std::vector<uint32_t>& out) const;
  void append(uint32_t key, std::vector<uint32_t>& out) const;

  std::vector<uint32_t> trie_;
  std::string texts_;            // what keys become, each with a zero behind it
  std::vector<uint32_t> rules_;  // of each code point: twice its own key, and kContinues
};

}  // namespace xelm
