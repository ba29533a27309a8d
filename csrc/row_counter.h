// The terms of one document and how often each occurs.

#pragma once

#include <cstdint>
#include <vector>

namespace xelm {

class RowCounter {
 public:
  explicit RowCounter(int64_t num_terms)
      : counts_(num_terms), bits_(words(num_terms)), blocks_(words(bits_.size())), tops_(words(blocks_.size())) {}

  // Adds terms, some of which may come again. No branch depends on which.
  void add(const std::vector<int32_t>& terms) {
    size_t size = used_.size();
    used_.resize(size + terms.size());
    for (const int32_t term : terms) {
      used_[size] = term;
      size += counts_[term]++ == 0;
      bits_[term >> 6] |= bit(term);
      blocks_[term >> 12] |= bit(term >> 6);
      tops_[term >> 18] |= bit(term >> 12);
    }
    used_.resize(size);
  }

  // How many terms there are.
  int64_t size() const { return static_cast<int64_t>(used_.size()); }

  // Writes the terms in the order in which they came, with their counts, and begins anew.
  void drain(int32_t* terms, double* values) {
    for (const int32_t term : used_) {
      *terms++ = term;
      *values++ = take_count(term);
      bits_[term >> 6] = blocks_[term >> 12] = tops_[term >> 18] = 0;
    }
    used_.clear();
  }

  // The same in the order of the terms' numbers. Bits of three sizes lead to them, which is faster than to sort.
  void drain_in_order(int32_t* terms, double* values) {
    for (size_t top = 0; top < tops_.size(); ++top) {
      take_bits(tops_[top], static_cast<int32_t>(top), [&](int32_t block) {
        take_bits(blocks_[block], block, [&](int32_t word) {
          take_bits(bits_[word], word, [&](int32_t term) {
            *terms++ = term;
            *values++ = take_count(term);
          });
        });
      });
    }
    used_.clear();
  }

 private:
  static size_t words(size_t num_bits) { return num_bits / 64 + 1; }
  static uint64_t bit(int32_t number) { return uint64_t{1} << (number & 63); }

  // Calls visit with the number of each bit that is set in a word, lowest first, and clears the word.
  template <class Visit>
  static void take_bits(uint64_t& word, int32_t number, const Visit& visit) {
    for (uint64_t rest = word; rest; rest &= rest - 1) visit(number * 64 + __builtin_ctzll(rest));
    word = 0;
  }

  double take_count(int32_t term) {
    const double count = counts_[term];
    counts_[term] = 0;
    return count;
  }

  std::vector<uint32_t> counts_;  // by term
  std::vector<int32_t> used_;
  std::vector<uint64_t> bits_, blocks_, tops_;  // a bit a term, a bit a word of `bits_`, a bit a word of `blocks_`
};

}  // namespace xelm
