#include "analyzer.h"

#include <algorithm>
#include <stdexcept>

namespace xelm {
namespace {

constexpr int64_t kBlock = 64;  // characters whose classes are the bits of a number
constexpr int64_t kMostCharacters = int64_t{1} << 29;  // a term's length in bytes is 32 bits wide

template <class Char>
LowerChar lower_char(const LowerChar* bmp, Char code) {
  if constexpr (sizeof(Char) > 2) {
    if (code > 0xffff) return {{}, kSpecial};
  }
  return bmp[code];
}

// Writes a character; four bytes are always touched.
inline char* put(char* out, const LowerChar& character) {
  std::memcpy(out, &character, 4);
  return out + (character.flags & kLengthMask);
}

// Lower-cases and classifies a block of ASCII, in a loop that compilers turn into vector instructions; false,
// with nothing written, where there is another character in it.
template <class Char>
bool read_ascii(const Char* text, char* out, uint8_t* flags) {
  Char all = 0;
  for (int i = 0; i < kBlock; ++i) all |= text[i];
  if (all >= 0x80) return false;
  for (int i = 0; i < kBlock; ++i) {
    const auto code = static_cast<uint8_t>(text[i]);
    const bool is_upper = static_cast<uint8_t>(code - 'A') < 26;
    const bool is_digit = static_cast<uint8_t>(code - '0') < 10;
    const bool is_letter = static_cast<uint8_t>((code | 0x20) - 'a') < 26;
    out[i] = static_cast<char>(code + 0x20 * is_upper);
    flags[i] = static_cast<uint8_t>(kWord * (is_letter | is_digit | (code == '_')) + kDigit * is_digit);
  }
  return true;
}

// Which of the characters have a flag, one bit each.
inline uint64_t bits_of(const uint8_t* flags, uint8_t flag) {
  uint64_t bits = 0;
  for (int i = 0; i < kBlock; i += 8) {
    const uint64_t ones = load8(reinterpret_cast<const char*>(flags + i)) / flag & 0x0101010101010101;
    // The product's highest byte gathers the lowest bits of the eight bytes.
    bits |= (ones * 0x0102040810204080 >> 56) << i;
  }
  return bits;
}

}  // namespace

const std::vector<Term>& Analyzer::terms(const Text& text) {
  if (text.length > kMostCharacters) {
    throw std::length_error("a text of " + std::to_string(text.length) + " characters is longer than " +
                            std::to_string(kMostCharacters) + "; cut it into documents");
  }
  // Four bytes a character, and the two spaces that char_wb puts around a word of one.
  const int64_t needed = 6 * text.length + 2 * kSlack;
  if (needed > capacity_) {
    buffer_.reset(new char[needed]);
    capacity_ = needed;
  }
  words_.clear();
  terms_.clear();
  const auto read = [&](auto* characters) {
    settings_.characters ? read_characters(characters, text.length) : read_words(characters, text.length);
  };
  if (text.kind == 1) read(static_cast<const uint8_t*>(text.data));
  if (text.kind == 2) read(static_cast<const uint16_t*>(text.data));
  if (text.kind == 4) read(static_cast<const uint32_t*>(text.data));
  // Not sooner: to load eight bytes that were just stored one by one takes long.
  for (Term& term : terms_) term.hash = hash_of(term.text, term.length);
  return terms_;
}

// Lower-cases and classifies a block without a branch, then goes from word to word by its bits.
template <class Char>
void Analyzer::read_words(const Char* text, int64_t length) {
  const LowerChar* bmp = Unicode::tables().bmp();
  char* out = buffer_.get();
  Word word{0, 0, false};
  for (int64_t from = 0; from < length; from += kBlock) {
    const int64_t size = std::min(kBlock, length - from);
    const int64_t base = out - buffer_.get();
    char* const first_out = out;
    uint8_t flags[kBlock] = {};
    uint16_t offset[kBlock + 1];  // of a character from `base`
    if (size == kBlock && read_ascii(text + from, out, flags)) {
      for (int i = 0; i < kBlock; ++i) offset[i] = static_cast<uint16_t>(i);
      out += kBlock;
    } else {
      for (int64_t i = 0; i < size; ++i) {
        const LowerChar character = lower_char(bmp, text[from + i]);
        offset[i] = static_cast<uint16_t>(out - first_out);
        flags[i] = character.flags;
        out = put(out, character);
      }
    }
    offset[size] = static_cast<uint16_t>(out - first_out);
    const uint64_t is_word = bits_of(flags, kWord), is_special = bits_of(flags, kSpecial);
    if (is_special) {
      out = read_specially(text, length, from, from + size, buffer_.get() + base, word);
      continue;
    }
    const uint64_t follows_word = is_word << 1 | (word.num_characters > 0);
    uint64_t starts = is_word & ~follows_word, ends = ~is_word & follows_word;
    if (word.num_characters > 0 && ends) {
      word.num_characters += __builtin_ctzll(ends);
      end_word(word, base + offset[__builtin_ctzll(ends)]);
      word.num_characters = 0;
      ends &= ends - 1;
    } else if (word.num_characters > 0) {
      word.num_characters += size;
    }
    for (; starts; starts &= starts - 1, ends &= ends - 1) {
      const int64_t first = __builtin_ctzll(starts), behind = ends ? __builtin_ctzll(ends) : size;
      const bool is_number = flags[first] & kDigit;
      word = {base + offset[first], behind - first, is_number};
      if (!ends) break;  // the next block goes on with it
      end_word(word, base + offset[behind]);
      word.num_characters = 0;
    }
  }
  end_word(word, out - buffer_.get());
  if (settings_.longest > 1) add_word_ngrams();
}

// The same one by one, for characters whose lower case takes more than a look at the table.
template <class Char>
char* Analyzer::read_specially(const Char* text, int64_t length, int64_t from, int64_t to, char* out, Word& word) {
  for (int64_t i = from; i < to; ++i) {
    CodePoint lower[2];
    const int count = Unicode::tables().lower(text, length, i, lower);
    for (int k = 0; k < count; ++k) {
      const int64_t here = out - buffer_.get();
      if (!(lower[k].flags & kWord)) {
        end_word(word, here);
        word.num_characters = 0;
      } else if (word.num_characters++ == 0) {
        word.begin = here;
        word.is_number = lower[k].flags & kDigit;
      }
      out += encode(lower[k].code, out);
    }
  }
  return out;
}

template <class Char>
void Analyzer::read_characters(const Char* text, int64_t length) {
  const LowerChar* bmp = Unicode::tables().bmp();
  char* out = buffer_.get();
  const auto start = [&] { characters_.push_back(out - buffer_.get()); };
  const auto end = [&] {
    if (characters_.empty()) return;
    start();
    *out++ = ' ';
    start();
    add_character_ngrams();
    characters_.clear();
  };
  const auto begin = [&] {
    if (!characters_.empty()) return;
    start();
    *out++ = ' ';
  };
  for (int64_t i = 0; i < length; ++i) {
    const LowerChar character = lower_char(bmp, text[i]);
    if (character.flags & kSpace) {
      end();
    } else if (character.flags & kSpecial) {
      CodePoint lower[2];
      const int count = Unicode::tables().lower(text, length, i, lower);  // never white space
      begin();
      for (int k = 0; k < count; ++k) {
        start();
        out += encode(lower[k].code, out);
      }
    } else {
      begin();
      start();
      out = put(out, character);
    }
  }
  end();
}

// Keeps the word that ends here, or forgets it.
inline void Analyzer::end_word(const Word& word, int64_t end) {
  if (word.num_characters < 2 || (word.is_number && settings_.drops_numbers)) return;
  const char* text = &buffer_[word.begin];
  const auto length = static_cast<uint32_t>(end - word.begin);
  if (stop_words_ && stop_words_->find(TermTable::term(text, length)) >= 0) return;
  if (settings_.longest > 1) {
    words_.push_back({word.begin, end});
  } else {
    add(text, length);
  }
}

void Analyzer::add_word_ngrams() {
  joined_.clear();
  for (Span& word : words_) {
    const auto begin = static_cast<int64_t>(joined_.size());
    joined_.insert(joined_.end(), &buffer_[word.begin], &buffer_[word.end]);
    word = {begin, static_cast<int64_t>(joined_.size())};
    joined_.push_back(' ');
  }
  joined_.resize(joined_.size() + kSlack);
  const auto num_words = static_cast<int64_t>(words_.size());
  for (int64_t n = settings_.shortest; n <= std::min<int64_t>(settings_.longest, num_words); ++n) {
    for (int64_t i = 0; i + n <= num_words; ++i) {
      add(&joined_[words_[i].begin], words_[i + n - 1].end - words_[i].begin);
    }
  }
}

void Analyzer::add_character_ngrams() {
  const auto num_characters = static_cast<int64_t>(characters_.size()) - 1;
  const auto add_between = [&](int64_t first, int64_t behind) {
    add(&buffer_[characters_[first]], characters_[behind] - characters_[first]);
  };
  for (int64_t n = settings_.shortest; n <= settings_.longest; ++n) {
    if (num_characters <= n) return add_between(0, num_characters);
    for (int64_t i = 0; i + n <= num_characters; ++i) add_between(i, i + n);
  }
}

}  // namespace xelm
