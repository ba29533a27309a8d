#include "token_text.h"

#include <algorithm>

namespace xelm {
namespace {

constexpr uint32_t kMeta = 0x2581, kReplacement = 0xfffd;

}  // namespace

void GrowingText::append(const TokenPieces& pieces, int32_t id) {
  kept_ = static_cast<int64_t>(characters_.size());
  if (pieces.is_special(id)) return;
  if (missing_) {
    characters_.pop_back();  // what stood for the beginning of a character
    --kept_;
  }
  for (const char byte : pieces.piece(id)) read(static_cast<uint8_t>(byte), pieces.metas());
  if (missing_) characters_.push_back(kReplacement);
  is_first_ = false;
}

// The Unicode standard's "maximal subparts": as Python and Rust, one U+FFFD for each beginning of a character
// that does not go on, and for each byte that begins none.
void GrowingText::read(uint8_t byte, Metas metas) {
  if (missing_) {
    if (low_ <= byte && byte <= high_) {
      code_ = code_ << 6 | (byte & 0x3f);
      low_ = 0x80;
      high_ = 0xbf;
      if (--missing_ == 0) put(code_, metas);
      return;
    }
    missing_ = 0;
    put(kReplacement, metas);
  }
  if (byte < 0x80) return put(byte, metas);
  if (byte < 0xc2 || byte > 0xf4) return put(kReplacement, metas);
  missing_ = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
  code_ = byte & (0x3f >> missing_);
  low_ = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
  high_ = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
}

void GrowingText::put(uint32_t code, Metas metas) {
  if (metas == Metas::kKept) return characters_.push_back(code);
  if (code == kMeta) {
    if (metas == Metas::kLeftOutOfFirst && is_first_) return;
    code = ' ';
  }
  if (metas == Metas::kStripped) {
    if (Unicode::tables().is_space(code)) {
      if (!characters_.empty()) spaces_.push_back(code);
      return;
    }
    characters_.insert(characters_.end(), spaces_.begin(), spaces_.end());
    spaces_.clear();
  }
  characters_.push_back(code);
}

void GrowingText::replace(const Text& text) {
  if (text.kind == 1) replace(static_cast<const uint8_t*>(text.data), text.length);
  if (text.kind == 2) replace(static_cast<const uint16_t*>(text.data), text.length);
  if (text.kind == 4) replace(static_cast<const uint32_t*>(text.data), text.length);
}

template <class Char>
void GrowingText::replace(const Char* text, int64_t length) {
  const int64_t shorter = std::min(length, static_cast<int64_t>(characters_.size()));
  kept_ = std::mismatch(text, text + shorter, characters_.begin()).first - text;
  characters_.resize(kept_);
  characters_.insert(characters_.end(), text + kept_, text + length);
}

}  // namespace xelm
