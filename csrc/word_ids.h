// The ids of words that have come before, in bounded memory.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace xelm {

class WordIds {
 public:
  static constexpr int64_t kLongest = 32;  // longer words, as sentences without spaces are, do not come again

  // Appends the ids of a word if they are known.
  bool find(const uint32_t* word, int64_t length, std::vector<int32_t>& ids) const {
    const Entry& entry = entries_[place(word, length)];
    if (entry.length == 0) return false;
    const auto first = ids_.begin() + entry.ids;
    ids.insert(ids.end(), first, first + entry.num_ids);
    return true;
  }

  // Remembers a word that is not known, with its ids.
  void add(const uint32_t* word, int64_t length, const int32_t* ids, int64_t num_ids) {
    if (num_words_ == kMostWords) *this = WordIds();
    if (num_words_ * 2 >= static_cast<int64_t>(entries_.size())) grow();
    entries_[place(word, length)] = {hash(word, length), letters_.size(), ids_.size(),
                                     static_cast<uint16_t>(length), static_cast<uint16_t>(num_ids)};
    letters_.insert(letters_.end(), word, word + length);
    ids_.insert(ids_.end(), ids, ids + num_ids);
    ++num_words_;
  }

 private:
  static constexpr int64_t kMostWords = 1 << 20;  // about 150 MB where each has ten letters and three ids

  struct Entry {
    uint64_t hash = 0;
    uint64_t letters = 0, ids = 0;  // where they begin
    uint16_t length = 0, num_ids = 0;
  };

  static uint64_t hash(const uint32_t* word, int64_t length) {
    uint64_t hash = static_cast<uint64_t>(length);
    for (int64_t i = 0; i < length; ++i) {
      hash = (hash ^ word[i]) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 32;
    }
    return hash;
  }

  // Of the word, or the free one where it would be.
  size_t place(const uint32_t* word, int64_t length) const {
    const uint64_t wanted = hash(word, length);
    size_t at = wanted & (entries_.size() - 1);
    for (; entries_[at].length; at = (at + 1) & (entries_.size() - 1)) {
      const Entry& entry = entries_[at];
      if (entry.hash == wanted && entry.length == length &&
          std::equal(word, word + length, letters_.begin() + entry.letters)) {
        break;
      }
    }
    return at;
  }

  void grow() {
    std::vector<Entry> old(entries_.size() * 2);
    old.swap(entries_);
    for (const Entry& entry : old) {
      if (entry.length == 0) continue;
      size_t at = entry.hash & (entries_.size() - 1);
      while (entries_[at].length) at = (at + 1) & (entries_.size() - 1);
      entries_[at] = entry;
    }
  }

  std::vector<Entry> entries_ = std::vector<Entry>(1 << 12);  // a power of two; a free one has length 0
  std::vector<uint32_t> letters_;
  std::vector<int32_t> ids_;
  int64_t num_words_ = 0;
};

}  // namespace xelm
