#include "prefix_terms.h"

#include <algorithm>
#include <cstring>

namespace xelm {
namespace {

constexpr uint32_t kReplacement = 0xfffd;
constexpr int64_t kMostBytes = 4;  // of a character

int64_t longest_of(const TermTable& table) {
  int64_t longest = 0;
  for (int64_t i = 0; i < table.size(); ++i) {
    longest = std::max(longest, static_cast<int64_t>(table.text(i).size()));
  }
  return longest;
}

// Reads the character at a position, in lower case.
template <class Reader>
void read_character(Reader& reader, const Unicode& tables, const std::vector<uint32_t>& text, int64_t position,
                    std::vector<int32_t>& found) {
  if (text[position] <= 0xffff) {
    const LowerChar& lower = tables.bmp()[text[position]];
    if (!(lower.flags & kSpecial)) return reader.put(lower.utf8, lower.flags & kLengthMask, lower.flags, found);
  }
  CodePoint lower[2];
  char utf8[kMostBytes];
  const int count = tables.lower(text.data(), static_cast<int64_t>(text.size()), position, lower);
  for (int i = 0; i < count; ++i) reader.put(utf8, encode(lower[i].code, utf8), lower[i].flags, found);
}

}  // namespace

Lexicon::Lexicon(const AnalyzerSettings& settings, const TermTable& terms, const TermTable* stop_words)
    : settings(settings),
      terms(&terms),
      stop_words(stop_words),
      longest(std::max(longest_of(terms), stop_words ? longest_of(*stop_words) : 0)) {}

void Lexicon::find(const char* text, int64_t length, std::vector<int32_t>& found) const {
  if (length > longest) return;
  const int64_t term = terms->find(TermTable::term(text, static_cast<uint32_t>(length)));
  if (term >= 0) found.push_back(static_cast<int32_t>(term));
}

WordReader::WordReader(const Lexicon& lexicon)
    : lexicon_(&lexicon), bytes_(lexicon.longest + kMostBytes + kSlack) {}

void WordReader::put(const char* utf8, int64_t length, uint8_t flags, std::vector<int32_t>& found) {
  if (flags & kWord) {
    if (num_characters_++ == 0) is_number_ = flags & kDigit;
    if (size_ > lexicon_->longest) return;  // too long for a term, however it goes on
    std::memcpy(&bytes_[size_], utf8, length);
    size_ += length;
    return;
  }
  close(found);
  if (lexicon_->settings.longest > 1 && is_word()) {
    before_.emplace_back(bytes_.data(), size_);
    if (static_cast<int64_t>(before_.size()) == lexicon_->settings.longest) before_.erase(before_.begin());
  }
  size_ = num_characters_ = 0;
}

void WordReader::close(std::vector<int32_t>& found) const {
  if (!is_word()) return;
  if (lexicon_->settings.longest > 1) {
    add_ngrams(found);
  } else {
    lexicon_->find(bytes_.data(), size_, found);
  }
}

bool WordReader::is_word() const {
  if (num_characters_ < 2 || (is_number_ && lexicon_->settings.drops_numbers)) return false;
  const TermTable* stop_words = lexicon_->stop_words;
  return !stop_words || stop_words->find(TermTable::term(bytes_.data(), static_cast<uint32_t>(size_))) < 0;
}

void WordReader::add_ngrams(std::vector<int32_t>& found) const {
  std::string ngram(bytes_.data(), size_);
  const auto num_before = static_cast<int64_t>(before_.size());
  for (int64_t n = 1;; ++n) {
    if (n >= lexicon_->settings.shortest) {
      std::string padded(ngram);
      padded.append(kSlack, '\0');
      lexicon_->find(padded.data(), static_cast<int64_t>(ngram.size()), found);
    }
    if (n == lexicon_->settings.longest || n > num_before) return;
    ngram.insert(0, before_[num_before - n] + ' ');
  }
}

CharacterReader::CharacterReader(const Lexicon& lexicon)
    : lexicon_(&lexicon), bytes_((lexicon.settings.longest + 1) * kMostBytes + kSlack), starts_{0} {}

void CharacterReader::put(const char* utf8, int64_t length, uint8_t flags, std::vector<int32_t>& found) {
  if (flags & kSpace) {
    close(found);
    num_characters_ = 0;
    starts_.assign(1, 0);
    return;
  }
  if (num_characters_ == 0) add(" ", 1, found);
  add(utf8, length, found);
}

// With the space behind it the word has one character more than now. scikit-learn takes a word that is no longer
// than an n-gram once, whatever longer n-grams are asked for.
void CharacterReader::close(std::vector<int32_t>& found) const {
  if (num_characters_ == 0) return;
  const auto known = static_cast<int64_t>(starts_.size()) - 1;
  const AnalyzerSettings& settings = lexicon_->settings;
  const int64_t shortest = std::min<int64_t>(settings.shortest, num_characters_ + 1);
  for (int64_t n = shortest; n <= std::min<int64_t>(settings.longest, known + 1); ++n) {
    const int64_t start = starts_[known + 1 - n];
    lexicon_->find(&bytes_[start], starts_.back() + 1 - start, found);
  }
}

void CharacterReader::push(const char* utf8, int64_t length) {
  if (static_cast<int64_t>(starts_.size()) > lexicon_->settings.longest) {  // forget the first character
    const int64_t first = starts_[1];
    std::memmove(bytes_.data(), &bytes_[first], starts_.back() - first);
    starts_.erase(starts_.begin());
    for (int64_t& start : starts_) start -= first;
  }
  std::memcpy(&bytes_[starts_.back()], utf8, length);
  starts_.push_back(starts_.back() + length);
  bytes_[starts_.back()] = ' ';
  ++num_characters_;
}

void CharacterReader::add(const char* utf8, int64_t length, std::vector<int32_t>& found) {
  push(utf8, length);
  const auto known = static_cast<int64_t>(starts_.size()) - 1;
  for (int64_t n = lexicon_->settings.shortest; n <= std::min<int64_t>(lexicon_->settings.longest, known); ++n) {
    const int64_t start = starts_[known - n];
    lexicon_->find(&bytes_[start], starts_.back() - start, found);
  }
}

PrefixTerms::State PrefixTerms::state() const {
  if (lexicon_->settings.characters) return CharacterReader(*lexicon_);
  return WordReader(*lexicon_);
}

bool PrefixTerms::read(const std::vector<uint32_t>& text, int64_t kept, std::vector<int32_t>& settled,
                       std::vector<int32_t>& open) {
  const bool is_anew = kept < position_;
  if (is_anew) {
    state_ = state();
    position_ = 0;
  }
  std::visit([&](auto& reader) { read_on(reader, text, settled, open); }, state_);
  return is_anew;
}

template <class Reader>
void PrefixTerms::read_on(Reader& reader, const std::vector<uint32_t>& text, std::vector<int32_t>& settled,
                          std::vector<int32_t>& open) {
  const Unicode& tables = Unicode::tables();
  const auto size = static_cast<int64_t>(text.size());
  const int64_t sure = size - (size > 0 && text.back() == kReplacement);
  const auto may_change = [&](int64_t i) {
    return i == sure || tables.is_open_sigma(text.data(), sure, i);
  };
  for (; position_ < size && !may_change(position_); ++position_) {
    read_character(reader, tables, text, position_, settled);
  }
  if (position_ == size) return reader.close(open);
  Reader ahead(reader);
  for (int64_t i = position_; i < size; ++i) read_character(ahead, tables, text, i, open);
  ahead.close(open);
}

}  // namespace xelm
