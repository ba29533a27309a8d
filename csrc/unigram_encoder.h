// Texts to ids, as Hugging Face's `tokenizers` encodes them with XGLM's tokenizer.

#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "charsmap.h"
#include "unicode.h"
#include "unigram.h"
#include "word_ids.h"

namespace xelm {

using CodePoints = std::vector<uint32_t>;

// What is done to a text between the charsmap and the pieces.
struct UnigramSettings {
  enum class Step { kStripLeft, kStripRight, kSpacesToSpace, kSpacesToMeta };  // of two spaces and more
  std::vector<Step> steps;
  bool cuts_at_whitespace;       // of any kind, and leaves it out; else only what begins with `kMeta` is cut off
  std::vector<CodePoints> raw;   // a text that has one of these is not encoded here,
  std::vector<CodePoints> inner; // nor one that has one of these when normalised
};

// The strings that may not be in a text.
class Stoppers {
 public:
  explicit Stoppers(std::vector<CodePoints> strings);
  template <class Char>
  bool in(const Char* text, int64_t length) const;

 private:
  std::vector<CodePoints> strings_;
  bool may_begin_[64] = {};  // by the lowest bits of a string's first character
};

class UnigramEncoder {
 public:
  UnigramEncoder(const std::string& charsmap, const UnigramSettings& settings, Unigram unigram);

  // The ids of texts one after another, and where those of each end; minus one where a text cannot be encoded
  // here. One thread at a time is let in.
  std::vector<int64_t> encode(const std::vector<Text>& texts, std::vector<int32_t>& ids);

 private:
  template <class Char>
  bool encode(const Char* text, int64_t length, std::vector<int32_t>& ids);
  void cut(std::vector<int32_t>& ids);
  void word(const uint32_t* begin, const uint32_t* end, std::vector<int32_t>& ids);

  Charsmap charsmap_;
  std::vector<UnigramSettings::Step> steps_;
  bool cuts_at_whitespace_;
  Stoppers raw_, inner_;
  Unigram unigram_;
  WordIds known_;
  CodePoints text_;  // the one being encoded, a `kMeta` before it
  std::mutex busy_;
};

}  // namespace xelm
