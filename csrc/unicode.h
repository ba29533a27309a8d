// What Python's `str` knows of characters: lower case, word characters, digits and white space.

#pragma once

#include <cstdint>
#include <vector>

namespace xelm {

// A Python string where it lies: `length` code points of `kind` bytes each (1, 2 or 4).
struct Text {
  const void* data;
  int64_t length;
  int kind;
};

enum CharClass : uint8_t {
  kLengthMask = 3,  // bytes of `utf8`; 0 where the character is special
  kWord = 4,        // \w of Python's `re`
  kDigit = 8,       // str.isdigit
  kSpace = 16,      // str.isspace
  kSpecial = 32,    // ask Unicode::lower: the lower case is two code points, depends on context, or is long
};

// A character of the Basic Multilingual Plane in lower case. It is written with one store of four
// bytes, of which the length counts, so the flags lie where no UTF-8 is.
struct LowerChar {
  char utf8[3];
  uint8_t flags;
};

// One code point in lower case; classes are those of the lower-case character.
struct CodePoint {
  uint32_t code;
  uint8_t flags;  // kWord, kDigit, kSpace
};

constexpr uint32_t kCapitalSigma = 0x3a3;

class Unicode {
 public:
  // The tables of the Python that this was built for, made at the first call.
  static const Unicode& tables();

  const LowerChar* bmp() const { return bmp_.data(); }

  // str.lower() of the character at `position`, one or two code points; returns how many. Only the
  // capital sigma looks at its neighbours: after a cased letter and before none it is a final sigma,
  // characters that Unicode calls case-ignorable not counted.
  template <class Char>
  int lower(const Char* text, int64_t length, int64_t position, CodePoint out[2]) const;

  // Whether the character is a capital sigma whose lower case characters behind the text may yet change.
  bool is_open_sigma(const uint32_t* text, int64_t length, int64_t position) const {
    return text[position] == kCapitalSigma && behind_ignorable(text, length, position) == length &&
           follows_cased(text, position);
  }

  bool is_space(uint32_t code) const { return classes_[code] & kSpace; }  // str.isspace

 private:
  Unicode();
  template <class Char>
  bool is_final_sigma(const Char* text, int64_t length, int64_t position) const;
  template <class Char>
  bool follows_cased(const Char* text, int64_t position) const;
  template <class Char>
  int64_t behind_ignorable(const Char* text, int64_t length, int64_t position) const;
  uint32_t lower_of(uint32_t code) const;
  CodePoint classed(uint32_t code) const { return {code, classes_[code]}; }

  std::vector<LowerChar> bmp_;
  std::vector<uint8_t> classes_;  // of every code point: CharClass, and kCased and kIgnorable
};

// Writes a code point in UTF-8 and returns its length; a lone surrogate takes its three bytes.
int encode(uint32_t code, char* out);

}  // namespace xelm
