#include "term_table.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace xelm {
namespace {

constexpr size_t kFirstSlots = 1 << 10;

// Eight bytes as a number that is ordered as they are.
uint64_t prefix_of(std::string_view text) {
  uint64_t prefix = 0;
  for (size_t i = 0; i < 8; ++i) prefix = prefix << 8 | (i < text.size() ? static_cast<uint8_t>(text[i]) : 0);
  return prefix;
}

}  // namespace

TermTable::TermTable() { clear(); }

void TermTable::clear() {
  slots_ = std::vector<Slot>(kFirstSlots);
  mask_ = kFirstSlots - 1;
  texts_ = {};
  starts_ = {0};
}

int64_t TermTable::bytes() const {
  return static_cast<int64_t>(slots_.capacity() * sizeof(Slot) + texts_.capacity() +
                              starts_.capacity() * sizeof(uint64_t));
}

int64_t TermTable::insert(const Term& term) {
  uint64_t at = term.hash & mask_;
  for (; slots_[at].length; at = (at + 1) & mask_) {
    if (holds(slots_[at], term)) return slots_[at].number;
  }
  const int64_t number = size();
  if (number == std::numeric_limits<uint32_t>::max()) throw std::length_error("more than 2**32 - 1 terms");
  const Head head(term.text, term.length);
  slots_[at] = {term.hash, head.low, head.high, static_cast<uint32_t>(number), term.length};
  texts_.insert(texts_.end(), term.text, term.text + term.length);
  starts_.push_back(texts_.size());
  if (2 * starts_.size() > slots_.size()) grow();
  return number;
}

void TermTable::grow() {
  std::vector<Slot> old(2 * slots_.size());
  old.swap(slots_);
  mask_ = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (!slot.length) continue;
    uint64_t at = slot.hash & mask_;
    while (slots_[at].length) at = (at + 1) & mask_;
    slots_[at] = slot;
  }
}

std::vector<uint32_t> TermTable::in_order() const {
  std::vector<std::pair<uint64_t, uint32_t>> keys(size());
  for (int64_t i = 0; i < size(); ++i) keys[i] = {prefix_of(text(i)), static_cast<uint32_t>(i)};
  std::sort(keys.begin(), keys.end(), [this](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : text(a.second) < text(b.second);
  });
  std::vector<uint32_t> numbers(keys.size());
  std::transform(keys.begin(), keys.end(), numbers.begin(), [](const auto& key) { return key.second; });
  return numbers;
}

}  // namespace xelm
