#include "unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace xelm {

namespace {

constexpr double kUnkPenalty = 10;  // an unknown character is so much worse than the worst piece
constexpr int kCodeBits = 21;

uint64_t spread(uint64_t key) { return (key * 0x9e3779b97f4a7c15) >> 20; }
uint32_t mask_of(uint32_t code) { return uint32_t{1} << (code & 31); }

}  // namespace

Unigram::Unigram(const std::vector<std::vector<uint32_t>>& pieces, const std::vector<double>& scores,
                 int32_t unk_id)
    : nodes_(1), edges_(16), unk_id_(unk_id) {
  if (scores.size() != pieces.size() || unk_id < 0 || static_cast<size_t>(unk_id) >= pieces.size()) {
    throw std::invalid_argument(std::to_string(pieces.size()) + " pieces with " + std::to_string(scores.size()) +
                                " scores, the unknown one being " + std::to_string(unk_id));
  }
  double worst = std::numeric_limits<double>::infinity();
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].empty() || !std::isfinite(scores[id])) {
      throw std::invalid_argument("piece " + std::to_string(id) + " is empty or has no score");
    }
    worst = std::min(worst, scores[id]);
    add(pieces[id], scores[id], static_cast<int32_t>(id));
  }
  unk_score_ = worst - kUnkPenalty;
}

// Of equal pieces the last one counts.
void Unigram::add(const std::vector<uint32_t>& piece, double score, int32_t id) {
  int32_t node = 0;
  for (const uint32_t code : piece) {
    if (nodes_.size() * 2 > edges_.size()) grow();
    Edge& found = edge(node, code);
    if (found.key == 0) {
      found = {(static_cast<uint64_t>(node) << kCodeBits | code) + 1, static_cast<int32_t>(nodes_.size())};
      if (node == 0) {
        if (code >= first_.size()) first_.resize(code + 1);
        first_[code] = found.child;
      }
      nodes_[node].next_mask |= mask_of(code);
      nodes_.emplace_back();
    }
    node = found.child;
  }
  nodes_[node].score = score;
  nodes_[node].id = id;
}

void Unigram::grow() {
  std::vector<Edge> old(edges_.size() * 4);
  old.swap(edges_);
  for (const Edge& one : old) {
    if (one.key == 0) continue;
    const uint64_t key = one.key - 1;
    edge(static_cast<int32_t>(key >> kCodeBits), key & ((1 << kCodeBits) - 1)) = one;
  }
}

// The edge, or the free place for it.
Unigram::Edge& Unigram::edge(int32_t parent, uint32_t code) {
  const uint64_t key = (static_cast<uint64_t>(parent) << kCodeBits | code) + 1;
  size_t at = spread(key) & (edges_.size() - 1);
  while (edges_[at].key && edges_[at].key != key) at = (at + 1) & (edges_.size() - 1);
  return edges_[at];
}

// 0 if there is none.
int32_t Unigram::child(int32_t parent, uint32_t code) const {
  if (parent == 0) return code < first_.size() ? first_[code] : 0;
  if (!(nodes_[parent].next_mask & mask_of(code))) return 0;
  return const_cast<Unigram*>(this)->edge(parent, code).child;
}

void Unigram::encode(const uint32_t* word, int64_t length, std::vector<int32_t>& ids) {
  search(word, length);
  const size_t before = ids.size();
  for (int64_t end = length; end > 0;) {
    int64_t start = best_[end].start;
    int32_t id = best_[end].id;
    if (id == unk_id_) {
      while (start > 0 && best_[start].id == unk_id_) start = best_[start].start;
      id = id_of(word + start, end - start);
    }
    ids.push_back(id);
    end = start;
  }
  std::reverse(ids.begin() + before, ids.end());
}

// Fills best_ for every place in the word. A piece that ends at a place already reached has to be better.
void Unigram::search(const uint32_t* word, int64_t length) {
  best_.assign(length + 1, Best{});
  for (int64_t start = 0; start < length; ++start) {
    const double here = best_[start].score;
    const auto offer = [&](int64_t end, double score, int32_t id) {
      Best& best = best_[end];
      if (best.start < 0 || score + here > best.score) best = {score + here, start, id};
    };
    bool is_known = false;
    int32_t node = 0;
    for (int64_t end = start; end < length && (node = child(node, word[end]));) {
      ++end;
      if (nodes_[node].id < 0) continue;
      offer(end, nodes_[node].score, nodes_[node].id);
      is_known |= end == start + 1;
    }
    if (!is_known) offer(start + 1, unk_score_, unk_id_);
  }
}

// Of a piece with exactly this text, else the unknown one.
int32_t Unigram::id_of(const uint32_t* text, int64_t length) const {
  int32_t node = 0;
  for (int64_t i = 0; i < length; ++i) {
    if (!(node = child(node, text[i]))) return unk_id_;
  }
  return nodes_[node].id < 0 ? unk_id_ : nodes_[node].id;
}

}  // namespace xelm
