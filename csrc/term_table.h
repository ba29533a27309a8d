// Terms, numbered in the order in which they come.

#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace xelm {

constexpr int64_t kSlack = 16;  // bytes that may be read behind a term, whatever they hold

// A term in UTF-8, with `kSlack` readable bytes behind it, and its hash.
struct Term {
  const char* text;
  uint32_t length;
  uint64_t hash;

  std::string_view view() const { return {text, length}; }
};

inline uint64_t load8(const char* text) {
  uint64_t word;
  std::memcpy(&word, text, sizeof word);
  return word;
}

// Which of the first sixteen bytes belong to a term, by its length.
struct HeadMasks {
  uint64_t low[17] = {}, high[17] = {};

  constexpr HeadMasks() {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte has to be the lowest");
    for (int length = 1; length <= 16; ++length) {
      low[length] = length >= 8 ? ~uint64_t{0} : low[length - 1] << 8 | 0xff;
      high[length] = length > 8 ? high[length - 1] << 8 | 0xff : 0;
    }
  }
};
inline constexpr HeadMasks kHeadMasks;

// The first sixteen bytes, zeros where the term is shorter.
struct Head {
  uint64_t low, high;

  Head(const char* text, uint32_t length) : low(load8(text)), high(load8(text + 8)) {
    const uint32_t known = length < 16 ? length : 16;
    low &= kHeadMasks.low[known];
    high &= kHeadMasks.high[known];
  }
};

inline uint64_t folded_product(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t hash_of(const char* text, uint32_t length) {
  constexpr uint64_t kOdd[3] = {0x9e3779b97f4a7c15, 0xd1b54a32d192ed03, 0x8bb84b93962eacc9};
  uint64_t hash = length * kOdd[2];
  for (; length > 16; text += 16, length -= 16) {
    hash = folded_product(load8(text) ^ kOdd[0] ^ hash, load8(text + 8) ^ kOdd[1]);
  }
  const Head head(text, length);
  return folded_product(head.low ^ kOdd[0] ^ hash, head.high ^ kOdd[1]);
}

class TermTable {
 public:
  TermTable();

  // A term that `find` or `insert` takes; `text` needs `kSlack` bytes behind it.
  static Term term(const char* text, uint32_t length) { return {text, length, hash_of(text, length)}; }

  int64_t size() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int64_t bytes() const;
  void clear();

  // Asks for the memory where the search for a term begins.
  void prefetch(const Term& term) const { __builtin_prefetch(&slots_[term.hash & mask_]); }

  // The number of a term, or -1.
  int64_t find(const Term& term) const {
    for (uint64_t at = term.hash & mask_; slots_[at].length; at = (at + 1) & mask_) {
      if (holds(slots_[at], term)) return slots_[at].number;
    }
    return -1;
  }

  // The number of a term, a new one where it has none.
  int64_t insert(const Term& term);

  std::string_view text(int64_t number) const {
    return {&texts_[starts_[number]], static_cast<size_t>(starts_[number + 1] - starts_[number])};
  }

  // Numbers in the order of the terms' bytes, which is that of their code points.
  std::vector<uint32_t> in_order() const;

 private:
  // Half a cache line; a term of up to 16 bytes is compared here, a longer one where `texts_` has it.
  struct Slot {
    uint64_t hash, low, high;
    uint32_t number, length;  // length 0: free
  };

  bool holds(const Slot& slot, const Term& term) const {
    if (slot.hash != term.hash || slot.length != term.length) return false;
    if (term.length > 16) return text(slot.number) == term.view();
    const Head head(term.text, term.length);
    return slot.low == head.low && slot.high == head.high;
  }
  void grow();

  std::vector<Slot> slots_;
  uint64_t mask_;
  std::vector<char> texts_;
  std::vector<uint64_t> starts_;
};

}  // namespace xelm
