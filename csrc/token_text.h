// Tokens to text, one at a time.
//
// The tokenizers meant here decode ids by joining the bytes of their tokens, those of special tokens left out, and
// reading the whole as UTF-8 with U+FFFD for what is none. Of that text a further token changes only the
// last character, and only if that is U+FFFD, for a character's first bytes without the others.

#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "unicode.h"

namespace xelm {

// What becomes of U+2581, which stands for a space in SentencePiece's tokens.
enum class Metas {
  kKept,            // it is a character like others, as to byte-level BPE
  kLeftOutOfFirst,  // a space, but nothing in the first token that is not special
  kStripped,        // a space, and the text has no white space at either end
};

// The tokens of a tokenizer, by id.
class TokenPieces {
 public:
  // Bytes of the tokens; those of special tokens are not looked at.
  TokenPieces(std::vector<std::string> pieces, std::vector<bool> is_special, Metas metas)
      : pieces_(std::move(pieces)), is_special_(std::move(is_special)), metas_(metas) {}

  int64_t size() const { return static_cast<int64_t>(pieces_.size()); }
  bool is_special(int32_t id) const { return is_special_[id]; }
  const std::string& piece(int32_t id) const { return pieces_[id]; }
  Metas metas() const { return metas_; }

 private:
  std::vector<std::string> pieces_;
  std::vector<bool> is_special_;
  Metas metas_;
};

// A text that grows by tokens, or is given anew. What is new is known from where on it may differ.
class GrowingText {
 public:
  const std::vector<uint32_t>& characters() const { return characters_; }
  int64_t kept() const { return kept_; }  // so many characters are as they were before the last change

  // Adds a token, which has to be below `pieces.size()`; a text grows by the tokens of one tokenizer.
  void append(const TokenPieces& pieces, int32_t id);

  // Takes another text.
  void replace(const Text& text);

 private:
  void read(uint8_t byte, Metas metas);
  void put(uint32_t code, Metas metas);
  template <class Char>
  void replace(const Char* text, int64_t length);

  std::vector<uint32_t> characters_;
  int64_t kept_ = 0;
  std::vector<uint32_t> spaces_;  // behind the text, if it is stripped and goes on
  bool is_first_ = true;          // there was no token yet but special ones
  // Of a character that has begun: how many bytes are missing, the bounds of the next, and the bits so far.
  int missing_ = 0;
  uint8_t low_ = 0, high_ = 0;
  uint32_t code_ = 0;
};

}  // namespace xelm
