#include "unicode.h"

#include <algorithm>
#include <iterator>

#include "unicode_ranges.h"  // written by unicode_ranges.py into the build folder

namespace xelm {
namespace {

constexpr uint32_t kCodePoints = 0x110000, kBmp = 0x10000;
constexpr uint32_t kSmallSigma = 0x3c3, kFinalSigma = 0x3c2;
constexpr uint8_t kCased = 64, kIgnorable = 128;

template <size_t N>
void mark(std::vector<uint8_t>& classes, const unsigned (&members)[N][2], uint8_t flag) {
  for (const auto& range : members) {
    for (uint32_t code = range[0]; code <= range[1]; ++code) classes[code] |= flag;
  }
}

const unsigned (*lower_two(uint32_t code))[3] {
  for (const auto& row : ranges::kLowerTwo) {
    if (row[0] == code) return &row;
  }
  return nullptr;
}

}  // namespace

int encode(uint32_t code, char* out) {
  if (code < 0x80) {
    out[0] = static_cast<char>(code);
    return 1;
  }
  const int length = code < 0x800 ? 2 : code < kBmp ? 3 : 4;
  for (int i = length - 1; i > 0; --i, code >>= 6) out[i] = static_cast<char>(0x80 | (code & 0x3f));
  out[0] = static_cast<char>((0xf00 >> length) | code);
  return length;
}

const Unicode& Unicode::tables() {
  static const Unicode tables;
  return tables;
}

Unicode::Unicode() : bmp_(kBmp), classes_(kCodePoints) {
  mark(classes_, ranges::kWord, kWord);
  mark(classes_, ranges::kDigit, kDigit);
  mark(classes_, ranges::kSpace, kSpace);
  mark(classes_, ranges::kCased, kCased);
  mark(classes_, ranges::kIgnorable, kIgnorable);
  for (uint32_t code = 0; code < kBmp; ++code) {
    const uint32_t lower = lower_of(code);
    LowerChar& entry = bmp_[code];
    if (code == kCapitalSigma || lower >= kBmp || lower_two(code)) {
      entry.flags = kSpecial;
    } else {
      const int length = encode(lower, entry.utf8);
      entry.flags = static_cast<uint8_t>((classes_[lower] & (kWord | kDigit | kSpace)) | length);
    }
  }
}

uint32_t Unicode::lower_of(uint32_t code) const {
  const auto row = std::lower_bound(std::begin(ranges::kLower), std::end(ranges::kLower), code,
                                    [](const unsigned(&pair)[2], uint32_t wanted) { return pair[0] < wanted; });
  return row != std::end(ranges::kLower) && (*row)[0] == code ? (*row)[1] : code;
}

template <class Char>
int Unicode::lower(const Char* text, int64_t length, int64_t position, CodePoint out[2]) const {
  const uint32_t code = text[position];
  if (code == kCapitalSigma) {
    out[0] = classed(is_final_sigma(text, length, position) ? kFinalSigma : kSmallSigma);
    return 1;
  }
  if (const auto two = lower_two(code)) {
    out[0] = classed((*two)[1]);
    out[1] = classed((*two)[2]);
    return 2;
  }
  out[0] = classed(lower_of(code));
  return 1;
}

template <class Char>
bool Unicode::is_final_sigma(const Char* text, int64_t length, int64_t position) const {
  if (!follows_cased(text, position)) return false;
  const int64_t after = behind_ignorable(text, length, position);
  return after == length || !(classes_[text[after]] & kCased);
}

template <class Char>
bool Unicode::follows_cased(const Char* text, int64_t position) const {
  int64_t before = position - 1;
  while (before >= 0 && classes_[text[before]] & kIgnorable) --before;
  return before >= 0 && classes_[text[before]] & kCased;
}

// Where the first character that counts is behind a position, or the length.
template <class Char>
int64_t Unicode::behind_ignorable(const Char* text, int64_t length, int64_t position) const {
  int64_t after = position + 1;
  while (after < length && classes_[text[after]] & kIgnorable) ++after;
  return after;
}

template int Unicode::lower(const uint8_t*, int64_t, int64_t, CodePoint[2]) const;
template int Unicode::lower(const uint16_t*, int64_t, int64_t, CodePoint[2]) const;
template int Unicode::lower(const uint32_t*, int64_t, int64_t, CodePoint[2]) const;
template bool Unicode::follows_cased(const uint32_t*, int64_t) const;
template int64_t Unicode::behind_ignorable(const uint32_t*, int64_t, int64_t) const;

}  // namespace xelm
