#include "unigram_encoder.h"

#include <algorithm>
#include <utility>

namespace xelm {

namespace {

using Step = UnigramSettings::Step;

constexpr uint32_t kMeta = 0x2581;  // "▁", which stands for a space

// Unicode's White_Space.
bool is_whitespace(uint32_t code) {
  if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

// Runs of two spaces or more become one character. The text begins behind the first of `text`.
void join_spaces(CodePoints& text, uint32_t with) {
  size_t out = 1;
  for (size_t at = 1; at < text.size();) {
    size_t end = at;
    while (end < text.size() && text[end] == ' ') ++end;
    text[out++] = end - at > 1 ? with : text[at];
    at = std::max(end, at + 1);
  }
  text.resize(out);
}

void apply(Step step, CodePoints& text) {
  switch (step) {
    case Step::kStripLeft:
      text.erase(text.begin() + 1, std::find_if_not(text.begin() + 1, text.end(), is_whitespace));
      break;
    case Step::kStripRight:
      while (text.size() > 1 && is_whitespace(text.back())) text.pop_back();
      break;
    case Step::kSpacesToSpace:
      join_spaces(text, ' ');
      break;
    case Step::kSpacesToMeta:
      join_spaces(text, kMeta);
      break;
  }
}

}  // namespace

Stoppers::Stoppers(std::vector<CodePoints> strings) : strings_(std::move(strings)) {
  for (const CodePoints& string : strings_) may_begin_[string.at(0) & 63] = true;
}

template <class Char>
bool Stoppers::in(const Char* text, int64_t length) const {
  if (strings_.empty()) return false;
  for (const Char *at = text, *end = text + length; at < end; ++at) {
    if (!may_begin_[*at & 63]) continue;
    for (const CodePoints& string : strings_) {
      const bool fits = static_cast<size_t>(end - at) >= string.size();
      if (fits && std::equal(string.begin(), string.end(), at)) return true;
    }
  }
  return false;
}

UnigramEncoder::UnigramEncoder(const std::string& charsmap, const UnigramSettings& settings, Unigram unigram)
    : charsmap_(charsmap),
      steps_(settings.steps),
      cuts_at_whitespace_(settings.cuts_at_whitespace),
      raw_(settings.raw),
      inner_(settings.inner),
      unigram_(std::move(unigram)) {}

std::vector<int64_t> UnigramEncoder::encode(const std::vector<Text>& texts, std::vector<int32_t>& ids) {
  const std::lock_guard<std::mutex> lock(busy_);
  std::vector<int64_t> ends;
  ends.reserve(texts.size());
  for (const Text& text : texts) {
    const bool is_done = text.kind == 1   ? encode(static_cast<const uint8_t*>(text.data), text.length, ids)
                         : text.kind == 2 ? encode(static_cast<const uint16_t*>(text.data), text.length, ids)
                                          : encode(static_cast<const uint32_t*>(text.data), text.length, ids);
    ends.push_back(is_done ? static_cast<int64_t>(ids.size()) : -1);
  }
  return ends;
}

template <class Char>
bool UnigramEncoder::encode(const Char* text, int64_t length, std::vector<int32_t>& ids) {
  text_.assign(1, kMeta);
  if (raw_.in(text, length) || !charsmap_.normalize(text, length, text_)) return false;
  for (const Step step : steps_) apply(step, text_);
  if (inner_.in(text_.data() + 1, static_cast<int64_t>(text_.size()) - 1)) return false;
  if (text_.size() > 1) cut(ids);
  return true;
}

// Each word begins with one kMeta; where there is none yet, the space before takes it.
void UnigramEncoder::cut(std::vector<int32_t>& ids) {
  const bool at_all = cuts_at_whitespace_;
  uint32_t* const end = text_.data() + text_.size();
  const auto begins = [&](uint32_t code) { return code == kMeta || (at_all ? is_whitespace(code) : code == ' '); };
  for (uint32_t* at = text_.data() + (!at_all && begins(text_[1])); at < end;) {
    uint32_t* next = at + 1;
    while (next < end && !begins(*next)) ++next;
    // White space that nothing follows, or a kMeta, is left out if words are what lies between.
    const bool is_gap = at_all && next == at + 1 && (*at != kMeta || at == text_.data());
    if (!is_gap) {
      *at = kMeta;
      word(at, next, ids);
    }
    at = next;
  }
}

void UnigramEncoder::word(const uint32_t* begin, const uint32_t* end, std::vector<int32_t>& ids) {
  const int64_t length = end - begin;
  if (length > WordIds::kLongest) return unigram_.encode(begin, length, ids);
  if (known_.find(begin, length, ids)) return;
  const size_t before = ids.size();
  unigram_.encode(begin, length, ids);
  known_.add(begin, length, ids.data() + before, static_cast<int64_t>(ids.size() - before));
}

}  // namespace xelm
