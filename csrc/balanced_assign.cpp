#include "balanced_assign.h"

#include <cmath>
#include <queue>
#include <stdexcept>
#include <string>
#include <tuple>

namespace xelm {
namespace {

struct Pair {
  float distance;
  int64_t document;
  int64_t cluster;

  bool operator>(const Pair& other) const {
    return std::tie(distance, document, cluster) > std::tie(other.distance, other.document, other.cluster);
  }
};

using NearestFirst = std::priority_queue<Pair, std::vector<Pair>, std::greater<Pair>>;

// Room of floor(N/K) documents a cluster, and of one more for the N mod K clusters that ask first.
class Room {
 public:
  Room(int64_t num_documents, int64_t num_clusters)
      : size_(num_clusters, 0), base_(num_documents / num_clusters), extra_(num_documents % num_clusters) {}

  bool has(int64_t cluster) const {
    return size_[cluster] < base_ || (size_[cluster] == base_ && extra_ > 0);
  }

  void take(int64_t cluster) {
    if (size_[cluster] == base_) --extra_;
    ++size_[cluster];
  }

 private:
  std::vector<int64_t> size_;
  int64_t base_;
  int64_t extra_;
};

void check(const float* distance, int64_t num_documents, int64_t num_clusters) {
  if (num_clusters == 0 && num_documents > 0) {
    throw std::invalid_argument("balanced_assign: distance=[" + std::to_string(num_documents) +
                                ", 0] has documents but no cluster to put them in");
  }
  for (int64_t i = 0; i < num_documents * num_clusters; ++i) {
    if (std::isnan(distance[i])) {
      throw std::invalid_argument("balanced_assign: distance[" + std::to_string(i / num_clusters) + ", " +
                                  std::to_string(i % num_clusters) + "]=nan cannot be ordered");
    }
  }
}

// The nearest cluster that still has room; the total room is N, so a free document always finds one.
Pair nearest_open(const float* distance, int64_t document, int64_t num_clusters, const Room& room) {
  const float* row = distance + document * num_clusters;
  int64_t best = -1;
  for (int64_t k = 0; k < num_clusters; ++k) {
    if (room.has(k) && (best < 0 || row[k] < row[best])) best = k;
  }
  return {row[best], document, best};
}

}  // namespace

std::vector<int32_t> balanced_assign(const float* distance, int64_t num_documents, int64_t num_clusters) {
  check(distance, num_documents, num_clusters);
  std::vector<int32_t> cluster_of(num_documents, -1);
  if (num_documents == 0) return cluster_of;

  Room room(num_documents, num_clusters);
  std::vector<Pair> first;
  first.reserve(num_documents);
  for (int64_t n = 0; n < num_documents; ++n) first.push_back(nearest_open(distance, n, num_clusters, room));
  // One entry a free document, its nearest cluster when it was pushed. A cluster that fills up never
  // opens again, so an outdated entry comes too early, never too late, and is pushed again.
  NearestFirst queue(std::greater<Pair>(), std::move(first));
  while (!queue.empty()) {
    const Pair nearest = queue.top();
    queue.pop();
    if (room.has(nearest.cluster)) {
      cluster_of[nearest.document] = static_cast<int32_t>(nearest.cluster);
      room.take(nearest.cluster);
    } else {
      queue.push(nearest_open(distance, nearest.document, num_clusters, room));
    }
  }
  return cluster_of;
}

}  // namespace xelm
