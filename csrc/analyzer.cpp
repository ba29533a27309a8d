#include "analyzer.h"

#include <algorithm>
#include <stdexcept>

namespace xelm {
namespace {

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
  used_ = 0;
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

template <class Char>
void Analyzer::read_words(const Char* text, int64_t length) {
  const LowerChar* bmp = Unicode::tables().bmp();
  char* out = buffer_.get();
  int64_t begin = 0, num_characters = 0;
  bool is_number = false;
  const auto end = [&] {
    end_word(begin, out, num_characters, is_number);
    begin = used_;
    out = buffer_.get() + used_;
    num_characters = 0;
  };
  for (int64_t i = 0; i < length; ++i) {
    LowerChar character = lower_char(bmp, text[i]);
    if (character.flags & kWord) {
      if (num_characters == 0) is_number = character.flags & kDigit;
      const int64_t first = i;
      char* next = out;  // a variable that no lambda holds can stay in a register
      do {
        next = put(next, character);
        if (++i == length) break;
        character = lower_char(bmp, text[i]);
      } while (character.flags & kWord);
      num_characters += i-- - first;
      out = next;
    } else if (character.flags & kSpecial) {
      put_special(text, length, i, [&](const CodePoint& point) {
        if (!(point.flags & kWord)) return end();
        if (num_characters++ == 0) is_number = point.flags & kDigit;
        out += encode(point.code, out);
      });
    } else if (num_characters > 0) {
      end();
    }
  }
  end();
  if (settings_.longest > 1) add_word_ngrams();
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
      put_special(text, length, i, [&](const CodePoint& point) {
        if (point.flags & kSpace) return end();
        begin();
        start();
        out += encode(point.code, out);
      });
    } else {
      begin();
      start();
      out = put(out, character);
    }
  }
  end();
}

template <class Char, class Put>
void Analyzer::put_special(const Char* text, int64_t length, int64_t position, const Put& put) {
  CodePoint lower[2];
  const int count = Unicode::tables().lower(text, length, position, lower);
  for (int i = 0; i < count; ++i) put(lower[i]);
}

// Keeps the word between `begin` and `end`, or forgets it.
void Analyzer::end_word(int64_t begin, char* end, int64_t num_characters, bool is_number) {
  if (num_characters < 2 || (is_number && settings_.drops_numbers)) return;
  const int64_t stop = end - buffer_.get();
  if (stop_words_ &&
      stop_words_->find(TermTable::term(&buffer_[begin], static_cast<uint32_t>(stop - begin))) >= 0) {
    return;
  }
  *end = ' ';
  used_ = stop + 1;
  if (settings_.longest > 1) {
    words_.push_back({begin, stop});
  } else {
    add(begin, stop);
  }
}

void Analyzer::add_word_ngrams() {
  const auto num_words = static_cast<int64_t>(words_.size());
  for (int64_t n = settings_.shortest; n <= std::min<int64_t>(settings_.longest, num_words); ++n) {
    for (int64_t i = 0; i + n <= num_words; ++i) add(words_[i].begin, words_[i + n - 1].end);
  }
}

void Analyzer::add_character_ngrams() {
  const auto num_characters = static_cast<int64_t>(characters_.size()) - 1;
  for (int64_t n = settings_.shortest; n <= settings_.longest; ++n) {
    if (num_characters <= n) return add(characters_[0], characters_[num_characters]);
    for (int64_t i = 0; i + n <= num_characters; ++i) add(characters_[i], characters_[i + n]);
  }
}

void Analyzer::add(int64_t begin, int64_t end) {
  // Behind a term lie the document's later words or the slack of the buffer.
  terms_.push_back({&buffer_[begin], static_cast<uint32_t>(end - begin), 0});
}

}  // namespace xelm
