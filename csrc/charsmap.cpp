#include "charsmap.h"

#include <stdexcept>

#include "unicode.h"

namespace xelm {

namespace {

constexpr uint32_t kCodePoints = 0x110000;
constexpr int64_t kShort = 6;  // a grapheme of fewer bytes is looked up as a whole

bool is_surrogate(uint32_t code) { return code >= 0xD800 && code < 0xE000; }
// Whether it is one of the marks, of two bytes each, that belong to the letter before.
bool is_mark(uint32_t code) {
  return code >= 0x300 && (code < 0x370 || (code >= 0x591 && code <= 0x5BD) || (code >= 0x610 && code <= 0x61A) ||
                           (code >= 0x64B && code <= 0x65F) || code == 0x670);
}
bool is_control(uint32_t code) { return code < 0x20 || (code >= 0x7F && code < 0xA0); }
int64_t utf8_size(uint32_t code) { return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4; }

// Whether it is a character that begins a grapheme wherever it follows what `lets_go`. Not all that do are here.
bool is_base(uint32_t code) {
  static constexpr uint32_t kRanges[][2] = {
      {0x20, 0x7E},     {0xA0, 0xA8},     {0xAA, 0xAC},     {0xAF, 0x2FF},    {0x370, 0x482},   {0x48A, 0x58F},
      {0x5D0, 0x5EA},   {0x606, 0x60F},   {0x61D, 0x64A},   {0x660, 0x66F},   {0x671, 0x6D5},   {0xE01, 0xE30},
      {0xE40, 0xE46},   {0x1E00, 0x1FFF}, {0x2010, 0x2027}, {0x2030, 0x203B}, {0x3001, 0x3029}, {0x3041, 0x3096},
      {0x30A1, 0x30FA}, {0x4E00, 0x9FFF}, {0xAC00, 0xD7A3}, {0xFF01, 0xFF9D}};
  for (const auto& range : kRanges) {
    if (code <= range[1]) return code >= range[0];
  }
  return false;
}

// Whether a base that follows begins a grapheme of its own: this is no joiner, no part of a Hangul syllable, and
// lies where Unicode has no letters of Grapheme_Cluster_Break=Prepend, or is none.
bool lets_go(uint32_t code) {
  const bool is_prepended = (code >= 0x600 && code <= 0x605) || code == 0x6DD || code == 0x70F || code == 0x890 ||
                            code == 0x891 || code == 0x8E2 || code == 0xD4E;
  return (code < 0x1100 && !is_prepended) || (code >= 0x1200 && code < 0xA960 && code != 0x200D) ||
         (code >= 0xA980 && code < 0xD7B0) || (code >= 0xF900 && code < 0x10000) || code >= 0x1D100;
}

uint32_t little_endian(const char* bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// The code point that begins at `bytes`, which are UTF-8; moves past it.
uint32_t decode(const char*& bytes) {
  const auto first = static_cast<uint8_t>(*bytes++);
  const int more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  uint32_t code = more ? first & (0x3F >> more) : first;
  for (int i = 0; i < more && *bytes; ++i) code = code << 6 | (*bytes++ & 0x3F);
  return code;
}

}  // namespace

Charsmap::Charsmap(const std::string& bytes) : rules_(kCodePoints) {
  for (uint32_t code = 0xD800; code < 0xE000; ++code) rules_[code] = kContinues;  // has `rewrite` look at it
  if (bytes.empty()) return;
  const size_t size = bytes.size() < 4 ? bytes.size() : little_endian(bytes.data());
  if (bytes.size() < 4 + size || size % 4) {
    throw std::invalid_argument("a charsmap of " + std::to_string(bytes.size()) + " bytes has a trie of " +
                                std::to_string(size));
  }
  for (size_t at = 4; at < 4 + size; at += 4) trie_.push_back(little_endian(bytes.data() + at));
  texts_ = bytes.substr(4 + size);
  for (uint32_t code = 1; code < kCodePoints; ++code) {
    if (is_surrogate(code)) continue;
    char utf8[4];
    bool continues = false;
    const uint32_t key = first_key(utf8, encode(code, utf8), &continues);
    rules_[code] = key << 1 | (continues ? kContinues : 0);
  }
}

// One more than where in texts_ the shortest key that begins the bytes has its text; 0 if none does. The trie is
// a double array: a unit has its byte in bits 0 to 7 and 31, whether a key ends there in bit 8, and how far its
// children are in the rest.
uint32_t Charsmap::first_key(const char* bytes, int64_t size, bool* continues) const {
  const auto step = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  if (trie_.empty()) return 0;
  uint32_t at = step(trie_[0]);
  for (int64_t i = 0; i < size; ++i) {
    const auto byte = static_cast<uint8_t>(bytes[i]);
    at ^= byte;
    if (byte == 0 || at >= trie_.size() || (trie_[at] & (1u << 31 | 0xFF)) != byte) return 0;
    const uint32_t unit = trie_[at];
    at ^= step(unit);
    if ((unit >> 8 & 1) && at < trie_.size()) return (trie_[at] & ~(1u << 31)) + 1;
  }
  if (continues) *continues = true;
  return 0;
}

// As first_key, for the characters that are below six bytes together.
template <class Char>
uint32_t Charsmap::short_key(const Char* text, int64_t length) const {
  char bytes[kShort + 4];
  int64_t size = 0;
  for (int64_t i = 0; i < length && size + utf8_size(text[i]) < kShort; ++i) size += encode(text[i], bytes + size);
  return first_key(bytes, size, nullptr);
}

// Appends what a key becomes.
void Charsmap::append(uint32_t key, std::vector<uint32_t>& out) const {
  if (key > texts_.size()) return;
  for (const char* text = texts_.data() + key - 1; *text;) out.push_back(decode(text));
}

template <class Char>
bool Charsmap::normalize(const Char* text, int64_t length, std::vector<uint32_t>& out) const {
  for (int64_t at = 0; at < length;) {
    int64_t end = at;
    while (end < length && rules_[text[end]] == 0) ++end;
    out.insert(out.end(), text + at, text + end);
    if (end == length) break;
    const int64_t taken = rewrite(text, length, end, out);
    if (taken == 0) return false;
    at = end + taken;
  }
  return true;
}

// Appends what the character at `at` becomes, maybe with some that follow it; how many those are, or 0 where it
// is not clear what belongs to its grapheme.
template <class Char>
int64_t Charsmap::rewrite(const Char* text, int64_t length, int64_t at, std::vector<uint32_t>& out) const {
  const uint32_t code = text[at], key = rules_[code] >> 1;
  if (is_surrogate(code)) return 0;
  const auto take_alone = [&] {
    if (key) append(key, out);
    else out.push_back(code);
    return 1;
  };
  int64_t end = at + 1;
  while (end < length && is_mark(text[end])) ++end;
  const bool is_last = end == length;
  const int64_t marks = end - at - 1;
  const bool ends = is_last || is_base(text[end]) || is_control(text[end]);
  if (marks && ends && is_base(code) && (at == 0 || lets_go(text[at - 1]))) {
    if (utf8_size(code) + 2 * marks >= kShort) return take_alone();
    const uint32_t joined = short_key(text + at, 1 + marks);
    if (joined == 0) return take_alone();
    append(joined, out);
    return 1 + marks;
  }
  if (key == 0) return short_key(text + at, length - at) ? 0 : take_alone();
  if (code == '\r' && !is_last && marks == 0 && text[end] == '\n') return take_alone() + 1;
  const bool is_alone = is_control(code) || (marks == 0 && (is_last || (ends && lets_go(code))));
  return is_alone || utf8_size(code) + utf8_size(text[at + 1]) >= kShort ? take_alone() : 0;
}

template bool Charsmap::normalize(const uint8_t*, int64_t, std::vector<uint32_t>&) const;
template bool Charsmap::normalize(const uint16_t*, int64_t, std::vector<uint32_t>&) const;
template bool Charsmap::normalize(const uint32_t*, int64_t, std::vector<uint32_t>&) const;

}  // namespace xelm
