// SentencePiece's unigram model as Hugging Face's `tokenizers` runs it: the pieces of a word whose scores have the
// largest sum, added up from the left in double precision; of equal sums the one found first, which begins
// further left.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xelm {

class Unigram {
 public:
  // Pieces by id, in code points. Throws std::invalid_argument for an empty piece, a score that is not a number,
  // an `unk_id` that is no piece, or scores of another number.
  Unigram(const std::vector<std::vector<uint32_t>>& pieces, const std::vector<double>& scores, int32_t unk_id);

  // Appends the ids of a word; unknown characters side by side are one token.
  void encode(const uint32_t* word, int64_t length, std::vector<int32_t>& ids);

 private:
  struct Node {  // of the trie of pieces
    double score = 0;
    int32_t id = -1;         // -1: no piece ends here
    uint32_t next_mask = 0;  // a bit for each character that may follow
  };
  struct Edge {
    uint64_t key = 0;  // one more than parent << 21 | character
    int32_t child = 0;
  };
  struct Best {  // the best way to a place in the word
    double score = 0;
    int64_t start = -1;  // of its last piece
    int32_t id = 0;
  };

  void add(const std::vector<uint32_t>& piece, double score, int32_t id);
  void grow();
  Edge& edge(int32_t parent, uint32_t code);
  int32_t child(int32_t parent, uint32_t code) const;
  void search(const uint32_t* word, int64_t length);
  int32_t id_of(const uint32_t* text, int64_t length) const;

  std::vector<Node> nodes_;  // [0] is the root
  std::vector<Edge> edges_;  // open addressing; a power of two
  std::vector<int32_t> first_;  // the root's children by character, up to the last that there is
  std::vector<Best> best_;
  int32_t unk_id_;
  double unk_score_;
};

}  // namespace xelm
